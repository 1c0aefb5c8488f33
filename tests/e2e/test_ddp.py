"""Two CPU processes train like one with the doubled batch, and keep one codebook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from infer_commands import quiet
from infer_runs import ROOT

from tests.e2e import ddp_worker
from tests.forks import together

WORKER = Path(__file__).with_name("ddp_worker.py")
TWO = ("--devices", 2, "--strategy", "ddp", "--batch_size", 1)


def states(workspace, prj, optimizer, *options, ranks=1):
    out = str(workspace.root / prj)
    codes = together(ddp_worker.forked, out, optimizer, workspace.arguments(prj, *options), world=ranks)
    assert codes == [0] * ranks, "".join(Path(f"{out}_{rank}.txt").read_text()[-3000:] for rank in range(ranks))
    return [torch.load(f"{out}_{rank}.pt", weights_only=True) for rank in range(ranks)]


def test_two_processes_equal_one_with_the_doubled_batch(workspace):
    """Nothing depends on the other samples of a batch here, and SGD does not amplify rounding."""
    yaml = workspace.root / "tiny.yaml"
    yaml.write_text(yaml.read_text() + "codebook: {initialise: uniform, revive_after: 0}\n")
    options = ("--norm", "none", "--no-mc", "--lr", 0.01, "--accumulate_grad_batches", 2)
    options += ("--crops_per_volume", 4, "--neighbours", 2)
    (single,) = states(workspace, "single", "sgd", *options, "--batch_size", 2)
    first, second = states(workspace, "double", "sgd", *options, *TWO, ranks=2)
    (untrained,) = states(workspace, "untrained", "sgd", *options, "--lr", 1e-12, "--batch_size", 2)
    moved = 0
    for key, value in single.items():
        if "running" in key or "num_batches" in key:
            continue
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-5)
        moved += not torch.allclose(value, untrained[key], rtol=1e-3, atol=1e-4)
    assert moved > 50


def test_codebook_is_one_on_all_ranks(workspace):
    """Of two levels; one level takes the same way."""
    yaml = workspace.root / "tiny.yaml"
    yaml.write_text(yaml.read_text() + "codebook: {revive_after: 2, levels: 2}\n")
    first, second = states(workspace, "double", "adam", *TWO, "--crops_per_volume", 3, ranks=2)
    assert first["revival.initialised"] and len(first["revival.unused_steps"]) == 2
    for key, value in first.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, second[key]), key


def test_all_processes_say_why_they_stop_where_one_has_a_nan(workspace):
    """Started by Lightning, as a user has it who asks for two devices."""
    command = [sys.executable, str(WORKER), str(workspace.root / "broken"), "nan", *workspace.arguments("broken", *TWO)]
    done = subprocess.run(command, env=quiet(), capture_output=True, text=True, timeout=900)
    assert done.returncode != 0
    assert done.stderr.count("UserError: the loss became NaN or infinite at step 0") == 2, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_that_a_launcher_starts_train_alike(workspace, launcher):
    """The lines of docs/volumes.md; srun by the variables that it gives its tasks."""

    def words(prj):
        return [str(ROOT / "train.py"), *workspace.arguments(prj, *TWO)]

    subprocess.run([sys.executable, *words("own")], env=quiet(), check=True, timeout=600)
    if launcher == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--"]
        subprocess.run([*torchrun, *words("launched")], env=quiet(), check=True, timeout=600)
    else:
        step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
        step |= {"SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost", "SLURM_NODEID": "0", **quiet()}
        tasks = [
            subprocess.Popen([sys.executable, *words("launched")], env={**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
            for rank in "01"
        ]
        assert [task.wait(timeout=600) for task in tasks] == [0, 0]
    own, launched = (torch.load(workspace.run(prj).last, weights_only=True) for prj in ("own", "launched"))
    assert own["global_step"] == launched["global_step"] > 0
    assert all(torch.equal(value, launched["state_dict"][key]) for key, value in own["state_dict"].items())
