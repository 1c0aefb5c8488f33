"""A finished run of the lateral model as the guide of another model's volume.

The guided model sees the slices of a crop; so does the teacher, and what it makes of them is the volume that is closest on
average. It computes no gradient, is in no checkpoint and not needed in use: it only shapes the loss (DECISIONS, section 8).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiment.runs import RunFolder
from experiment.teachers import OPERATORS, PROJECTIONS, TAKEN, stored_lateral
from models.build import build_model, load_components, make_fast
from models.options import MODEL_OPTIONS
from models.sampling import Sampling, shifted
from networks.sections import Sections
from networks.sides import mean_of_sides
from networks.views import X_AXIS, Y_AXIS, to_slices, to_volume, xz_planes, xz_volume, yz_planes, yz_volume
from utils.checksums import sha256
from utils.errors import UserError
from utils.files import read_mapping
from utils.frozen import Frozen


class Teacher(Frozen):
    """The lateral model of a run, in evaluation mode, with its averaged weights where there are any.

    Its planes are those of the guided model: where their grids are half a plane apart, they are resampled.

    Args:
        folder: of the teacher's run.
        settings: of the training that it guides, complete.

    Attributes:
        record: the run's folder, epoch, weights file and its SHA-256, for the records of the training.
        sections: the axial operator that the teacher has learnt to undo.

    Raises:
        UserError: no run, not of the lateral model, damaged; or of another factor, operator or channel count than the training.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, Any]) -> None:
        run, where = RunFolder(Path(folder)), f"teacher={folder}"
        stored = stored_lateral(folder, MODEL_OPTIONS)
        model: Any = build_model(stored, for_training=False)
        sampling = Sampling.from_settings(settings, where)
        _check(where, stored, model.sections, settings, sampling)
        epoch = load_components(model, run, ema=True)
        super().__init__(make_fast(model))
        self._folder, self._stored, self.sampling = run, stored, sampling
        weights = next(path for ema in (True, False) if (path := run.component("net_g", epoch, ema)).is_file())
        self.record = {"run": str(run.path.absolute()), "epoch": epoch, "weights": weights.name, "sha256": sha256(weights)}
        self.sections: Sections = model.sections

    def check_intensities(self, record: Mapping[str, Any]) -> None:
        """That the teacher knows the grey values of a training.

        Args:
            record: the training's dataset.json (dataloader's intensity_record).

        Raises:
            UserError: another nm, nm_clip or transform of prepare.py.
        """
        path = self._folder.dataset_record
        if not path.is_file():
            raise UserError(f"teacher={self._folder.path} has no dataset.json, so its grey values are not known; copy it again")
        known = read_mapping(path, "record of the training data")
        count = self._stored["input_nc"]
        mine, theirs = (_transforms(found, count) for found in (known, record))
        for (name, value), (_, other) in zip(mine, theirs, strict=True):
            if value != other:
                remedy = f"give --nm {value} where the data are the same, else " if name == "nm" else ""
                raise UserError(
                    f"teacher={self._folder.path} was trained with {name}={value}, this training has {other}; grey values would "
                    f"mean something else to it: {remedy}train a teacher on this data"
                )

    def check_same(self, record: Mapping[str, Any]) -> None:
        """That it is the teacher of a record; a UserError, where its weights are others."""
        if record["sha256"] != self.record["sha256"]:
            raise UserError(
                f"teacher={self._folder.path} has changed since this training began: {self.record['weights']} has the SHA-256 "
                f"{self.record['sha256']}, that of {record['weights']} was {record['sha256']}; restore it, or start a new --prj"
            )

    def views(self, slices: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """What XZ and what YZ planes give, on the grid of the guided model.

        Args:
            slices: encoded slices of B crops (B·n, C, X, Y) in [-1, 1], n a multiple of usp.
            batch: B.

        Returns:
            Two volumes (B, C, X, Y, n·planes per slice), without gradient.

        Raises:
            ValueError: n is no multiple of usp.
        """
        with torch.no_grad():
            sections = self.sampling.sections(to_volume(slices, batch))
            across_y, across_x = self.network.views(to_slices(sections), batch)
            return shifted(across_y, self._offset), shifted(across_x, self._offset)

    @property
    def _offset(self) -> float:
        """Planes of the teacher that those of the guided model lie behind."""
        return self.sections.centre - self.sampling.centre

    def forward(self, slices: Tensor, batch: int) -> Tensor:
        """The volume that the teacher itself makes of the slices, (B, C, X, Y, n·planes per slice), float32, without gradient."""
        return mean_of_sides(*self.views(slices, batch))

    def error(self, volume: Tensor, slices: Tensor, planes: int = 0) -> Tensor:
        """Mean absolute difference of a volume from the teacher's.

        Args:
            volume: (B, C, X, Y, n·planes per slice).
            slices: what it was made of, (B·n, C, X, Y).
            planes: with 0 the volume is compared with the teacher's; else so many planes, drawn from torch's global generator,
                with what each view gives: on average over steps they draw it to between the two, at less cost. The weights by
                frequency (networks.sides) need whole neighbourhoods of planes, and are left out there.
        """
        batch = len(volume)
        if not 0 < planes < min(volume.shape[X_AXIS : Y_AXIS + 1]):
            return functional.l1_loss(volume, self(slices, batch))
        sections = self.sampling.sections(to_volume(slices, batch))
        errors = []
        for axis, seen, stacked in ((Y_AXIS, xz_planes, xz_volume), (X_AXIS, yz_planes, yz_volume)):
            some = torch.randperm(volume.shape[axis])[:planes].to(volume.device, non_blocking=True)
            with torch.no_grad():
                made = shifted(stacked(self.network.restorer(seen(sections.index_select(axis, some))), batch), self._offset)
            errors.append(functional.l1_loss(volume.index_select(axis, some), made))
        return torch.stack(errors).mean()


def _check(where: str, stored: Mapping[str, Any], sections: Sections, settings: Mapping[str, Any], sampling: Sampling) -> None:
    """That both make the same planes of the same sections."""
    if "axial_sampling" in settings:  # it takes the very network
        for name in TAKEN:
            if stored[name] != settings[name]:
                raise UserError(
                    f"{where} was trained with {name}={stored[name]}, this training has {settings[name]}; give --{name} "
                    f"{stored[name]} (in a file {json.dumps(stored[name])}), or a teacher trained otherwise"
                )
        return
    planes, usp = sampling.planes, sampling.usp
    if sections.planes != planes:
        raise UserError(
            f"{where} makes {sections.planes} planes of a section (uprate={stored['uprate']:g}), this training "
            f"{planes:g} ({planes / usp:g} of a slice, usp={usp:g}); train a teacher with --uprate {planes:g}"
        )
    operator = OPERATORS.get(settings["l1how"])
    if operator != sections.sampling:
        raise UserError(
            f"{where} takes a section for the {sections.sampling} of its planes (axial_sampling), this training by "
            f"l1how={settings['l1how']} for another; give --l1how {PROJECTIONS[sections.sampling]}"
            + (f", or a teacher trained with --axial_sampling {operator}" if operator else "")
        )
    if stored["input_nc"] != settings["output_nc"]:
        raise UserError(
            f"{where} has {stored['input_nc']} channel(s), this training {settings['output_nc']}; train a teacher on the "
            "same channels (--tc, --input_nc, --output_nc)"
        )


def _transforms(record: Mapping[str, Any], channels: int) -> list[tuple[str, Any]]:
    """What makes a file's values those of the network, of the last folders (those that the volume shows)."""
    names = list(record["directions"])[-channels:]
    prepared = (record.get("dataset") or {}).get("directions", {})
    found = [prepared.get(name, {}).get("transform") for name in names]
    return [("nm", record["nm"]), ("nm_clip", record.get("nm_clip")), ("the transform of prepare.py", found)]
