"""The trainer follows its settings."""

import pytest
from pytorch_lightning.strategies import DDPStrategy

from experiment.reading import default_settings
from experiment.runs import RunFolder
from models.options import MODEL_OPTIONS
from training.trainer import build_trainer


@pytest.mark.parametrize(("strategy", "parallel"), [("auto", False), ("ddp", True)])
def test_one_process_is_distributed_only_where_asked(tmp_path, strategy, parallel):
    settings = default_settings(MODEL_OPTIONS, "ae0iso0tccutvqq", strategy=strategy, devices="1")
    trainer = build_trainer(
        settings, RunFolder(tmp_path), {"img": [], "filenames": "a", "labels": 0, "truth": []}, validates=False
    )
    assert isinstance(trainer.strategy, DDPStrategy) == parallel
