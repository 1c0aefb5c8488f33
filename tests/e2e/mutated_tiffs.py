"""What may be wrong with a TIFF: its directories, and the text that says what its pages are; mutators as of mutated_files."""

import re
import struct

import tifffile
from mutated_files import NUMBERS, REALS, WORDS

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TAGS = (*range(254, 300), 317, *range(320, 350), 513, 514, 530, 32997, 33550, 34264, 50838, 50839, 65000, 65535)


def tags(rng, file):
    """An entry of a page's directory: its tag, type, count, value; or where the next directory lies, or how long this one is."""
    data = bytearray(file.read_bytes())
    order, big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    offset, count, entry, place_of = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)

    def get(code, at):
        return struct.unpack_from(order + code, data, at)[0]

    def put(code, at, value):
        size = struct.calcsize(code)
        data[at : at + size] = (value % 256**size).to_bytes(size, "little" if order == "<" else "big")

    pages, at = [], get(offset, place_of)
    while at and len(pages) < 50:
        pages.append(at)
        at = get(offset, at + struct.calcsize(count) + entry * get(count, at))
    page = rng.choice(pages)
    entries = get(count, page)
    end = page + struct.calcsize(count) + entry * entries
    where = page + struct.calcsize(count) + entry * rng.randrange(entries)
    tag = get("H", where)
    how = rng.choice((*["value"] * 4, "inside", "inside", "count", "count", "type", "tag", "next", "entries", "copied"))
    odd = rng.choice((*NUMBERS, page, pages[0], pages[-1], len(data), len(data) - 1))
    if how == "tag":
        put("H", where, rng.choice(_TAGS))
    elif how == "type":
        put("H", where + 2, rng.choice((*_SIZES, 0, 14, 99)))
    elif how == "count":
        put(offset, where + 4, odd)
    elif how == "value":
        code = {1: "B", 3: "H"}.get(get("H", where + 2), offset) if rng.random() < 0.7 else offset
        put(code, where + 4 + struct.calcsize(offset), rng.choice((*NUMBERS[:6], odd)))
    elif how == "inside":  # of what the entry points to
        target = get(offset, where + 4 + struct.calcsize(offset))
        if target < len(data) - 8:
            put(rng.choice("BHIQ"), target + 4 * rng.randrange(3), odd)
    elif how == "next":
        put(offset, end, odd)
    elif how == "entries":
        put(count, page, odd)
    else:
        data[where : where + entry] = data[page + struct.calcsize(count) :][:entry]
    file.write_bytes(data)
    return f"{how} of tag {tag} of page {pages.index(page)}: {odd}"


_ENTITIES = '<!DOCTYPE OME [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
_OUTSIDE = '<!DOCTYPE OME [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


def description(rng, file):
    """The text that says what the pages of a TIFF are: of OME, ImageJ or tifffile."""
    text = tifffile.tiffcomment(file)
    numbers = list(re.finditer(r"(?<==)[-\d.]+|(?<=\")[^\"<>]*(?=\")|(?<=: )\d+|(?<=[\[ ])\d+(?=[,\]])", text))
    how = rng.choice(("number", "number", "number", "number", "line", "cut", "word", "entities", "other", "twice", "mark"))
    odd = str(rng.choice((*NUMBERS, *REALS, *WORDS)))
    if how == "number" and numbers:
        found = rng.choice(numbers)
        text = text[: found.start()] + odd + text[found.end() :]
    elif how == "line":
        parts = re.split(r"(?<=[>\n,])", text)
        parts.insert(rng.randrange(len(parts) + 1), parts.pop(rng.randrange(len(parts))) if rng.random() < 0.5 else odd)
        text = "".join(parts)
    elif how == "cut":
        text = text[: rng.randrange(len(text) or 1)]
    elif how == "word":
        words = list(re.finditer(r"\w+", text))
        if words:
            found = rng.choice(words)
            text = text[: found.start()] + odd + text[found.end() :]
    elif how == "entities" and text.startswith("<"):
        bomb = rng.choice((_ENTITIES + "]>", _OUTSIDE))
        text = bomb + re.sub(r'(?<=Name=")[^"]*', "&j;" if bomb != _OUTSIDE else "&a;", text.partition("?>")[2] or text)
    elif how == "other":
        text = rng.choice(
            (
                *("ImageJ=1.53\nimages=1000000000000\nslices=1000000000000\n", "ImageJ=", '{"shape": [1000000, 1000000, 10]}'),
                *('{"shape": [6, 20, 24], "axes": "QQQ"}', '{"shape": "x"}', '{"shape": [-6, -20, 24]}', '{"shape": []}'),
                *('<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"/>', "<OME>", "<OME><Pixels/></OME>"),
                *("ImageJ=1.53\nimages=6\nslices=6\nspacing=nan\nunit=\\u00B5m\n", "ImageJ=1\nimages=x\n", "[1, 2]", "\x00", odd),
            )
        )
    elif how == "twice":
        text *= 2
    elif how == "mark":
        text = rng.choice("\ufeff\x00<&{") + text
    try:
        tifffile.tiffcomment(file, text.encode("utf-8", "replace"))
    except (ValueError, OSError, tifffile.TiffFileError):
        return "not written"
    return f"description, {how}: {text[:80]!r}"
