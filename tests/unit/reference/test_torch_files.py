"""Files of torch.save are read as data: right where they are right, and without running anything where they are not."""

import importlib
import io
import pickle
import random
import struct
import sys
import zipfile

import pytest
import torch
from torch import nn

from reference.files import read_weights
from utils.errors import UserError

LOOK_ALIKES = """
from torch import nn
import torch

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 3, bias=False)
        self.norm = nn.BatchNorm3d(3)
        self.act = nn.Dropout(0.5)
        self.register_buffer("table", torch.arange(4))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Sequential(Block(), Block())
        self.encoder = nn.ModuleList([self.up[0]])
        self.gain = nn.Parameter(torch.randn(()))
        self.tied = self.up[1].conv.weight
        self.register_parameter("nothing", None)
        self.config = {"opt": object(), "names": {"a", "b"}, "callback": len}
"""


@pytest.fixture
def look_alike(tmp_path, monkeypatch):
    """Builds a network of classes that exist nowhere any more once `forget` was called."""
    (tmp_path / "vanished_reference.py").write_text(LOOK_ALIKES)
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module("vanished_reference").Network()

    def forget():
        (tmp_path / "vanished_reference.py").unlink()
        del sys.modules["vanished_reference"]
        importlib.invalidate_caches()
        with pytest.raises(ImportError):
            importlib.import_module("vanished_reference")

    return network, forget


def saved(tmp_path, value, zipped=True):
    path = tmp_path / "value.pth"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def zipped_pickle(path, program, **records):
    """A file as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": program, "byteorder": b"little", "version": b"3\n", **records}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def rewritten(path, old, new):
    """The same file with other bytes in its pickle."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in records if name.endswith("/data.pkl")]
    assert old in records[name]
    records[name] = records[name].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return path


def test_a_whole_module_of_vanished_classes(tmp_path, look_alike):
    network, forget = look_alike
    path, expected = saved(tmp_path, network), network.state_dict()
    forget()
    weights = read_weights(path)
    assert list(weights.tensors) == list(expected)
    assert (
        "up.0.scratch" not in weights.tensors and "up.0.table" in weights.tensors and "encoder.0.conv.weight" in weights.tensors
    )
    for key, value in expected.items():
        assert weights.tensors[key].dtype == value.dtype
        assert torch.equal(weights.tensors[key], value), key
    assert weights.modules[""].kind == "vanished_reference.Network"
    assert weights.modules["up.1.norm"].kind == "torch.nn.modules.batchnorm.BatchNorm3d"
    assert weights.modules["up.1.act"].state["p"] == 0.5
    assert "vanished_reference" not in sys.modules


def test_a_state_dict_of_views_and_every_dtype(tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    state = {
        "transposed": base.mT,
        "part": base[1:, :2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "parameter": nn.Parameter(base.clone()),
        "flags": torch.tensor([True, False, True]),
    }
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    state |= {str(kind): base.to(kind) for kind in kinds}
    found = read_weights(saved(tmp_path, state)).tensors
    assert list(found) == list(state)
    for key, value in state.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape and torch.equal(found[key], value), key
    found["part"].zero_()
    assert torch.equal(found["transposed"], base.mT), "tensors do not share memory after reading"
    assert not found["parameter"].requires_grad


def test_tensors_of_a_gpu(tmp_path):
    state = {"weight": torch.randn(4, 3)}
    path = rewritten(saved(tmp_path, state), b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:1")
    rewritten(path, b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    assert torch.equal(read_weights(path).tensors["weight"], state["weight"])


# Malice --------------------------------------------------------------------------------------------------------------


class Reduced:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Restored:
    """Acts when it gets its state."""

    def __init__(self, marker):
        self.marker = marker

    def __setstate__(self, state):
        Restored.act(state["marker"])

    @staticmethod
    def act(marker):
        open(marker, "w").close()


class Made:
    """Acts when it is made."""

    def __new__(cls, marker):
        open(marker, "w").close()
        return super().__new__(cls)

    def __getnewargs__(self):
        return (self.marker,)


def made(marker):
    value = object.__new__(Made)
    value.marker = marker
    return value


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def payloads(marker):
    command = f"open({marker!r}, 'w').close()"
    nested = io.BytesIO()
    torch.save(Reduced(eval, (command,)), nested, _use_new_zipfile_serialization=False)
    return {
        "reduce, protocol 0": pickle.dumps(Reduced(eval, (command,)), 0),
        "reduce, protocol 4": pickle.dumps(Reduced(exec, (command,)), 4),
        "os.system": pickle.dumps(Reduced(importlib.import_module("os").system, (f": > '{marker}'",)), 2),
        "setstate": pickle.dumps(Restored(marker), 2),
        "new": pickle.dumps(made(marker), 2),
        "inst": b"(" + text(marker) + b"ios\nmkdir\n.",
        "obj": b"(cos\nmkdir\n" + text(marker) + b"o.",
        "attribute of a class": b"cbuiltins\ngetattr\ncos\nmkdir\n" + text("__call__") + b"\x86R" + text(marker) + b"\x85R.",
        "in a container": pickle.dumps({"weight": [Reduced(eval, (command,))]}, 2),
        "items of a class": b"cbuiltins\neval\n" + text(command) + b"\x85R(K\x01K\x02u.",
        "nested file": pickle.dumps(Reduced(pickle.loads, (pickle.dumps(Reduced(eval, (command,))),)), 2),
        "nested torch file": b"ctorch.storage\n_load_from_bytes\n"
        + (b"B" + struct.pack("<I", len(nested.getvalue())) + nested.getvalue())
        + b"\x85R.",
    }


@pytest.mark.parametrize("name", payloads("x"))
@pytest.mark.parametrize("as_module", [False, True], ids=["whole", "weight"])
def test_nothing_is_executed(tmp_path, name, as_module):
    marker = tmp_path / "executed"
    program = payloads(str(marker))[name]
    try:
        pickle.loads(program)
    except (TypeError, AttributeError):
        pass  # what is left after the deed need not be a valid object
    assert marker.exists(), "the payload would not have shown anything"
    marker.rmdir() if marker.is_dir() else marker.unlink()
    if as_module:  # as the argument of the function that makes tensors
        program = b"ctorch._utils\n_rebuild_tensor_v2\n(" + program[:-1] + b"K\x00K\x01\x85K\x01\x85\x89}tR."
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_weights(zipped_pickle(tmp_path / "evil.pth", program))
    legacy = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    (tmp_path / "evil.pth").write_bytes(legacy + program + pickle.dumps([], 2))
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_weights(tmp_path / "evil.pth")
    (tmp_path / "evil.pth").write_bytes(program)
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_weights(tmp_path / "evil.pth")
    assert not marker.exists()


def test_modules_named_in_a_file_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "acts_on_import.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    part = b"cacts_on_import\nThing\n)\x81}" + b"".join(text(part) + b"}" for part in ("_parameters", "_buffers")).join(
        (b"(", b"")
    )
    program = part + text("_modules") + b"}ub."
    weights = read_weights(zipped_pickle(tmp_path / "a.pth", b"\x80\x02" + program))
    assert weights.tensors == {} and weights.modules[""].kind == "acts_on_import.Thing"
    assert "acts_on_import" not in sys.modules


