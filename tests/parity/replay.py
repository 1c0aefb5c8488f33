"""Replays the fixtures of the reference in a folder with our code and compares the numbers: benchmarks/parity.py DIR.

A fixture is an .npz that describes itself under ``__meta__``. How each kind is replayed, and at which tolerances, is told beside;
what is not compared, below.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.parity import autoencoder, data, isoref, kl, volume, vq
from tests.parity.comparison import Check, Comparison
from tests.parity.golden import Golden, load
from tests.parity.rounding import other_rounding


class Family(NamedTuple):
    """Fixtures that are replayed alike; both the file's name and its ``kind`` must say so."""

    name: str
    kind: str
    replay: Callable[[Comparison], None]


FAMILIES = (
    Family(r"encoder_doublez_(True|False)", r"Encoder", autoencoder.encoder),
    Family(r"decoder", r"Decoder", autoencoder.decoder),
    Family(r"ldm_blocks", r"AttnBlock/.*", autoencoder.blocks),
    Family(r"vq_legacy_(True|False)", r"VectorQuantizer2", autoencoder.quantiser),
    Family(r"gaussian", r"DiagonalGaussianDistribution", autoencoder.gaussian),
    Family(r"tamingD", r"taming NLayerDiscriminator", autoencoder.slice_discriminator),
    Family(r"ae_losses", r"VQLPIPSWithDiscriminator .*", autoencoder.losses),
    Family(r"lpips_head", r"LPIPS head .*", autoencoder.perceptual),
    Family(r"ed023e_\w+", r"ed023e\.Generator", volume.volume_decoder),
    Family(r"edclean_\w+", r"edclean\.Generator", volume.unet),
    Family(r"patchD_\d+", r"registry patch_\d+", volume.plane_discriminator),
    Family(r"gan_losses", r"GAN losses", volume.adversarial),
    Family(r"patchnce", r"PatchSampleF3D\+PatchNCELoss", volume.contrast),
    Family(r"projection", r"get_projection", volume.projections),
    Family(r"sixway", r"adversarial view permutations", volume.views),
    Family(r"ms_ssim", r"pytorch_msssim\.ms_ssim", volume.structural),
    Family(r"lr_schedules", r"lr at epoch .*", data.learning_rates),
    Family(r"data", r"normalise / tile", data.intensities),
    Family(r"e2e_vq_trajectory\w*", r"\d+ alternating Adam steps .*", vq.trajectory),
    Family(r"e2e_vq_\w+", r"ae0iso0tccutvqq, eval mode.*", vq.evaluation),
    Family(r"e2e_vq_\w+", r"ae0iso0tccutvqq\b.*", vq.training),
    Family(r"e2e_kl_\w+", r"ae0iso0tccut\b.*", kl.training),
    Family(r"e2e_isoref_\w+", r"IsoREF\b.*", isoref.training),
)


class Mended(NamedTuple):
    """Entries that are not compared because we do otherwise on purpose."""

    fixture: str
    entries: str
    reason: str


# The closed list: an entry of a fixture that is neither compared, nor an input, nor named here fails its fixture.
MENDED = (
    Mended(r"ed023e_\w+|edclean_\w+", r"(\w+_)?out1", "the second head, which never trains, is not built"),
    Mended(r"ed023e_\w+", r"x|full_out\d|feat\d", "the encode half, which no model uses, is not built"),
    Mended(r"e2e_vq_trajectory\w*", r"pnorm\.net_g\.(conv7_g|down\d)\..*", "the same two, in the list of final weights"),
    Mended(r"gaussian", r"det_(std|kl)", "a posterior without variance, which no model uses, is not there"),
    Mended(r"projection", r"isoref_up\d+_skip\d+_min", "the minimum that is a maximum"),
    Mended(r"lr_schedules", r"lambda\[303:\]", "a learning rate below 0"),
)


ROUNDINGS = 16  # one that decides otherwise is then missed once in 300 times


