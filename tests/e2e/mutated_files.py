"""What may be wrong with a file: bytes, header fields, tags, descriptions, metadata; by format.

A mutator changes a sound file in place, by a random generator, and says what it did.
"""

import gzip
import json
import re
import struct
import zipfile

import h5py
import mrcfile
import nibabel
import numpy as np
from sound_files import VALUES

# ---- what may be wrong with numbers, text and bytes

NUMBERS = (
    *(0, 1, 2, 3, 7, 255, 256, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1),
    *(-1, -2, -(2**31)),
)
REALS = (0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), 1e12, 0.1)
WORDS = (
    *("", " ", "0", "-1", "nan", "inf", "1e400", "1,5", "10" * 40, "../../outside", "/etc/passwd", "a\x1b[2J", "x" * 5000, "µm"),
    *("Pixel", "ZCTXY", "XYZCT", "uint128", "object", "|O", "<f16", "complex128", "\ud7ff", "true", "None", "é&<>\"'"),
)
_LISTS = ([], [1], [0, 0, 0], [1e12] * 3, ["z", "z", "z"], [[]], [None] * 3)
ODD = (None, True, False, *NUMBERS, *REALS, *WORDS, *_LISTS, {}, {"a": 1}, "z" * 10**5)


def bytes_of(rng, file):
    """Bits flipped, bytes overwritten, the file cut, lengthened, moved or emptied."""
    data = bytearray(file.read_bytes())
    how = rng.choice(("flip", "flip", "flip", "number", "number", "cut", "zeros", "longer", "insert", "remove", "empty", "twice"))
    place = rng.randrange(min(len(data), rng.choice((400, 4000, len(data)))) or 1) if data else 0
    if how == "flip":
        for _ in range(rng.choice((1, 1, 4, 30))):
            data[min(place + rng.randrange(64), len(data) - 1)] ^= 1 << rng.randrange(8)
    elif how == "number":
        size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
        data[place : place + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, order)
    elif how == "cut":
        del data[rng.choice((place, len(data) - 1 - place % 100)) :]
    elif how == "zeros":
        data[place : place + rng.choice((4, 64, 4096))] = bytes(rng.choice((4, 64, 4096)))
    elif how == "longer":
        data += rng.randbytes(rng.choice((1, 1000)))
    elif how == "insert":
        data[place:place] = rng.randbytes(rng.choice((1, 2, 64)))
    elif how == "remove":
        del data[place : place + rng.choice((1, 2, 64))]
    elif how == "twice":
        data *= 2
    else:
        data.clear()
    file.write_bytes(data)
    return f"{how} at {place}"