def test_a_storage_cannot_name_another_class(tmp_path):
    path = rewritten(saved(tmp_path, {"w": torch.ones(2)}), b"ctorch\nFloatStorage\n", b"cos\nsystem\n")
    with pytest.raises(UserError, match=r"system.* is blocked"):
        read_weights(path)


def test_nobody_is_told_to_load_a_file_without_protection(tmp_path):
    for number, program in enumerate(payloads("x").values()):
        with pytest.raises(UserError) as refused:
            read_weights(zipped_pickle(tmp_path / f"{number}.pth", program))
        assert "weights_only" not in str(refused.value)


# Damage --------------------------------------------------------------------------------------------------------------


def test_truncated_files(tmp_path):
    path = saved(tmp_path, {"weight": torch.randn(40, 10), "bias": torch.randn(40)})
    content = path.read_bytes()
    for length in (0, 1, 3, 20, 100, len(content) // 2, len(content) - 30, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"value\.pth cannot be read"):
            read_weights(path)


@pytest.mark.parametrize("content", [b"\x93NUMPY", b"hello\n", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 99])
def test_other_files(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(UserError, match="truncated, another kind of file, or older than torch 1"):
        read_weights(tmp_path / "other.pth")


def test_a_file_of_before_torch_1_6_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"value\.pth .*Load and save an older file again"):
        read_weights(saved(tmp_path, {"weight": torch.ones(2)}, zipped=False))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_weights(tmp_path / "none.pth")


def test_damaged_bytes_never_give_anything_but_an_error(tmp_path):
    path = saved(tmp_path, {"weight": torch.randn(2, 3), "bias": nn.Parameter(torch.randn(3))})
    content, draw, errors = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(value, torch.Tensor) for value in read_weights(path).tensors.values())
        except UserError:
            errors += 1
    assert errors > 100


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("K\x02K\x04\x86K\x04K\x01\x86", "not resizable"),
        ("K\x09\x85K\x00\x85", "larger than its storage"),
        ("J\xff\xff\xff\xff\x85K\x01\x85", "overflow"),
        ("K\x02\x85K\x01K\x01\x86", "unequal"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, shape, message):
    reference = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06tQ"
    program = (
        b"}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"K\x00%s\x89}tRs." % shape.encode("latin1")
    )
    path = zipped_pickle(tmp_path / "w.pth", program, **{"data/0": bytes(24)})
    with pytest.raises(UserError, match=message):
        read_weights(path)


def test_what_is_not_weights(tmp_path):
    for value, message in (
        ([1, 2], "it holds a list"),
        ({"epoch": 3}, "epoch is a int"),
        ({1: torch.ones(1)}, "names a part by a int"),
        (torch.ones(3), "it holds a Tensor"),
        (object(), "is a builtins.object, which has not the parts of a module"),
        ({"w": torch.ones(3).to_sparse()}, "w is a Tensor and not a plain tensor"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(saved(tmp_path, value))


def test_a_torchscript_archive_is_refused(tmp_path):
    path = zipped_pickle(tmp_path / "a.pth", b"}.", **{"constants.pkl": b"}."})
    with pytest.raises(UserError, match="torchscript"):
        read_weights(path)


def test_a_module_inside_itself(tmp_path):
    outer = nn.Sequential(nn.Linear(1, 1))
    path = saved(tmp_path, outer)
    outer._modules["again"] = outer
    torch.save(outer, path)
    with pytest.raises(UserError, match="inside itself"):
        read_weights(path)