@dataclass
class Result:
    """The outcome of one fixture.

    Attributes:
        name: the fixture's.
        checks: what was compared.
        problems: why it cannot pass: nobody knows it, its replay stopped, or entries were left out.
        mended: entries on the closed list.
        roundings: replays with other rounding that it took.
    """

    name: str
    checks: list[Check] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    roundings: int = 0

    @property
    def worst(self) -> Check | None:
        """The check that comes nearest to its tolerance, or is farthest beyond."""
        return max(self.checks, key=lambda check: check.share, default=None)

    @property
    def passed(self) -> bool:
        """Something was compared, everything agrees, nothing was left out."""
        return not self.problems and self.worst is not None and self.worst.share <= 1


def replay(golden: Golden) -> Result:
    """Replays one fixture.

    A maximum of two nearly equal values, an activation near 0, a mean that nearly cancels: what the last bits decide differs
    between processors. So numbers beyond their tolerance are replayed with other rounding, until what that changes explains
    them or :data:`ROUNDINGS` are done. An error is in every replay, so rounding does not explain it.
    """
    result = Result(golden.name)
    kind = str(golden.meta.get("kind", ""))
    family = next((f for f in FAMILIES if re.fullmatch(f.name, golden.name) and re.fullmatch(f.kind, kind)), None)
    if family is None:
        result.problems.append(f"no replay knows a fixture of this name with kind {kind!r}")
        return result
    comparison = Comparison(golden)
    try:
        family.replay(comparison)
    except Exception as error:  # whatever a damaged or unforeseen fixture provokes is this fixture's failure, not the run's
        result.problems.append(f"the replay stopped: {type(error).__name__}: {error}")
    result.checks = comparison.checks
    single = Golden(golden.name, golden.meta, {key: value for key, value in golden.items() if not key.startswith("f64.")})
    for seed in range(ROUNDINGS):
        if result.problems or result.passed:
            break
        again = Comparison(single)
        with other_rounding(seed):
            family.replay(again)
        found = {check.key: check for check in again.checks}
        result.checks = [check.rounded(found.get(check.key, check)) for check in result.checks]
        result.roundings += 1
    for key in sorted(comparison.unaccounted()):
        if any(re.fullmatch(m.fixture, golden.name) and re.fullmatch(m.entries, key) for m in MENDED):
            result.mended.append(key)
        else:
            result.problems.append(f"{key} was not compared")
    return result


def replay_file(path: Path) -> Result:
    """Replays one file; one that cannot be read fails."""
    try:
        golden = load(path)
    except Exception as error:  # a damaged archive can raise almost anything
        return Result(path.stem, problems=[f"cannot be read: {type(error).__name__}: {error}"])
    return replay(golden)


ROW = "{:<24} {:>8} {:<62} {:>9} {:>9}  {}\n"
SHOWN = 5  # problems of a fixture


def describe(result: Result) -> str:
    """The result as a row of the table, with a line for each problem below it."""
    worst, verdict = result.worst, "pass" if result.passed else "FAIL"
    cells = ("-", "-", "-") if worst is None else (worst.key, f"{worst.deviation:.1e}", f"{100 * worst.share:.0f} %")
    verdict += f", rounding measured {result.roundings}x" if result.roundings else ""
    text = ROW.format(result.name, len(result.checks), *cells, verdict)
    beyond = [check for check in result.checks if check.share > 1 and check is not worst]
    lines = result.problems + [f"{check.key} deviates by {check.deviation:.1e}" for check in beyond]
    text += "".join(f"    {line}\n" for line in lines[:SHOWN])
    return text + (f"    and {len(lines) - SHOWN} more\n" if len(lines) > SHOWN else "")


def main(arguments: Sequence[str], write: Callable[[str], object] = sys.stdout.write) -> int:
    """Prints the table row by row; returns the exit status."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        write("usage: python benchmarks/parity.py DIR, a folder of .npz fixtures\n")
        return 2
    paths = sorted(Path(arguments[0]).glob("*.npz"))
    if not paths:
        write(f"{arguments[0]} holds no .npz fixture\n")
        return 2
    write(ROW.format("fixture", "compared", "nearest to, or farthest beyond, its tolerance", "deviation", "of allowed", ""))
    results = []
    for path in paths:
        results.append(replay_file(path))
        write(describe(results[-1]))
    mended = sum(len(result.mended) for result in results)
    write(f"{mended} entries not compared because they are mended: see MENDED in tests/parity/replay.py\n")
    failed = sum(not result.passed for result in results)
    write(f"{len(results) - failed} passed, {failed} failed\n")
    return 1 if failed else 0
