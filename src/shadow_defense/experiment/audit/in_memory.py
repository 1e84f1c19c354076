"""An audit as Python programs ask for it: any module, its tensors and images in memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shadow_defense.config import RunConfig
from shadow_defense.data.dataset import ImageSet
from shadow_defense.data.settings import DataSettings
from shadow_defense.errors import ConfigError, ModelError, ShadowDefenseError
from shadow_defense.experiment.audit.case import Given
from shadow_defense.experiment.audit.images import Images, without_own
from shadow_defense.experiment.audit.of_model import Pictures, case_of_model
from shadow_defense.experiment.audit.reading import TensorSource
from shadow_defense.experiment.audit.running import PAGE, audited, write_audit
from shadow_defense.experiment.protecting.given_images import read_given
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import write_text
from shadow_defense.models.functional import training_mode
from shadow_defense.models.named_state import plain_module
from shadow_defense.models.settings import LossName
from shadow_defense.placement import device_of
from shadow_defense.report.numbers import numbers
from shadow_defense.report.pages.audit import render_audit
from shadow_defense.report.records.audit import AuditPictures, AuditRecord, Status

State = nn.Module | Mapping[str, Tensor] | str | Path
"""A model's tensors: of a module, a state dict, or a file as the command takes it."""

IN_PYTHON = {"truth": "images", "global": "before", "template": "public"}
"""What a flag of the command is called here, where it is not its own name."""


@dataclass(frozen=True, repr=False)
class Audit:
    """What was rebuilt of one update, and what that means.

    Attributes:
        record: all of it, as ``audit.json`` holds it.
        pictures: the reconstructions by attack, the client's own images and the mean image, in [0, 1].
    """

    record: AuditRecord
    pictures: AuditPictures

    @property
    def verdict(self) -> tuple[str, ...]:
        """In words, a sentence an attack."""
        return self.record.verdict

    @property
    def status(self) -> Status:
        """Red, amber, green or unknown (docs/glossary.md)."""
        return self.record.assessment.status

    def to_frame(self) -> Any:
        """A pandas data frame, a row for each reconstruction. Raises :class:`ConfigError` without pandas."""
        return numbers(self.record).to_frame()

    def save_page(self, path: str | Path = PAGE) -> Path:
        """Write the page, one file that loads nothing; it is as private as the images."""
        write_text(Path(path), render_audit(self.record, self.pictures))
        return Path(path)

    def save(self, folder: str | Path) -> None:
        """Write ``audit.json`` and ``audit.html`` into a folder."""
        write_audit(Path(folder), self.record, self.pictures)

    def __repr__(self) -> str:
        return f"Audit({self.status}: {' '.join((self.record.assessment.headline, *self.verdict))})"


