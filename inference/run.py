"""A training's folder, opened for use: the model with its weights, and what it knows about its data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codes.record import OF_DECODING
from codes.store import CodeStore
from experiment.runs import RunFolder, program_version
from experiment.teachers import PROJECTIONS
from models.base import BaseModel
from models.build import build_model, load_components, make_fast
from models.options import MODEL_OPTIONS
from utils.errors import UserError
from utils.files import read_mapping
from utils.geometry import LATENT_STRIDE, Geometry, block_side
from utils.machine import Engine

log = logging.getLogger("isoscope")


@dataclass(frozen=True)
class Run:
    """A trained model, ready to be applied.

    Attributes:
        path: the run's folder.
        name: dataset/prj@epoch, for messages and metadata; where it was exported, of the training it is from.
        epoch: completed epochs of the weights.
        ema: whether they are averaged weights.
        settings: of the training, complete.
        record: dataset.json of the run (dataloader's intensity_record), or None where it is not there.
        model: in evaluation mode on the engine's device, prepared for speed; for IsoREF only ``net_g``.
        engine: where it is computed.
        weight_hash: SHA-256 of the generator-side weights, by name and bytes.
        centre: isotropic plane (fractional) of the middle of encoded slice 0; of an interpolated volume the middle of its planes.
    """

    path: Path
    name: str
    epoch: int
    ema: bool
    settings: Mapping[str, Any]
    record: Mapping[str, Any] | None
    model: Any
    engine: Engine
    weight_hash: str
    centre: float = field(init=False)

    def __post_init__(self) -> None:
        how = "mean" if self.settings["models"] == "IsoREF" else self.projection
        object.__setattr__(self, "centre", getattr(self.model, "first_plane", self.geometry.plane_of_slice(0, how)))

    @classmethod
    def load(
        cls,
        path: Path | str,
        epoch: int | None = None,
        engine: Engine | None = None,
        weights: str | None = None,
        *,
        as_trained: bool = False,
    ) -> Run:
        """The run of a folder, also of an exported one; the latest epoch by default, averaged weights where there are any.

        Args:
            weights: ``ema``, averaged ones, or ``raw``, those of the last step.
            as_trained: leave the networks as they were trained, instead of preparing them for speed.

        Raises:
            UserError: not a run, no such epoch, no such weights, or a component is missing or does not fit.
        """
        if weights not in (None, "ema", "raw"):
            raise UserError(f"--weights {weights} is unknown; choose ema (averaged) or raw (of the last step)")
        folder = RunFolder(Path(path))
        settings = folder.stored_settings(MODEL_OPTIONS)
        engine = engine or Engine.choose()
        exported = folder.exported()
        model = build_model(settings, for_training=False)
        for part in model.G.keys() - exported.get("components", model.G.keys()):
            del model.G[part]
        latest, epoch = epoch is None, load_components(model, folder, epoch, ema=weights != "raw")
        if latest and epoch < settings["n_epochs"]:
            log.info("%s: weights after %d of the %d epochs of its training", path, epoch, settings["n_epochs"])
        digest = exported.get("weights") or weight_hash(model)
        (model if as_trained else make_fast(model)).to(engine.device)
        if engine.compile and "net_g" in model.G:
            model.G["net_g"].compile()
        record = read_mapping(folder.dataset_record, "record of the training data") if folder.dataset_record.is_file() else None
        if record is not None and not {"nm", "directions"} <= record.keys():
            raise UserError(f"{folder.dataset_record} does not say how the training normalised; copy the run again")
        averaged = any(folder.component(name, epoch, ema=True).is_file() for name in model.G)
        ema = exported.get("ema", averaged and weights != "raw")
        if weights is not None and ema != (weights == "ema"):
            there = "averaged weights (ema)" if ema else "raw weights"
            raise UserError(f"--weights {weights}: {path} holds {there} alone; leave --weights out")
        where = folder.path.resolve()
        name = exported.get("run", f"{where.parent.name}/{where.name}@{epoch}{' (EMA)' if ema else ''}")
        return cls(folder.path, name, epoch, ema, settings, record, model, engine, digest)

    @classmethod
    def of_store(
        cls,
        store: CodeStore,
        run: Run | Path | str | None = None,
        epoch: int | None = None,
        engine: Engine | None = None,
        weights: str | None = None,
        **how: bool,
    ) -> Run:
        """The run that made a store: by default the folder, epoch and weights that it names; other arguments as of :meth:`load`.

        Raises:
            UserError: it is not there, or its weights are not those that made the codes.
        """
        about = store.about
        if missing := [key for key in OF_DECODING if key not in about]:
            raise UserError(
                f"{store.path} does not say its {', '.join(missing)}, without which it is not decoded; encode it again"
            )
        if run is None:
            run = made_by = (store.path / about["run_path"]).resolve()  # of an exported store the folder around it
            epoch = about["epoch"] if epoch is None else epoch
            if not made_by.is_dir():
                raise UserError(f"{store.path} was made by {run}, which is not there; name the run with --run")
        run = run if isinstance(run, Run) else cls.load(run, epoch, engine, weights or ("ema" if about["ema"] else "raw"), **how)
        if about["weights"] != run.weight_hash:
            raise UserError(
                f"{store.path} was encoded with other weights ({about['run']}, {about['weights'][:12]}…) than {run.name} "
                f"({run.weight_hash[:12]}…); name the right run and epoch with --run and --epoch"
            )
        made = run.codebook()
        said = tuple(about.get(key) for key in ("of_levels" if "of_levels" in about else "levels", "codes", "dimensions"))
        if made is not None and made.shape != said:
            raise UserError(
                f"{store.path} says {said} levels, codes and numbers of each, but the codebook of {run.name} has {made.shape}; "
                "copy or encode it again"
            )
        return run

    @property
    def geometry(self) -> Geometry:
        """How slices and isotropic planes correspond."""
        return self.model.geometry

    @property
    def factor(self) -> int:
        """Isotropic planes per slice that it reads."""
        return self.geometry.factor * self.spread

    @property
    def spread(self) -> int:
        """Slices that it interpolates between the codes of those that it reads (``spread codes``), each included; else 1."""
        between = getattr(self.model, "between", None)
        return int(between.usp) if between else 1

    @property
    def restores(self) -> bool:
        """IsoREF, lateral, texture and fused: volume to volume, no codes."""
        return "decoder" not in self.model.G

    @property
    def decodes_only(self) -> bool:
        """Exported with its codes, without the encoder."""
        return "encoder" not in self.model.G and not self.restores

    @property
    def makes_volumes(self) -> bool:
        """Trained with a volume decoder, or a restoration; an autoencoder of slices is neither."""
        return "net_g" in self.model.G

    def require_volume_decoder(self) -> None:
        """Refuses, as a UserError, what needs an isotropic volume of a run that has been trained without one."""
        if not self.makes_volumes:
            raise UserError(
                f"{self.name} is an autoencoder of slices, trained without a volume decoder (adv 0, lamb 0): decode --grid raw "
                f"gives its slices; for an isotropic volume train one from it with --init {self.path} and a --lamb"
            )

    @property
    def stride(self) -> int:
        """Pixels along a side of the block that a code stands for."""
        autoencoder = self.settings["autoencoder"]
        return block_side(autoencoder["ddconfig"]["ch_mult"]) if autoencoder else LATENT_STRIDE

    @property
    def has_texture(self) -> bool:
        """Whether it adds texture to its lateral run's volume; of fused runs, those trained with an adversary do."""
        return self.settings["models"] == "texture" or (self.settings["models"] == "fused" and bool(self.settings["adv"]))

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return 2 if self.settings.get("tc") else 1

    @property
    def directions(self) -> list[str]:
        """The data's folders: the input first."""
        return str(self.settings["direction"]).split("_")

    @property
    def translates(self) -> bool:
        """Paired translation: the output shows what lies in another folder than the input."""
        return len(self.directions) > 1 and not self.settings.get("tc")

    @property
    def projection(self) -> str:
        """How slabs of the output become slices, as ``l1how`` says it."""
        if "axial_sampling" in self.settings:
            return PROJECTIONS[self.settings["axial_sampling"]]
        return str(self.settings["l1how"])

    @property
    def axial_taps(self) -> list[float]:
        """The profile along z that the training undid, on the isotropic planes; one tap where there is none."""
        return list(self.model.sections.plane_taps) if "axial_sampling" in self.settings else [1.0]

    def codebook(self) -> np.ndarray | None:
        """(levels, codes, dimensions) float32; None for a model without one."""
        if "quantize" not in self.model.G:
            return None
        return np.stack([book.weight.detach().float().cpu().numpy() for book in self.model.G["quantize"].codebooks])

    @property
    def record_of_outputs(self) -> dict[str, Any]:
        """What everything that it makes records about it."""
        return {
            "run": self.name,
            "epoch": self.epoch,
            "ema": self.ema,
            "weights": self.weight_hash,
            "model": self.settings["models"],
            "factor": self.factor,
            "l1how": self.projection,
            "axial_taps": self.axial_taps,
            "isoscope_version": program_version(),
        }


def weight_hash(model: BaseModel) -> str:
    """SHA-256 of the generator-side state: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, part in sorted(model.G.items()):
        for key, value in sorted(part.state_dict().items()):
            array = value.detach().cpu().contiguous().numpy()
            digest.update(f"{name}.{key} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