def any_file(rng, path):
    """Of a folder one of its files."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file = rng.choice(files)
    if path.is_dir() and rng.random() < 0.1:
        file.unlink()
        return f"{file.name} removed"
    return f"{file.name}: {bytes_of(rng, file)}"


# ---- JSON of Zarr, OME-Zarr and code stores


def odd_json(rng, content):
    """One place of it made odd, by depth."""
    holder, key, way = None, None, []
    inside = content
    while isinstance(inside, dict | list) and inside and (not way or rng.random() < 0.75):
        holder, key = inside, rng.choice(sorted(inside) if isinstance(inside, dict) else range(len(inside)))
        way.append(str(key))
        inside = holder[key]
    if holder is None:
        return rng.choice(ODD), "whole"
    how = rng.choice(("odd", "odd", "odd", "odd", "remove", "twice", "rename"))
    if how == "odd":
        number = isinstance(inside, int | float) and not isinstance(inside, bool)
        near = [inside * 2, -inside, inside + 1, inside * 10**12] if number else []
        holder[key] = rng.choice((*ODD, *near))
    elif how == "remove":
        del holder[key]
    elif how == "twice" and isinstance(holder, list):
        holder.insert(key, inside)
    elif isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    return content, f"{how} {'/'.join(way)[-80:]} {str(holder)[:60]}"


def metadata(rng, path):
    """Of a Zarr folder; or damage to its chunks, links, odd names."""
    files = sorted(file for file in path.rglob("*") if file.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup"))
    if rng.random() < 0.1:
        chunk = rng.choice(sorted(file for file in path.rglob("*") if file.is_file() and file not in files))
        how = rng.choice(("link", "folder", "fifo"))
        chunk.unlink()
        if how == "link":
            chunk.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "nowhere", "../../../..", chunk.name)))
        elif how == "folder":
            chunk.mkdir()
        else:
            chunk.write_bytes(b"")
        return f"{chunk.name}: {how}"
    file = rng.choice(files)
    if rng.random() < 0.1:
        texts = ("", "[]", "null", "{", "[" * 10**5, '{"a": 1e999}', "\x00", '{"zarr_format": 3}', "1" * 5000)
        file.write_text(rng.choice(texts))
        return f"{file.name}: other text"
    content = json.loads(file.read_text())
    if rng.random() < 0.5:  # as one who crafts a file does; else the seal names every change
        content.get("attributes", {}).pop("isoscope_checksums", None)
    content, done = odd_json(rng, content)
    for _ in range(rng.choice((0, 0, 0, 1))):
        content, more = odd_json(rng, content)
        done += "; " + more
    file.write_text(json.dumps(content))
    return f"{file.parent.name}/{file.name}: {done}"


def in_zip(rng, path):
    """Another entry, another name, other metadata within a zip file."""
    with zipfile.ZipFile(path) as file:
        entries = [(info.filename, file.read(info)) for info in file.infolist()]
    number = rng.randrange(len(entries))
    name, data = entries[number]
    how = rng.choice(("name", "metadata", "metadata", "twice", "removed", "content", "bomb"))
    if how == "name":
        others = (f"../{name}", f"/{name}", f"a/../../{name}", name.upper(), f"{name}\x00", "..", "x" * 5000, name + "/")
        name = rng.choice(others)
    elif how == "metadata":
        number = rng.choice([n for n, (name, _) in enumerate(entries) if name.split("/")[-1].startswith(".z")])
        name, data = entries[number]
        content, done = odd_json(rng, json.loads(data))
        how, data = f"{how} {name} {done}", json.dumps(content).encode()
    elif how == "removed":
        name = "elsewhere"
    elif how == "bomb":
        data = bytes(2**28)
    elif how == "content":
        data = rng.randbytes(100)
    entries[number] = (name, data)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if "bomb" in how else zipfile.ZIP_STORED) as file:
        for entry, content in entries + (entries[:1] if how == "twice" else []):
            file.writestr(zipfile.ZipInfo(entry) if "bomb" not in how else entry, content)
    return f"{how} {name[:80]!r}"


# ---- headers of fixed places


def _fields(file, dtype, rng, most=3):
    packed = file.read_bytes()[:2] == b"\x1f\x8b"
    data = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
    header, done = np.frombuffer(data, dtype, 1).copy(), []
    for _ in range(rng.randint(1, most)):
        name = rng.choice(dtype.names)
        field = header[name].reshape(-1)
        place = rng.randrange(field.size)
        if field.dtype.kind in "ui":
            info = np.iinfo(field.dtype)
            odd = (rng.choice((*NUMBERS, 4, 16, 64, 512, 1024, 2048)) - int(info.min)) % 2**info.bits + int(info.min)
        elif field.dtype.kind == "f":
            odd = rng.choice(REALS)
        else:
            odd = np.frombuffer(rng.randbytes(field.dtype.itemsize), field.dtype)[0]
        with np.errstate(over="ignore"):
            field[place] = odd
        header[name] = field.reshape(header[name].shape)
        done.append(f"{name}[{place}] = {odd}")
    data[: dtype.itemsize] = header.tobytes()
    file.write_bytes(gzip.compress(bytes(data), 1) if packed else data)
    return ", ".join(done)


def nifti_fields(rng, file):
    """Fields of a NIfTI header."""
    return _fields(file, nibabel.nifti1.header_dtype, rng)


def nifti_2_fields(rng, file):
    return _fields(file, nibabel.nifti2.header_dtype, rng)


def mrc_fields(rng, file):
    return _fields(file, mrcfile.dtypes.HEADER_DTYPE, rng)


_HEADER = "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}"
_NPY = (
    *("__import__('os').system('echo hacked > hacked')", "[" * 3000, "(", "{'descr': '<u2'}", "\\" * 50),
    *(_HEADER.format(descr, False, "(6, 20, 24)") for descr in ("'|O'", "[('a', '<u2'), ('b', '|O')]", "'<M8[ns]'", "'<f16'")),
    *(_HEADER.format(descr, False, "(2, 20, 24)") for descr in ("('<u2', (3,))", "'<V7'", "'|S3'", "7")),
    *(_HEADER.format("'<u2'", order, "(6, 20, 24)") for order in (1, None, "'C'")),
    *(
        _HEADER.format("'<u2'", False, shape)
        for shape in ("(10**12,)", "(1000000000000, 20, 24)", "(-6, -20, 24)", "(0, 20, 24)")
    ),
    *(_HEADER.format("'<u2'", True, shape) for shape in ("()", "(True, True, 6, 20, 24)", "'zyx'", "(6.0, 20, 24)", "(6, 20)")),
)


def npy_header(rng, file):
    """The text before an array of numpy, which is a Python literal."""
    data = file.read_bytes()
    text = rng.choice(_NPY)
    major = rng.choice((1, 1, 2, 3, 4, 0))
    content = text.encode() + b" " * rng.choice((0, 7)) + b"\n"
    length = struct.pack("<H" if major == 1 else "<I", rng.choice((len(content), len(content), len(content), 2**16 - 1)))
    file.write_bytes(b"\x93NUMPY" + bytes((major, 0)) + length + content + data[len(data) - VALUES.nbytes :])
    return f"version {major}, {text[:90]}"


def nrrd_fields(rng, file):
    """Fields of the text before the values of a NRRD file."""
    head, _, values = file.read_bytes().partition(b"\n\n")
    lines = head.split(b"\n")
    number = rng.randrange(len(lines))
    name, _, value = lines[number].partition(b": ")
    words = value.split(b" ")
    odd = str(rng.choice((*NUMBERS, *REALS, *WORDS))).encode("utf-8", "surrogatepass")
    words[rng.randrange(len(words))] = odd
    how = rng.choice(("odd", "odd", "odd", "gone", "twice", "name"))
    if how == "odd":
        lines[number] = name + b": " + b" ".join(words)
    elif how == "gone":
        del lines[number]
    elif how == "twice":
        lines.append(lines[number] + b" " + odd)
    else:
        lines[number] = rng.choice((b"data file", b"byte skip", b"line skip", b"spacings", b"labels", b"units")) + b": " + value
    file.write_bytes(b"\n".join(lines) + b"\n\n" + values)
    return f"{how} {name.decode(errors='replace')} {odd[:40]!r}"


def hdf5_objects(rng, path):
    """Attributes, types, layouts and links of an HDF5 file."""
    with h5py.File(path, "a") as file:
        found = []
        file.visititems(lambda name, item: found.append(name))
        arrays = [name for name in found if isinstance(file[name], h5py.Dataset)]
        named = [(name, key) for name in found for key in file[name].attrs]
        how = rng.choice(("attribute", "attribute", "attribute", "gone", "array", "array", "array", "link", "group"))
        done = how
        if how == "attribute" and named:
            name, key = rng.choice(named)
            odd = rng.choice((*NUMBERS[:12], *REALS, *WORDS, np.arange(3), np.zeros((2, 2)), b"\xff\xfe", np.zeros(0)))
            file[name].attrs[key] = odd
            done = f"{name}@{key} = {odd!r:.60}"
        elif how == "gone" and named:
            name, key = rng.choice(named)
            del file[name].attrs[key]
            done = f"{name}@{key} gone"
        elif how == "link":
            name = rng.choice(found)
            del file[name]
            outside = (h5py.ExternalLink(other, f"/{name}") for other in ("/etc/passwd", path.name, "nowhere"))
            file[name] = rng.choice((*outside, h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"), h5py.SoftLink("/")))
            done = f"{name} is a link"
        elif how == "group":
            name = rng.choice(found)
            del file[name]
            file.create_group(name)
            done = f"{name} is a group"
        else:
            name = rng.choice(arrays)
            attrs = dict(file[name].attrs)
            del file[name]
            kind = rng.choice(_KINDS)
            file.create_dataset(name, **kind)
            for key, value in attrs.items():
                file[name].attrs[key] = value
            done = f"{name}: {str(kind)[:90]}"
    return done


_KINDS = (
    {"shape": (10**6, 10**6, 10**6), "dtype": "u2", "chunks": (64, 64, 64)},
    {"shape": (10**4, 10**4, 4000), "dtype": "u2", "chunks": (64, 64, 64)},
    {"shape": (10**4, 10**3, 10**3), "dtype": "u2", "chunks": (1, 2**11, 2**11), "maxshape": (None, 2**11, 2**11)},
    {"shape": (10**9, 20, 24), "dtype": "u1", "chunks": True, "compression": "gzip"},
    {"shape": (6, 20, 24), "dtype": h5py.string_dtype()},
    {"shape": (6, 20, 24), "dtype": np.dtype([("a", "u2"), ("b", "f4")])},
    {"shape": (6, 20, 24), "dtype": h5py.ref_dtype},
    {"shape": (6, 20, 24), "dtype": h5py.vlen_dtype(np.uint8)},
    {"shape": (6, 20, 24), "dtype": h5py.enum_dtype({"A": 1})},
    {"shape": (6, 20, 24), "dtype": np.dtype(("u2", (3,)))},
    {"shape": (6, 20, 24), "dtype": "bool"},
    {"shape": (6, 20, 24), "dtype": "complex64"},
    {"shape": (0, 20, 24), "dtype": "u2"},
    {"shape": (), "dtype": "u2"},
    {"shape": None, "dtype": "u2"},
    {"shape": (2, 3, 4, 5, 6, 7, 8), "dtype": "u2"},
    {"shape": (6, 20, 24), "dtype": "u2", "external": [("/etc/passwd", 0, 100000)]},
    {"shape": (6, 20, 24), "dtype": ">i4"},
)


def xml_of_lif(rng, file):
    """Numbers in the description of a LIF file."""
    data = file.read_bytes()
    length = struct.unpack_from("<I", data, 9)[0]
    text = data[13 : 13 + 2 * length].decode("utf-16-le")
    found = rng.choice(list(re.finditer(r'(?<=")[^"]*(?=")', text)))
    odd = str(rng.choice((*NUMBERS, *REALS, *WORDS[:12])))
    text = text[: found.start()] + odd + text[found.end() :]
    content = struct.pack("<IIBI", 0x70, 2 * len(text) + 5, 0x2A, len(text)) + text.encode("utf-16-le", "replace")
    file.write_bytes(content + data[13 + 2 * length :])
    return f"{found.group()[:30]} → {odd[:60]!r}"


def in_nd2(rng, file):
    """Numbers in the descriptions of an ND2 file, which keep their length."""
    data = file.read_bytes()
    found = rng.choice(list(re.finditer(rb'(?<=value=")[^"]+(?=")', data)))
    odd = str(rng.choice((*NUMBERS, *REALS))).encode()[: len(found.group())].rjust(len(found.group()), b"0")
    file.write_bytes(data[: found.start()] + odd + data[found.end() :])
    return f"{found.group()!r} → {odd!r}"
