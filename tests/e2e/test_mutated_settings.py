"""Settings that nobody means: each is read or refused with one short message, in no time; a table of outcomes is printed.

``slow``: 2000 mutants. Of every kind a few run by default.
"""

import json
import random
import shutil
from pathlib import Path

import pytest

import train
from experiment.reading import read_settings
from experiment.rules import settings_to_train
from experiment.runs import RunFolder
from models.options import MODEL_OPTIONS
from tests.outcomes import MOST_LETTERS, Outcomes
from utils.errors import UserError

ROOT = Path(train.__file__).parent
DATA = ROOT / "tests" / "data"

NESTED: list = []
for _ in range(400):
    NESTED = [NESTED]
ODD = [
    *(None, True, False, 0, -1, 7, 1.5, 1e-300, 1e300, 10**18, 10**400, -(10**400)),
    *(float("nan"), float("inf"), "", " ", "0", "-7", "1e5", "nan", "true", "../x", "/etc/passwd", "a/b", "a\x00b", "a\nb"),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "é" * 300, "x" * 300, "x" * 10**6, "\ud800", "{}", "[]", "${HOME}", "~"),
    *([], [1], [None], ["x", 1], [[]], NESTED, {}, {"a": 1}, {"models": {}}, [0] * 10**5, {"x" * 300: 1}),
]


def text(content):
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def mutant(rng, block):
    """A block of settings with a few of its keys made odd; and what was done."""
    block = json.loads(json.dumps(block))
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        how = rng.choice(("value", "value", "value", "value", "remove", "unknown", "inside", "whole"))
        holder, key = block, rng.choice(sorted(block) or ["x"])
        if how == "inside" and isinstance(block.get("autoencoder"), dict):
            holder = rng.choice([block["autoencoder"], *(v for v in block["autoencoder"].values() if isinstance(v, dict))])
            key = rng.choice(sorted(holder) or ["x"])
        odd = rng.choice(ODD)
        if how == "remove":
            holder.pop(key, None)
        elif how == "unknown":
            holder[rng.choice((str(odd)[:400], key + "x", key.upper(), "\x1b[2J" + key))] = odd
        elif how == "whole" and rng.random() < 0.2:
            return odd, ["whole"]
        else:
            holder[key] = odd
        done.append(f"{how} {key}")
    return block, done


def experiment(folder, content):
    path = folder / "odd.json"
    path.write_text(text(content), encoding="utf-8")
    places = ["--data_root", str(folder), "--logs", str(folder / "logs"), "--perceptual_weight", "0"]
    lateral = content.get("train") if isinstance(content, dict) else None
    without_codes = isinstance(lateral, dict) and lateral.get("models") in ("lateral", "texture", "fused", "IsoREF")
    places = places[: 4 if without_codes else 6]
    read = read_settings(["--jsn", str(path), "--prj", "p", *places], MODEL_OPTIONS, ROOT)
    settings = settings_to_train(read.settings, ROOT)
    return settings


def run_mutants(tmp_path, count, seed=0):
    rng, outcomes = random.Random(seed), Outcomes()
    experiments = [json.loads(path.read_text())["train"] for path in sorted((ROOT / "env" / "jsn").glob("*.json"))]
    runs = sorted(DATA.glob("*/run"))
    stored = [json.loads((path / "0.json").read_text()) for path in runs]
    for _ in range(count):
        kind = rng.choice(("experiment", "experiment", "run", "lock", "manifest"))
        if kind == "experiment":
            block, done = mutant(rng, rng.choice(experiments))
            outcomes.judge(kind, done, lambda block=block: experiment(tmp_path, {"train": block}))
            continue
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoints").mkdir(parents=True)
        run = RunFolder(folder)
        if kind == "run":
            block, done = mutant(rng, rng.choice(stored))
            (folder / "0.json").write_text(text(block), encoding="utf-8")
            outcomes.judge(kind, done, lambda run=run: run.stored_settings(MODEL_OPTIONS))
        elif kind == "lock":
            block, done = mutant(rng, {"host": "a", "pid": 1, "start": "now"})
            (folder / "run.lock").write_text(text(block), encoding="utf-8")
            outcomes.judge(kind, done, lambda run=run: run.check(resume=False, overwrite=False))
        else:
            block, done = mutant(rng, {"epochs": {"2": {"net_g_model_epoch_2.pth": "0" * 64}}, "last": ["0" * 64]})
            (folder / "checkpoints" / "manifest.json").write_text(text(block), encoding="utf-8")
            outcomes.judge(kind, done, lambda run=run: use(run))
    outcomes.show()


