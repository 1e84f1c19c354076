"""Observation in, Reconstruction out: all that an attack may read, and what it returns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.attacks.adaptive.matching import MatchingAdaptation
from shadow_defense.attacks.threat_model import Knowledge, ThreatModel
from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import GeneratorError, RunError, ThreatModelError
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.generators.interface import Generator
from shadow_defense.models.functional import LossFunction
from shadow_defense.placement import device_of
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator, seed_for

T = TypeVar("T")


@dataclass(frozen=True)
class Observation:
    """What one attacker sees of one client's update; what is not granted is absent, not just unused.

    Built by :func:`observe`. Reading knowledge that is absent raises :class:`ThreatModelError`.

    Attributes:
        model: the architecture, in the mode the client trained in; its own weights mean nothing.
        global_state: parameters before the round, and buffers (public: the server sent them).
        image_shape: (channels, height, width).
        rounds: of the whole training (public: all take part in them); None for unknown.
        optimiser: the client's, where it is known and the rest of the local training is not.
        usual_contrast: of public images (:func:`~shadow_defense.data.dataset.measure_contrast`); None where there are
            none, or the template is not granted.
        matching: how the attack's matching term is fitted to the defense; no knowledge, but what was made of it.
    """

    threat_model: ThreatModel
    model: nn.Module
    loss_fn: LossFunction
    global_state: Mapping[str, Tensor]
    update: ModelUpdate
    image_shape: tuple[int, int, int]
    classes: int
    normalisation: Normalisation
    _labels: Int64[Tensor, " n"] | None = None
    _local_training: LocalTraining | None = None
    _template: Float[Tensor, "c h w"] | None = None
    _generator: Callable[[], Generator] | None = None
    _auxiliary: ImageSet | None = None
    _defense: DefenseSettings | None = None
    _earlier: tuple[Observation, ...] | None = None
    rounds: int | None = None
    optimiser: OptimiserName | None = None
    usual_contrast: float | None = None
    matching: MatchingAdaptation = field(default_factory=MatchingAdaptation)

    @property
    def device(self) -> torch.device:
        """Where the model, and with it all that is computed with, lies."""
        return device_of(self.model)

    @property
    def box(self) -> tuple[Float[Tensor, "1 c 1 1"], Float[Tensor, "1 c 1 1"]]:
        """The least and the greatest value of each channel of normalised images."""
        return self.normalisation.bounds(torch.zeros(1, self.image_shape[0], 1, 1, device=self.device))

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """The labels of all of the client's images, in no telling order."""
        return self._granted(self._labels, "labels")

    @property
    def local_training(self) -> LocalTraining:
        return self._granted(self._local_training, "local training")

    @property
    def template(self) -> Float[Tensor, "c h w"]:
        """The mean of public images, in [0, 1]."""
        return self._granted(self._template, "template")

    @property
    def generator(self) -> Generator:
        """A generator of images of the same kind, loaded now; raises :class:`GeneratorError` where there is none."""
        if self._generator is None and self.grants("generator"):
            raise GeneratorError(
                "the attack starts from a generator and none was given: run `shadow-defense pretrain`, or set "
                "generator.path"
            )
        return self._granted(self._generator, "generator")()

    @property
    def auxiliary(self) -> ImageSet:
        """Images like the client's: of its own distribution where that is granted, public ones otherwise."""
        return self._granted(self._auxiliary, "public images")

    @property
    def defense(self) -> DefenseSettings:
        return self._granted(self._defense, "defense")

    @property
    def earlier(self) -> tuple[Observation, ...]:
        """The same client in the rounds before, oldest first, as many as were kept; may be none."""
        return self._granted(self._earlier, "earlier rounds")

    def grants(self, knowledge: str) -> bool:
        return knowledge in self.threat_model.granted

    def _granted(self, value: T | None, name: str) -> T:
        if value is None:
            raise ThreatModelError(f"'{name}' was read but threat model '{self.threat_model.name}' does not grant it")
        return value