def audit(
    model: nn.Module,
    before: State,
    update: ModelUpdate | Mapping[str, Tensor] | str | Path | None = None,
    *,
    after: State | None = None,
    images: Any = None,
    labels: Sequence[int] | Tensor | None = None,
    public: Any = None,
    public_labels: Sequence[int] | Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    samples: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimiser: OptimiserName | None = None,
    loss: LossName | None = None,
    attacks: Sequence[str] = ("inverting-gradients",),
    threat_model: str | None = None,
    iterations: int | None = None,
    seed: int = 0,
) -> Audit:
    """Rebuild images from one client's update of any image classifier, and say what leaks and why.

    What is not given, the attacker does not know, but for ``images``, which no attacker sees: they score what was
    rebuilt. ``model`` stays as it is; a copy of it is attacked, where it lies.

    Args:
        model: from (n, c, h, w) images to (n, k) logits.
        before: the global model before the round.
        update: the difference, after minus before, as it left the client; or ``after``, the client's state.
        images: the client's own: (n, h, w), (n, c, h, w) or (n, h, w, c), bytes or floats in [0, 1].
        labels: of the client's images, which the attacker then knows.
        public: images of others, as ``images``; their mean is the mean image. ``public_labels``: their classes.
        mean, std: of the normalisation before the model, one number a channel; not given: those of ``public``.
        image_shape: (c, h, w); not given: that of ``images`` or ``public``.
        samples: behind the update; not given: as many as labels or images.
        steps, batch_size, learning_rate, optimiser, loss: of the local training.
        attacks: names of the registry; ``threat_model`` and ``iterations`` in place of their own.

    Raises:
        ShadowDefenseError: of one line, for what does not fit together.
        ThreatModelError: for an attack that reads what was not given.
    """
    own = None if images is None else read_given(images).images
    others = None if public is None else read_given(public, "public images").images
    shape = _shape(image_shape, own, others)
    if others is None and (mean is None or std is None):
        raise ConfigError("how images are normalised is not known: give mean=[0.5], std=[0.25], or public images")
    attacked = copy.deepcopy(plain_module(model)).train()
    if isinstance(update, ModelUpdate):
        samples, steps, update = samples or update.samples, steps or update.steps or None, update.tensors
    given = Given(
        model=f"{type(attacked).__module__}.{type(attacked).__qualname__}",
        update=None if update is None else _source(update),
        before=_source(before),
        after=None if after is None else _source(after),
        attacks=tuple(attacks),
        threat_model=threat_model,
        iterations=iterations,
        labels=None if labels is None else tuple(int(label) for label in labels),
        samples=samples or (len(own) if labels is None and own is not None else None),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        training={"optimiser": optimiser, "loss": loss},
    )
    config = RunConfig(
        seed=seed,
        data=DataSettings(
            mean=None if mean is None else tuple(mean), std=None if std is None else tuple(std), channels=shape[0]
        ),
    )
    try:
        pictures = Pictures(truths=own, public=_labelled(others, public_labels, own), averaged=_without(others, own))
        case = case_of_model(given, config, attacked, shape, _classes(attacked, shape), pictures)
        return Audit(*audited(case, command="shadow_defense.audit(...)"))
    except ShadowDefenseError as error:
        raise type(error)(re.sub(r"--([a-z][a-z-]*)", _in_python, str(error))) from error


def _in_python(flag: re.Match[str]) -> str:
    return IN_PYTHON.get(flag[1], flag[1].replace("-", "_")) + "="


def _source(given: State) -> TensorSource:
    if isinstance(given, nn.Module):
        return plain_module(given).state_dict()
    return Path(given) if isinstance(given, str | Path) else given


def _shape(said: tuple[int, int, int] | None, own: Images | None, others: Images | None) -> tuple[int, int, int]:
    shapes = {tuple(images.shape[1:]) for images in (own, others) if images is not None} | ({said} if said else set())
    if len(shapes) != 1:
        found = " and ".join(map(str, sorted(shapes))) or "nothing"
        raise ConfigError(
            f"the shape of the model's images is not known from {found}: give images, public images or "
            "image_shape=(channels, height, width), all of one shape"
        )
    (shape,) = shapes
    channels, height, width = shape
    return channels, height, width


def _classes(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """The number of logits that the model gives for black images."""
    try:
        with torch.no_grad(), training_mode(model, False):
            answer = model(torch.zeros(2, *shape, device=device_of(model)))
    # Whatever a stranger's model raises.
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(
            f"the model fails on images of shape {shape} ({line}): give images of the shape it takes"
        ) from error
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != 2:
        raise ModelError("the model gives no logits (n, classes): wrap it in a module that does")
    return answer.shape[1]


def _without(others: Images | None, own: Images | None) -> Images | None:
    return None if others is None else others[without_own(others, own, "--public")]


def _labelled(others: Images | None, labels: Sequence[int] | Tensor | None, own: Images | None) -> ImageSet | None:
    if others is None or labels is None:
        return None
    known = torch.as_tensor(labels, dtype=torch.int64)
    if known.shape != (len(others),):
        raise ConfigError(
            f"public_labels has shape {tuple(known.shape)} for {len(others)} public images: give one each"
        )
    names = tuple(map(str, range(len(others))))
    return ImageSet(others, known, names).subset(without_own(others, own, "--public"))