def use(run):
    """All that reads a manifest."""
    run.check(resume=False, overwrite=True)
    for epoch in run.epochs():
        run.manifest.check_set(epoch)
    run.manifest.damaged_checkpoints()
    run.manifest.to_resume()


def test_a_few_mutants(tmp_path):
    run_mutants(tmp_path, 150, seed=1)


@pytest.mark.slow
def test_two_thousand_mutants(tmp_path):
    run_mutants(tmp_path, 2400)


DEEP = "[" * 100_000 + "]" * 100_000
TEXTS = {
    "deep": '{"train": ' + DEEP + "}",
    "deep value": '{"train": {"ngf": ' + DEEP + "}}",
    "duplicates": '{"train": {' + ", ".join(f'"k{n % 20_000}": 1' for n in range(40_000)) + "}}",
    "unknown": '{"train": {' + ", ".join(f'"k{n}": 1' for n in range(20_000)) + "}}",
    "long key": '{"train": {"' + "k" * 10**8 + '": 1}}',
    "no object": "[1, 2]",
    "nothing": "",
    "zeros": "\0" * 1000,
    "half": '{"train": {"ngf": 4',
    "infinite": '{"train": {"lr": 1e999}}',
    "long number": '{"train": {"ngf": ' + "9" * 100_000 + "}}",
}
YAML = {
    "tag": "train: !!python/object/apply:os.system ['echo hacked > hacked']",
    "object": "train: !!python/name:os.system",
    "aliases": "train:\n a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f" {b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
        for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    ),
    "itself": "train: &a\n  ngf: *a\n",
    "deep": "train: " + "[" * 5000 + "]" * 5000,
    "merge": "train:\n  <<: {ngf: 4}\n",
}


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_files_that_are_no_settings(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    outcomes, path = Outcomes(), tmp_path / f"odd{suffix}"
    for name, content in (YAML if suffix == ".yaml" else TEXTS).items():
        path.write_text(content)
        outcomes.judge(name, suffix, lambda: read_settings(["--jsn", str(path), "--prj", "p"], MODEL_OPTIONS, ROOT))
    outcomes.show()
    assert all(outcome == "refused" for _, outcome in outcomes.table)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("key", "value"), [("prj", "x" * 300), ("prj", "a\x00b"), ("dataset", "é" * 120), ("dataset", "a\x1b[2Jb")]
)
def test_names_that_no_folder_can_have(workspace, key, value):
    with pytest.raises(UserError, match="200 bytes at most"):
        workspace.train(*([value] if key == "prj" else ["p", "--dataset", value]))


@pytest.mark.parametrize(
    "change",
    [{"dropout": 7.0}, {"z_channels": 10**9}, {"ch": 10**9}, {"ch_mult": [1, 2, 2, 10**9]}, {"num_res_blocks": 10**9}, {"ch": 0}],
)
def test_networks_that_no_machine_can_build_are_refused(workspace, change):
    (workspace.root / "tiny.yaml").write_text("extends: vqgan\n" + f"ddconfig: {json.dumps(change)}\n")
    with pytest.raises(UserError, match=rf"ddconfig.{next(iter(change))}=.* must be "):
        workspace.train("p")


def test_what_a_terminal_obeys_does_not_reach_it(tmp_path, capsys):
    from utils.errors import printable, reported

    name = "a\x1b]0;evil\x07\x1b[2J\x9b31m\r.tif"
    with pytest.raises(SystemExit), reported(debug=False):
        raise UserError(f"{name}: no such file")
    shown = capsys.readouterr().err
    assert shown == "error: a\\x1b]0;evil\\x07\\x1b[2J\\x9b31m\\r.tif: no such file\n"
    assert printable("two\nlines\tof µm") == "two\nlines\tof µm" and len(str(UserError("x" * 10**7))) < MOST_LETTERS
    with pytest.raises(SystemExit) as end, reported(debug=False):
        (tmp_path / ("x" * 300)).stat()
    assert end.value.code == 2 and "File name too long" in capsys.readouterr().err
