"""In-plane orientations: a model that sees turned slices gives what turning the volume by hand gives."""

from dataclasses import replace

import numpy as np
import pytest
from infer_commands import command, read
from infer_runs import grey, make_run, whole

from inference import Options, Run, enhance
from inference.decoding import isotropic_field
from inference.encoding import slices_or_codes
from inference.source import Source
from inference.uncertainty import Turned, spread_field
from volumes.volume import ArrayVolume
from writing.write import write_tiff

KINDS = {
    "codes": {},
    "local codes": {"ldmyaml": "vqlocal"},
    "features": {"model": "ae0iso0tccut", "hbranch": "mid"},
    "posterior means": {"model": "ae0iso0tccut", "hbranch": "z"},
    "restoration": {"model": "IsoREF", "cropz": 4, "nocyc": True},
    "planes from the side": {"model": "lateral", "cropz": 2, "uprate": 8.0, "blocks": 1},
    "texture": {"model": "texture", "cropz": 2, "uprate": 8.0, "blocks": 1, "grain_width": 4, "init": "RUN"},
}
SHAPE = (2, 24, 40)


def turned(values, turn, back=False):
    """By hand, (Z, Y, X)."""
    if back and turn & 4:
        values = values.swapaxes(1, 2)
    values = values[:, :: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
    return values.swapaxes(1, 2) if turn & 4 and not back else values


@pytest.fixture(params=KINDS)
def run(request, tmp_path):
    kind = {"model": "ae0iso0tccutvqq", "cropz": 8, **KINDS[request.param]}
    dropout = {} if kind["model"] in ("lateral", "texture") else {"mc": False}
    return Run.load(make_run(tmp_path / "D" / "P", cropsize=64, **dropout, **kind))


def field_of(run, values, **options):
    given = Options(**options)
    return isotropic_field(run, slices_or_codes(run, Source(run, values, given), given), np.dtype(np.float32), given)


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_model_is_the_model_on_the_turned_volume(run, turn):
    values = grey(SHAPE)
    found = field_of(replace(run, model=Turned(run.model, turn)), values)
    by_hand = field_of(run, np.ascontiguousarray(turned(values, turn)))
    expected = turned(by_hand.render(whole(by_hand))[0], turn, back=True)
    made = found.render(whole(found))[0]
    assert made.std() > 1
    np.testing.assert_allclose(made, expected, atol=2e-2)


def test_tiles_batches_and_regions_of_the_spread(tmp_path):
    run = Run.load(make_run(tmp_path / "D" / "P", mc=False))
    volume = ArrayVolume(grey((2, 40, 60)))

    def spread(**options):
        given = Options(tile=16, **options)
        source = Source(run, volume, given)
        field = spread_field(run, source, given, 5)
        assert field.over == "in-plane orientations"
        return field

    everything = spread().render(whole(spread()))
    region = (slice(2, 13), slice(9, 33), slice(17, 58))
    np.testing.assert_array_equal(spread(region=region).render(region), everything[(slice(None), *region)])
    batched = spread(batch=3)
    assert batched.block == (1, 1, 3)
    np.testing.assert_allclose(batched.render(whole(batched)), everything, atol=2e-2)
    turned_runs = [replace(run, model=Turned(run.model, turn)) for turn in range(5)]
    outputs = [enhance(one, volume, Options(dtype="float32")) for one in turned_runs]
    np.testing.assert_allclose(everything[0], np.std(outputs, axis=0, ddof=1), atol=5e-2)


def test_through_the_command(tmp_path):
    run = make_run(tmp_path / "D" / "P", mc=False)
    write_tiff(tmp_path / "in.tif", grey((2, 16, 40)))
    command("enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / "o.ome.zarr", "--uncertainty", "8")
    spread = read(tmp_path / "o_uncertainty.ome.zarr")
    assert spread.shape == (16, 16, 40) and spread.std() > 0.1
