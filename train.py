"""Trains one experiment: ``python train.py --jsn NAME --prj NAME [any option]``."""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from experiment.reading import Experiment, read_settings
from experiment.rules import settings_to_train
from experiment.runs import RunFolder, resumed_settings
from experiment.teachers import taught
from training import MODEL_OPTIONS
from utils.command_line import Messages
from utils.errors import UserError, reported
from utils.files import write_json

REPOSITORY = Path(__file__).resolve().parent
log = logging.getLogger("isoscope")


def main(arguments: Sequence[str]) -> int:
    """Settings → data → model → Trainer.fit; torch is loaded after the settings are known to be good.

    Returns:
        The code to leave with: 0 at the end of the training or of ``--max_time``, 130 after Ctrl-C, 75 after another signal.
    """
    experiment = read_settings(arguments, MODEL_OPTIONS, REPOSITORY)
    UserError.shows_traceback = experiment.settings["debug"]
    experiment = taught(experiment, MODEL_OPTIONS)
    experiment.require_data()
    run = RunFolder(experiment.logs / experiment.settings["dataset"] / experiment.settings["prj"])
    if experiment.settings["resume"]:
        settings = resumed_settings(run.stored_settings(MODEL_OPTIONS), experiment.settings, experiment.given)
    else:
        settings = {**settings_to_train(experiment.settings, REPOSITORY), "given": experiment.given}
    return train(experiment, run, settings)


def train(experiment: Experiment, run: RunFolder, settings: dict[str, Any]) -> int:
    """One training from the settings of this start, with the resolved autoencoder, to its last checkpoint.

    What a step is stands in models/base.py, what is learned in models/lateral.py and, of codes, in models/slice2volume.py.
    """
    from pytorch_lightning import seed_everything
    from pytorch_lightning.utilities import rank_zero_only

    from dataloader.data_multi import DataModule
    from training.messages import closing, summary
    from training.record import start_record, warn_of_changed_data
    from training.requirements import predicted, require_room, with_restorer
    from training.trackers import require_trackers
    from training.trainer import build_trainer, explained, model_to_train, require_devices
    from utils.machine import keep_freed_memory

    first = rank_zero_only.rank == 0
    if first:
        run.check(resume=settings["resume"], overwrite=settings["overwrite"])
    require_devices(settings)
    require_trackers(settings)
    checkpoint, damage = run.manifest.to_resume() if settings["resume"] else (None, "")
    if damage and first:
        log.warning("%s; going on from %s", damage, checkpoint)
    keep_freed_memory()
    seed_everything(settings["seed"], verbose=False)
    data = DataModule.from_settings(settings, experiment.data_root)
    data.check()
    record = data.train_set.intensity_record()
    settings = with_restorer(settings, experiment.logs)
    model = model_to_train(settings, experiment.logs, record)
    require_room(model, run.path)
    needs = predicted(settings)
    with run.locked() if first else nullcontext(), explained(settings, run):
        if first:
            run.prepare(resume=settings["resume"], overwrite=settings["overwrite"])
            start = start_record(data.files(), REPOSITORY)
            if checkpoint is not None:
                warn_of_changed_data(run.last_start(), start)
            run.write_settings(settings, start)
            write_json(run.dataset_record, record)
            if model.teacher is not None:
                write_json(run.teacher_record, model.teacher.record)
            run.copy_source(REPOSITORY / "models" / f"{settings['models']}.py")
        trainer = build_trainer(settings, run, data.sample(model.shown_slices), validates=data.val_set is not None)
        if first:
            disc = needs.lines(settings, data.nbytes())[:1] if needs else []
            for line in [*experiment.notes, *disc, *summary(trainer, model, run, data, needs)]:
                log.info(line)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        lines, code = closing(trainer, model, run, data, experiment.given)
        if first:
            log.info("%s", "\n".join(lines))
    return code if first else 0  # Lightning kills the first process where another one leaves with a code before it


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[Messages()])
    with reported(debug="--debug" in sys.argv):
        sys.exit(main(sys.argv[1:]))