def observe(
    threat_model: ThreatModel,
    *,
    model: nn.Module,
    loss_fn: LossFunction,
    global_state: Mapping[str, Tensor],
    update: ModelUpdate,
    image_shape: tuple[int, int, int],
    classes: int,
    normalisation: Normalisation,
    labels: Int64[Tensor, " n"],
    local_training: LocalTraining,
    template: Float[Tensor, "c h w"],
    usual_contrast: float | None = None,
    generator: Callable[[], Generator] | None = None,
    public: ImageSet | None = None,
    distribution: ImageSet | None = None,
    defense: DefenseSettings | None = None,
    earlier: Sequence[Observation] = (),
    rounds: int | None = None,
    optimiser: OptimiserName | None = None,
) -> Observation:
    """Keep of everything only what ``threat_model`` grants.

    All that is computed with comes to where the model lies; images to learn from stay in the host's memory. Labels come
    sorted, so that their order gives nothing away. Without "buffers" the update's buffers are removed,
    without "local training" its number of steps.

    Args:
        usual_contrast: of public images, which goes with the template; None where there are none.
        generator: loads a generator, in the process that attacks: a network need not travel there.
        public: public images like the client's.
        distribution: images of the client's own distribution, none of them the client's.
        defense: what the client applies; None: no defense.
        earlier: the same client in the rounds before, oldest first, under the same threat model.
        rounds: of the whole training.
        optimiser: the client's, for who is granted no more of the local training than that.
    """
    granted, device = threat_model.granted, device_of(model)
    if "buffers" not in granted:
        parameters = {name for name, _ in model.named_parameters()}
        kept = {name: tensor for name, tensor in update.tensors.items() if name in parameters}
        update = replace(update, tensors=kept)
    if "local training" not in granted:
        # 0 stands for unknown.
        update = replace(update, steps=0)
    update = replace(update, tensors={name: tensor.to(device) for name, tensor in update.tensors.items()})
    # Of its own: another observation of the same model may need the other mode.
    model = copy.deepcopy(model)
    model.train("local training" not in granted or local_training.batch_norm == "train")
    return Observation(
        threat_model,
        model,
        loss_fn,
        {name: tensor.to(device) for name, tensor in global_state.items()},
        update,
        image_shape,
        classes,
        normalisation,
        labels.to(device).sort().values if "labels" in granted else None,
        local_training if "local training" in granted else None,
        template.to(device) if "template" in granted else None,
        generator and partial(_loaded, generator, device) if "generator" in granted else None,
        distribution if "data distribution" in granted else public if "public images" in granted else None,
        (defense or DefenseSettings()) if "defense" in granted else None,
        tuple(earlier) if "earlier rounds" in granted else None,
        rounds,
        None if "local training" in granted else optimiser,
        usual_contrast if "template" in granted else None,
    )


def _loaded(generator: Callable[[], Generator], device: torch.device) -> Generator:
    return generator().to(device)


def randomised(observation: Observation, seed: int) -> Observation:
    """The control: noise in place of the update, of the same norm in every tensor.

    What an attack rebuilds from it comes from its prior and not from the client. Counters
    and buffers stay as they were. Earlier rounds become noise as well, each of its own.
    """
    draws = named_generator(seed, "random update")
    parameters = {name for name, _ in observation.model.named_parameters()}
    tensors = {}
    for name, tensor in observation.update.tensors.items():
        drawn = torch.randn(tensor.shape, generator=draws).to(tensor)
        norm = torch.linalg.vector_norm
        tensors[name] = drawn * (norm(tensor) / norm(drawn)) if name in parameters else tensor
    earlier = observation._earlier and tuple(
        randomised(each, seed_for(seed, "earlier round", each.update.round)) for each in observation._earlier
    )
    return replace(observation, update=replace(observation.update, tensors=tensors), _earlier=earlier)


@dataclass(frozen=True)
class Reconstruction:
    """What an attack gives back.

    Attributes:
        images: (n, channels, height, width) in [0, 1].
        labels: the labels that the attack used or recovered, one an image.
        matching_loss: of the returned images, without priors; what restarts are chosen by.
        history: total loss over the iterations, at even distances.
        notes: what the attack had to assume, in words.
        misfit: of the returned images, on a scale that all attacks on an update share
            (:func:`~shadow_defense.attacks.misfit.misfit`); None where it was not measured.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    matching_loss: float
    iterations: int
    seconds: float
    history: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())
    misfit: float | None = None

    def save(self, path: Path) -> None:
        """Write as safetensors with JSON metadata, where a loss that is not finite becomes null."""
        metadata = {
            "matching_loss": _finite_or_none(self.matching_loss),
            "iterations": self.iterations,
            "seconds": self.seconds,
            "history": [_finite_or_none(value) for value in self.history],
            "notes": self.notes,
            "misfit": self.misfit,
        }
        write_tensors(path, {"images": self.images, "labels": self.labels}, metadata)

    @classmethod
    def load(cls, path: Path) -> Reconstruction:
        """Read what :meth:`save` wrote. Raises :class:`RunError` naming any other file."""
        hint = "delete it and run the stage `attack` to have it computed again"
        tensors, metadata = read_tensors(path, hint)
        try:
            return cls(
                tensors["images"],
                tensors["labels"],
                _infinite_if_none(metadata["matching_loss"]),
                metadata["iterations"],
                metadata["seconds"],
                tuple(map(_infinite_if_none, metadata["history"])),
                tuple(metadata["notes"]),
                metadata["misfit"],
            )
        except KeyError as error:
            raise RunError(f"{path} holds no reconstruction (no {error}); {hint}") from error
        except TypeError as error:
            raise RunError(f"{path} holds no reconstruction ({error}); {hint}") from error


@runtime_checkable
class Attack(Protocol):
    """An attack with its settings: it says what it needs and turns an observation into a reconstruction."""

    @property
    def needs(self) -> frozenset[Knowledge]: ...

    def steps(self) -> int: ...

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction: ...


def _finite_or_none(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _infinite_if_none(loss: float | None) -> float:
    return math.inf if loss is None else loss
