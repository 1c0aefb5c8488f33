"""How many tiles go through a network at once."""

from types import SimpleNamespace

import pytest
import torch

from inference.batches import Passes
from inference.fields import _block
from inference.jobs import Options, decoding_batch
from inference.run import Engine


def test_a_pass_is_halved_until_it_fits_and_stays_so():
    asked = []

    def network(tiles):
        asked.append(len(tiles))
        if len(tiles) > 2 or 7 in tiles:
            raise (torch.OutOfMemoryError if len(asked) % 2 else MemoryError)
        return [10 * tile for tile in tiles]

    passes = Passes(8)
    assert passes(network, [1, 2, 3, 4, 5, 6], lambda tile: -tile) == [10, 20, 30, 40, 50, 60]
    assert asked == [6, 4, 2, 2, 2] and passes.size == 2
    assert passes(network, [7, 8], lambda tile: -tile) == [-7, 80]
    assert asked[5:] == [2, 1, 1] and passes.size == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(ZeroDivisionError):
        Passes(2)(lambda tiles: [1 / tile for tile in tiles], [0, 1], lambda tile: 0)


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
    assert _block(counts, batch) == block


def test_a_gpu_decodes_as_many_tiles_as_it_has_room_for(monkeypatch):
    def batch(device, gib, codes, asked=None):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30))
        engine, geometry = Engine(torch.device(device), "bf16"), SimpleNamespace(factor=8)
        run = SimpleNamespace(engine=engine, geometry=geometry, settings={"ngf": 64})
        return decoding_batch(run, Options(batch=asked), (64, 64, 64), codes)

    large, thin = (500, 500, 500), (10, 500, 500)
    assert batch("cuda", 141, large) == 1 and batch("cuda", 8, large) == 1
    assert batch("cuda", 141, thin) == 8 and batch("cuda", 80, thin) == 5
    assert batch("cuda", 80, thin, asked=3) == 3 and batch("cuda", 141, large, asked=3) == 1
    assert batch("cpu", 80, large) == 1 and batch("cpu", 80, large, asked=3) == 3
