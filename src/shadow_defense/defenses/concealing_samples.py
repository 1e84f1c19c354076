"""DCS (Wu et al., AAAI 2024): public images that pull on the model as the private ones do, mixed into the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation, check_labels
from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext
from shadow_defense.defenses.concealment import Concealment, image_distance, outputs_and_gradients, turn_towards
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.noise import cosine
from shadow_defense.errors import DefenseError
from shadow_defense.models.functional import split_state, training_mode
from shadow_defense.seeds import named_generator


class ConcealingSamplesSettings(BaseModel):
    """How a concealing image is searched for, and how much of it is mixed in; it acts on single steps only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixing: float = Field(
        0.7,
        ge=0,
        le=1,
        description="lambda_y: share of the public image in the search's start, and of its label in the loss",
    )
    steps: int = Field(
        1000,
        ge=0,
        le=10_000_000,
        description="of the search, for each batch; each differentiates the model's gradient once more",
    )
    learning_rate: float = Field(
        0.1, gt=0, description="of the search (Adam), in units of normalised pixels; a tenth after 3/8, 5/8, 7/8"
    )
    distance_decay: float = Field(
        0.01, ge=0, description="lambda_x in exp(-lambda_x distance), which drives the images apart"
    )
    output_weight: float = Field(
        0.01, ge=0, description="lambda_z: weight of the relative difference of the model's outputs"
    )
    distance_limit: float = Field(
        300.0,
        gt=0,
        description="mean L2 distance of normalised images at which the search ends; for images of more pixels it "
        "means less. Published: 300 (28 px grey, faces), 400 (64 px), 500 (32 px colour)",
    )


CONCEALING_SAMPLES_PRESETS: dict[str, dict[str, Any]] = {
    # Ours: half of the default's mixing and distance decay, at the 500 steps of the published command line.
    "weak": {"mixing": 0.35, "distance_decay": 0.005, "steps": 500},
    # The published defaults, with the limit for grey images and faces.
    "paper": {},
    # Ours: nothing else is published. The distance counts twice; all of the mixture's first term is the public label.
    "strong": {"mixing": 1.0, "distance_decay": 0.02},
}


class ConcealingSamplesDefense(ParameterDefense):
    """Each step's gradient replaced by that of a mixture of the batch with its concealing images.

    All in eval mode, as in the reference: of a model with batch norm in train mode the sent gradient is not the one
    that training would have taken, and its running statistics are still those of the clean batch. The private images
    stay in the mixture at half of its weight: an attacker who looks for twice as many images may find them
    (docs/defenses.md).

    Args:
        public: images that no client holds, with labels; the concealing ones start at them.
        classes: how many the labels may name.
        seed: the client's own; it chooses the public images.
    """

    def __init__(
        self,
        settings: ConcealingSamplesSettings,
        public: ImageSet,
        normalisation: Normalisation,
        classes: int,
        seed: int,
    ) -> None:
        super().__init__("gradients")
        self.settings = settings
        self.public = public
        self.normalisation = normalisation
        self.classes = classes
        self.seed = seed
        self._measured: list[dict[str, float]] = []

    def check_model(self, model: nn.Module) -> None:
        """Raises :class:`DefenseError` without public images and :class:`DataError` where a label names no class."""
        self._check_public(1)
        check_labels(self.public.labels.numpy(), self.classes, "the public images of dcs")

    def _check_public(self, needed: int) -> None:
        if len(self.public) < needed:
            raise DefenseError(
                f"dcs needs a public image for every image of a batch and has {len(self.public)} for {needed}: raise "
                "data.public_fraction, set data.public_source, or train in smaller batches"
            )

    def begin_round(self, context: RoundContext) -> None:
        super().begin_round(context)
        self._measured = []

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        """The mixed gradient, turned towards the clean one; of ``tensors``, the clean gradient, only names are read."""
        assert batch is not None
        self._check_public(len(batch.images))
        chosen, model, images = self.settings, context.model, batch.images
        draws = named_generator(self.seed, "dcs", context.round, self.step)
        partners = self.public.subset(torch.randperm(len(self.public), generator=draws)[: len(images)].numpy())
        proxies = self.normalisation.apply(partners.unit_images()).to(images)
        parameters, buffers = split_state(model, model)
        with training_mode(model, False), torch.enable_grad():
            outputs, clean = outputs_and_gradients(model, parameters, buffers, images, batch.labels, context.loss_fn)
            concealment = Concealment(
                model,
                parameters,
                buffers,
                context.loss_fn,
                images,
                partners.labels.to(images.device),
                outputs.detach(),
                clean,
                chosen.distance_decay,
                chosen.output_weight,
            )
            concealing, steps = concealment.search(
                chosen.mixing * proxies + (1 - chosen.mixing) * images,
                steps=chosen.steps,
                learning_rate=chosen.learning_rate,
                distance_limit=chosen.distance_limit,
            )
            mixed = concealment.mixed_gradients(concealing, batch.labels, chosen.mixing)
        sent, turned = turn_towards(mixed, clean)
        self._measured.append(
            {
                "search_steps": steps,
                "distance": image_distance(concealing, images).item(),
                "cosine": cosine(clean, sent),
                "turned_share": float(turned),
            }
        )
        return {name: sent[name] for name in tensors}

    def measurements(self) -> dict[str, float]:
        """Means over the round's steps: how long the search was, how far it came, how like the clean what was sent.

        ``distance`` is the mean L2 distance of normalised images, ``cosine`` that of the sent with the clean gradient,
        ``turned_share`` the share of the steps whose mixed gradient pointed away from the clean one.
        """
        count = len(self._measured)
        names = self._measured[0] if self._measured else {}
        return {name: math.fsum(step[name] for step in self._measured) / count for name in names}


CONCEALING_SAMPLES = DefenseKind(
    "dcs",
    "the gradient mixed with that of public images which pull on the model alike (Wu et al. 2024)",
    ConcealingSamplesSettings,
    lambda settings, resources: ConcealingSamplesDefense(
        settings, resources.public, resources.normalisation, resources.classes, resources.seed_of("dcs")
    ),
    CONCEALING_SAMPLES_PRESETS,
    acts_on=("gradients",),
    computes_anew=lambda settings: True,
    searches=True,
    nothing_to_fit="the gradient is mixed with that of other images, which depend on the client's: nothing is fitted",
)
