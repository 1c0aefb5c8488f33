"""How many tiles go through a network at once."""

from itertools import cycle
from types import SimpleNamespace

import pytest
import torch

from inference.decoding import block_of, tiles_and_batch
from inference.options import Options
from inference.passes import Tiled
from utils.errors import UserError
from utils.machine import Engine
from utils.recent import Recent


class Toy(Tiled):
    """Numbers for tiles; one that does not fit even alone is made negative."""

    needed = whole = entrance = network = None
    fill = False

    def __init__(self, passed, batch):
        origin = SimpleNamespace(recent=Recent(), intensities=())
        super().__init__(SimpleNamespace(engine=Engine(torch.device("cpu"))), origin, None, batch)
        self.passed = passed

    def given(self, tile):
        return tile

    def see(self, tile, given):
        return given

    def compute(self, tiles, seen):
        return self.passed(seen)

    def _in_parts(self, tile):
        return -tile

    def made_of(self, numbers):
        return list(self._through_network(numbers).values())


def out_of_memory_on_this_machine():
    """What PyTorch says, which is a RuntimeError like any other."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


def test_a_pass_is_halved_until_it_fits_and_stays_so():
    asked = []
    onednn = RuntimeError("could not create a primitive")
    errors = cycle([torch.OutOfMemoryError(), MemoryError(), out_of_memory_on_this_machine(), onednn])

    def network(tiles):
        asked.append(len(tiles))
        if len(tiles) > 2 or 7 in tiles:
            raise next(errors)
        return [10 * tile for tile in tiles]

    toy = Toy(network, 8)
    assert toy.made_of([1, 2, 3, 4, 5, 6]) == [10, 20, 30, 40, 50, 60]
    assert asked == [6, 4, 2, 2, 2] and toy.batch == 2
    assert toy.made_of([7, 8]) == [-7, 80]
    assert asked[5:] == [2, 1, 1] and toy.batch == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), RuntimeError("CUDA error: an illegal memory access")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    def network(tiles):
        raise error

    with pytest.raises(type(error)):
        Toy(network, 2).made_of([0, 1])


@pytest.mark.parametrize(
    ("counts", "batch", "block"),
    [
        ((3, 5, 9), 1, (1, 1, 1)),
        ((3, 5, 9), 8, (1, 1, 8)),
        ((1, 5, 3), 8, (1, 2, 3)),
        ((4, 1, 2), 8, (4, 1, 2)),
        ((2, 2, 2), 99, (2, 2, 2)),
    ],
)
def test_a_block_holds_no_more_tiles_than_a_batch_and_prefers_neighbours_along_x(counts, batch, block):
    assert block_of(counts, batch) == block


@pytest.fixture
def run_on(monkeypatch):
    def run(device, gib, ngf):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30))
        return SimpleNamespace(engine=Engine(torch.device(device), "bf16"), factor=8, settings={"ngf": ngf})

    return run


@pytest.mark.parametrize(
    ("device", "gib", "ngf", "core"),
    [
        ("cpu", 80, 32, 16),
        ("cuda", 4, 32, 16),
        ("cuda", 8, 32, 32),
        ("cuda", 141, 8, 64),
        ("cuda", 141, 32, 32),  # 64 would have tensors of more than 2^31 elements
    ],
)
def test_tiles_are_as_large_as_memory_allows(run_on, device, gib, ngf, core):
    assert tiles_and_batch(run_on(device, gib, ngf), Options(), (10, 500, 500))[0] == core


def test_a_gpu_decodes_as_many_tiles_as_it_has_room_for(run_on):
    def batch(device, gib, codes, asked=None, tile=256, ngf=64):
        return tiles_and_batch(run_on(device, gib, ngf), Options(batch=asked, tile=tile), codes)[1]

    large, thin = (500, 500, 500), (10, 500, 500)
    assert batch("cuda", 8, large) == 1 and batch("cuda", 16, large, ngf=32) == 2
    assert batch("cuda", 141, thin) == 5 and batch("cuda", 16, thin) == 3 and batch("cuda", 141, thin, ngf=32) == 8
    assert batch("cuda", 141, thin, asked=3) == 3 and batch("cuda", 8, large, asked=3) == 1
    assert batch("cpu", 80, large) == 1 and batch("cpu", 80, large, asked=3) == 3 and batch("cpu", 80, large, tile=512) == 1
    assert batch("cuda", 141, large, ngf=32) == 3  # 4 would have tensors of more than 2^31 elements
    with pytest.raises(UserError, match=r"tile of 512 .* --tile 312 is the largest cube for ngf 64"):
        batch("cuda", 141, large, tile=512)
    assert 64 * (312 + 4) ** 3 < 2**31 <= 64 * (320 + 4) ** 3
