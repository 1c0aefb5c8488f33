"""Small CZI, LIF and ND2 files.

CZI comes from Zeiss' own writer; LIF and ND2 are put together byte by byte as their readers expect them (no writer exists for
them), so they show that our code and those packages agree, not that every instrument's file opens.
"""

import struct

import numpy as np

SCENES, TIMES, CHANNELS, SHAPE = 2, 2, 3, (4, 5, 7)
VOXEL_UM = (2.0, 0.25, 0.2)


def values(dtype="uint16"):
    """(scene, time, channel, z, y, x), all different."""
    count = SCENES * TIMES * CHANNELS * int(np.prod(SHAPE))
    return np.arange(count).reshape(SCENES, TIMES, CHANNELS, *SHAPE).astype(dtype)


def write_czi(path, array, voxel_um=VOXEL_UM, split=None):
    """Scenes side by side; with `split` every plane of a scene is a mosaic of two tiles."""
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as file:
        for (s, t, c, z), _ in np.ndenumerate(array[..., 0, 0]):
            plane = np.ascontiguousarray(array[s, t, c, z])[..., None]
            tiles = [(0, plane)] if split is None else [(0, plane[:, :split]), (split, plane[:, split:])]
            for x, tile in tiles:
                at = {"T": t, "C": c, "Z": z}
                file.write(np.ascontiguousarray(tile), plane=at, scene=s, location=(100 * s + x, 10))
        if voxel_um is not None:
            z, y, x = (size * 1e-6 for size in voxel_um)
            file.write_metadata("test", scale_x=x, scale_y=y, scale_z=z)
    return path


def write_lif(path, array, voxel_um=VOXEL_UM):
    """Every scene is an image; in memory x runs fastest, then y, channel, z, time."""
    bits = 8 * array.dtype.itemsize
    _, times, channels, depth, height, width = array.shape
    line, plane = width * array.itemsize, height * width * array.itemsize
    stack = plane * channels * depth
    axes = [(1, width, array.itemsize, 2), (2, height, line, 1), (3, depth, plane * channels, 0), (4, times, stack, None)]
    dimensions = "".join(
        f'<DimensionDescription DimID="{number}" NumberOfElements="{count}" Origin="0" Unit="m" BitInc="0" BytesInc="{step}" '
        f'Length="{0.5 if axis is None else (count - 1) * voxel_um[axis] * 1e-6!r}"/>'
        for number, count, step, axis in axes
    )
    described = "".join(
        f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="{bits}" NameOfMeasuredQuantity="" Min="0" Max="1" Unit="" '
        f'LUTName="Gray" IsLUTInverted="0" BytesInc="{c * plane}" BitInc="0"/>'
        for c in range(channels)
    )
    blocks = [np.ascontiguousarray(scene.swapaxes(1, 2)).tobytes() for scene in array]
    elements = "".join(
        f'<Element Name="Series{s}" UniqueID="{s}"><Data><Image><ImageDescription><Channels>{described}</Channels>'
        f"<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
        f'<Memory Size="{len(block)}" MemoryBlockID="MemBlock_{s}"/></Element>'
        for s, block in enumerate(blocks)
    )
    project = f'<Element Name="project"><Children>{elements}</Children></Element>'
    xml = f'<LMSDataContainerHeader Version="2">{project}</LMSDataContainerHeader>'
    with path.open("wb") as file:
        file.write(struct.pack("<IIBI", 0x70, 2 * len(xml) + 5, 0x2A, len(xml)) + xml.encode("utf-16-le"))
        for s, block in enumerate(blocks):
            name = f"MemBlock_{s}"
            header = struct.pack("<BQBI", 0x2A, len(block), 0x2A, len(name)) + name.encode("utf-16-le")
            file.write(struct.pack("<II", 0x70, len(header)) + header + block)
    return path


def write_nd2(path, array, voxel_um=VOXEL_UM):
    """Version 2.1, whose metadata are XML; loops: time, position, z; channels interleaved within a frame."""
    scenes, times, channels, depth, height, width = array.shape
    chunks, place = [], 0

    def add(name, data):
        nonlocal place
        reserve = 4072 if name.startswith(b"ImageDataSeq") else len(name) + 20
        chunk = struct.pack("<IIQ", 0x0ABECEDA, reserve, len(data)) + name.ljust(reserve, b"\0") + data
        chunks.append((name, place, chunk))
        place += len(chunk)

    signature = b"ND2 FILE SIGNATURE CHUNK NAME01!"
    head = struct.pack("<IIQ", 0x0ABECEDA, 32, 64) + signature + b"Ver2.1".ljust(64, b"\0")
    chunks.append((None, 0, head))
    place = len(head)
    number = {
        "uiWidth": width,
        "uiHeight": height,
        "uiWidthBytes": width * channels * array.itemsize,
        "uiComp": channels,
        "uiBpcInMemory": 8 * array.itemsize,
        "uiBpcSignificant": 8 * array.itemsize,
        "eCompression": 2,
        "uiSequenceCount": scenes * times * depth,
    }
    add(b"ImageAttributes!", _variant(number))
    z_loop = {"eType": 4, "uLoopPars": {"uiCount": depth, "dZStep": voxel_um[0]}}
    points = {f"i{n:010}": {"dPosX": float(n)} for n in range(scenes)}
    places = {"eType": 2, "uLoopPars": {"uiCount": scenes, "Points": points}, "ppNextLevelEx": {"i0000000000": z_loop}}
    loops = {
        "eType": 1,
        "uLoopPars": {"uiCount": times, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0},
        "ppNextLevelEx": {"i0000000000": places},
    }
    add(b"ImageMetadata!", _variant(loops))
    plane = {"uiCompCount": 1, "sDescription": "c", "pFluorescentProbe": {"m_sName": "dye"}}
    planes = {f"i{c:010}": plane for c in range(channels)}
    calibrated = {"dCalibration": voxel_um[1], "bCalibrated": True, "sPicturePlanes": {"uiCount": channels, "sPlane": planes}}
    add(b"ImageMetadataSeq|0!", _variant(calibrated))
    add(b"ImageTextInfo!", _variant({"TextInfoItem_5": ""}))
    frames = array.transpose(1, 0, 3, 4, 5, 2).reshape(-1, height, width, channels)
    for n, frame in enumerate(frames):
        add(f"ImageDataSeq|{n}!".encode(), struct.pack("<d", 0.0) + np.ascontiguousarray(frame).tobytes())
    start = place
    index = b"".join(name + struct.pack("<QQ", at, len(chunk)) for name, at, chunk in chunks if name)
    index += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", start)
    add(b"ND2 FILEMAP SIGNATURE NAME 0001!", index)
    path.write_bytes(b"".join(chunk for _, _, chunk in chunks))
    return path


def _variant(content):
    return f'<variant version="1.0"><no_name>{_nodes(content)}</no_name></variant>'.encode()


def _nodes(content):
    kinds = {bool: "bool", int: "lx_uint32", float: "double", str: "CLxStringW"}
    nodes = []
    for key, value in content.items():
        deeper = isinstance(value, dict)
        nodes.append(f"<{key}>{_nodes(value)}</{key}>" if deeper else f'<{key} runtype="{kinds[type(value)]}" value="{value}"/>')
    return "".join(nodes)
