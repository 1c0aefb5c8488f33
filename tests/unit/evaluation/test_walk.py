"""evaluate.py can be read: few functions of other files stand before the first block of voxels, most files are entered once."""

from collections import Counter

import evaluate
from tests.walk import walk


def test_few_steps_to_the_first_block(folder, tmp_path):
    files = ["--reconstruction", folder / "recon.tif", "--truth", folder / "truth.tif", "--input", folder / "thin.tif"]
    arguments = [*files, "--input-position", "pick", "--factor", "8", "--output", tmp_path / "out"]
    steps = walk(lambda: evaluate.main(list(map(str, arguments))), "Candidate.block")
    assert len(steps) <= 18, steps
    files = [step.split()[0] for step in steps]
    entered = Counter(file for k, file in enumerate(files) if k == 0 or file != files[k - 1])
    assert not {file: count for file, count in entered.items() if count > 2 and not file.startswith("volumes/")}, steps
