"""GradDefense (Wang et al., INFOCOM 2022): noise on some slices of the parameters that are equally sensitive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shadow_defense.data.dataset import ImageSet, Normalisation, check_labels
from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext, TensorPlace
from shadow_defense.defenses.dp_sgd import per_sample_gradients
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.noise import cosine
from shadow_defense.defenses.sensitive_slices import (
    CHUNK,
    add_to_slices,
    balanced_choice,
    clip_slices,
    equal_slices,
    tensor_sensitivities,
)
from shadow_defense.errors import DefenseError
from shadow_defense.models.functional import split_state, training_mode
from shadow_defense.seeds import named_generator


class GradDefenseSettings(BaseModel):
    """How many slices, how many of them get noise, how much, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slices: int = Field(
        10, ge=1, le=10_000, description="M, slices of equal sensitivity into which the parameters are cut"
    )
    noised_slices: int = Field(
        5, ge=0, le=10_000, description="m of the M, drawn anew for every message, that get noise"
    )
    noise: float = Field(
        5e-4, ge=0, description="sigma, standard deviation of the noise, in units of the gradients or of the update"
    )
    clip: bool = Field(
        False, description="first scale every image's gradient, on each slice that gets noise, to a norm of sigma"
    )
    root_images: int = Field(
        50,
        ge=1,
        le=100_000,
        description="public images on which sensitivity is measured, once a round; fewer if there are fewer",
    )
    place: TensorPlace = Field("gradients", description="gradients: at every local step; update: once a round")

    @model_validator(mode="after")
    def _consistent(self) -> GradDefenseSettings:
        if self.noised_slices > self.slices:
            raise ValueError(f"noised_slices is {self.noised_slices} of {self.slices} slices: expected as many at most")
        if self.clip and self.place == "update":
            raise ValueError("clip scales single images' gradients, which an update has none of: set place=gradients")
        return self


GRAD_DEFENSE_PRESETS: dict[str, dict[str, Any]] = {
    # Ours: a tenth of the default.
    "weak": {"noise": 5e-5},
    # The authors'.
    "paper": {},
    # Plato's.
    "strong": {"noise": 0.01},
}


class GradDefense(ParameterDefense):
    """Noise on m of M equally sensitive slices, other ones for every message.

    The server's part of the publication, which takes noise out of the aggregate by the eigenvalues of a covariance,
    is not built: it has no shape to work in where the number of parameters is prime, its covariance is too large for
    a ResNet (docs/defenses.md), and the plain mean over clients is what all defenses here are compared under.

    Args:
        public: images that no client holds, with labels; the root set is drawn from them.
        classes: how many the labels may name.
        seed: the client's own. In a deployment it is a secret of the client's: it reproduces the noise.
    """

    def __init__(
        self, settings: GradDefenseSettings, public: ImageSet, normalisation: Normalisation, classes: int, seed: int
    ) -> None:
        super().__init__(settings.place)
        self.settings = settings
        self.public = public
        self.normalisation = normalisation
        self.classes = classes
        self.seed = seed
        self._sensitivities: dict[str, float] = {}
        self._forget()

    def _forget(self) -> None:
        self._cosines: list[float] = []
        self._shares: list[float] = []
        self._slices = 0

    def check_model(self, model: nn.Module) -> None:
        """Raises :class:`DefenseError` without public images, or on batch norm where ``clip`` is set."""
        self._root()
        check_labels(self.public.labels.numpy(), self.classes, "the public images of grad-defense")
        mixing = next((name for name, module in model.named_modules() if isinstance(module, _BatchNorm)), None)
        if self.settings.clip and mixing is not None:
            raise DefenseError(
                f"grad-defense cannot clip single images' gradients of a model with batch norm ('{mixing}'), which "
                "mixes the samples of a batch: set model.normalisation=group, or clip=false"
            )

    def _root(self) -> ImageSet:
        if not len(self.public):
            raise DefenseError(
                "grad-defense measures sensitivity on public images and has none: raise data.public_fraction or set "
                "data.public_source"
            )
        draws = named_generator(self.seed, "grad-defense", "root")
        return self.public.subset(balanced_choice(self.public.labels, self.settings.root_images, draws))

    def begin_round(self, context: RoundContext) -> None:
        """Measures every tensor's sensitivity at the model that the round starts from."""
        super().begin_round(context)
        self._forget()
        root, model = self._root(), context.model
        parameters, buffers = split_state(model, model)
        like = next(iter(parameters.values()))
        images = self.normalisation.apply(root.unit_images()).to(like)
        with training_mode(model, False), torch.enable_grad():
            self._sensitivities = tensor_sensitivities(
                model, parameters, buffers, images, root.labels.to(like.device), context.loss_fn
            )
        wrong = next((name for name, value in self._sensitivities.items() if not math.isfinite(value)), None)
        if wrong is not None:
            raise DefenseError(f"grad-defense's sensitivity of '{wrong}' is not finite: lower the learning rate")

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        chosen = self.settings
        draws = named_generator(self.seed, "grad-defense", context.round, self.step)
        sizes = [tensor.numel() for tensor in tensors.values()]
        slices = equal_slices(sizes, [self._sensitivities[name] for name in tensors], chosen.slices)
        order = torch.randperm(len(slices), generator=draws).tolist()
        noised = [slices[index] for index in sorted(order[: chosen.noised_slices])]
        before = tensors
        if chosen.clip:
            assert batch is not None
            before = self._clipped(tensors, batch, context, noised)
        sent = add_to_slices(before, noised, chosen.noise, draws)
        self._cosines.append(cosine(tensors, sent))
        self._shares.append(sum(stop - start for start, stop in noised) / sum(sizes))
        self._slices = len(slices)
        return sent

    def _clipped(
        self, tensors: Mapping[str, Tensor], batch: Batch, context: RoundContext, slices: Sequence[tuple[int, int]]
    ) -> dict[str, Tensor]:
        own = dict(context.model.named_parameters())
        parameters = {name: own[name] for name in tensors}
        total = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        for images, labels in zip(batch.images.split(CHUNK), batch.labels.split(CHUNK), strict=True):
            each = per_sample_gradients(context.model, parameters, images, labels, context.loss_fn)
            part = clip_slices(each, slices, self.settings.noise)
            share = len(images) / len(batch.images)
            total = {name: tensor + share * part[name] for name, tensor in total.items()}
        return total

    def measurements(self) -> dict[str, float]:
        """Slices found; share of the parameters that got noise, and cosine of sent with raw, averaged over messages."""
        messages = max(len(self._cosines), 1)
        return {
            "slices": float(self._slices),
            "noised_share": sum(self._shares) / messages,
            "cosine": sum(self._cosines) / messages,
        }


GRAD_DEFENSE = DefenseKind(
    "grad-defense",
    "noise on some slices of the parameters that are equally sensitive to the image (Wang et al. 2022)",
    GradDefenseSettings,
    lambda settings, resources: GradDefense(
        settings, resources.public, resources.normalisation, resources.classes, resources.seed_of("grad-defense")
    ),
    GRAD_DEFENSE_PRESETS,
    acts_on=("gradients", "update"),
    reads="model",
    computes_anew=lambda settings: isinstance(settings, GradDefenseSettings) and settings.clip,
    nothing_to_fit="which slices get noise is drawn anew for every message: no tensor can be trusted more",
)
