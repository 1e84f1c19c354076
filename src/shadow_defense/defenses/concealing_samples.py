"""DCS (Wu et al., AAAI 2024): public images that pull on the model as the private ones do, mixed into the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation, check_labels
from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext
from shadow_defense.defenses.noise import cosine
from shadow_defense.errors import DefenseError
from shadow_defense.models.functional import LossFunction, loss_gradients, split_state, training_mode
from shadow_defense.seeds import named_generator

MARGIN = 0.5
"""The least share of the clean gradient that a turned one gets added."""

DAMPING = 1e-3
"""Added to the clean gradient's squared norm before it divides."""

DECAYS = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the steps after which the search's learning rate falls to a tenth."""


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
        1000, ge=0, description="of the search, for each batch; each differentiates the model's gradient once more"
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
    # Ours: half of the default's shares and weights, at the 500 steps of the published command line.
    "weak": {"mixing": 0.35, "distance_decay": 0.005, "steps": 500},
    # The published defaults, with the limit for grey images and faces (spec/defenses.md 3.1).
    "paper": {},
    # Ours: the spec gives no levels. The distance counts twice; all of the mixture's first term is the public label.
    "strong": {"mixing": 1.0, "distance_decay": 0.02},
}


def turn_towards(
    mixed: Mapping[str, Tensor], clean: Mapping[str, Tensor], *, margin: float = MARGIN, damping: float = DAMPING
) -> tuple[dict[str, Tensor], bool]:
    """``g~ + v g`` with ``v = max(margin, -<g, g~> / (||g||^2 + damping))`` where ``<g~, g> < 0``, else g~.

    Spec/defenses.md 3.1 and 7; products and norms are over all tensors together. The damping leaves an obtuse angle
    where ||g||^2 is not far above it: ``<g~ + v g, g>`` is at least ``<g~, g> damping / (||g||^2 + damping)``, not 0.

    Returns:
        New tensors by name, and whether anything was turned.

    >>> turned, _ = turn_towards({"w": torch.tensor([-0.2, 1.0])}, {"w": torch.tensor([1.0, 0.0])})
    >>> turned["w"]
    tensor([0.3000, 1.0000])
    """
    product = sum(float((mixed[name].double() * tensor.double()).sum()) for name, tensor in clean.items())
    if product >= 0:
        return {name: tensor.clone() for name, tensor in mixed.items()}, False
    square = sum(float(tensor.double().square().sum()) for tensor in clean.values())
    factor = max(margin, -product / (square + damping))
    return {name: tensor + factor * clean[name] for name, tensor in mixed.items()}, True


def search_rate(step: int, steps: int, learning_rate: float) -> float:
    """The learning rate of one step (0-based) of a search of ``steps``.

    >>> [round(search_rate(step, 8, 0.1), 6) for step in (0, 2, 3, 5, 7)]
    [0.1, 0.1, 0.01, 0.001, 0.0001]
    """
    return learning_rate * 0.1 ** sum(step >= share * steps for share in DECAYS)


def image_distance(first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """The L2 distance of two images, averaged over pairs."""
    return torch.linalg.vector_norm((first - second).flatten(1), dim=1).mean()


def gradient_cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The cosine between two gradients, each as one vector of all its tensors; differentiable, 0 for zeros."""

    def norm(tensors: Sequence[Tensor]) -> Tensor:
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))

    product = torch.stack([(one * other).sum() for one, other in zip(first, second, strict=True)]).sum()
    # Each by itself: the product of two small norms would underflow.
    smallest = torch.finfo(product.dtype).tiny
    return product / norm(first).clamp_min(smallest) / norm(second).clamp_min(smallest)


def outputs_and_gradients(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    loss_fn: LossFunction,
    *,
    create_graph: bool = False,
) -> tuple[Float[Tensor, "n k"], dict[str, Tensor]]:
    """f(x) and :func:`loss_gradients` from one forward pass."""
    seen: list[Tensor] = []

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        seen.append(outputs)
        return loss_fn(outputs, wanted)

    gradients = loss_gradients(model, parameters, buffers, images, labels, loss, create_graph=create_graph)
    return seen[0], gradients


@dataclass(frozen=True)
class Concealment:
    """What a concealing image x~ of a private x is searched with, for a batch of pairs.

    Attributes:
        model: in eval mode: the reference's, and no sample reaches another's term.
        parameters, buffers: as :func:`split_state` gives them.
        images: x, normalised.
        labels: of the public images, which x~ keeps.
        outputs: f(x), detached.
        gradients: g(x) by name, detached.
        distance_decay, output_weight: lambda_x and lambda_z, 0 or more.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    loss_fn: LossFunction
    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]
    outputs: Float[Tensor, "n k"]
    gradients: Mapping[str, Tensor]
    distance_decay: float
    output_weight: float

    def objective(self, concealing: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """``1 - cos(g(x), g(x~)) + exp(-lambda_x mean ||x~ - x||) + lambda_z mean ||f(x~) - f(x)|| / ||f(x)||``.

        Spec/defenses.md 3.1, where ``lambda_z epsilon`` is taken off: a constant, which no step of the search sees.
        ``g(x~)`` is the gradient at the public images' labels; differentiable in ``concealing``.
        """
        outputs, gradients = outputs_and_gradients(
            self.model, self.parameters, self.buffers, concealing, self.labels, self.loss_fn, create_graph=True
        )
        likeness = gradient_cosine([gradients[name] for name in self.gradients], list(self.gradients.values()))
        apart = torch.exp(-self.distance_decay * image_distance(concealing, self.images))
        lengths = torch.linalg.vector_norm(self.outputs, dim=1).clamp_min(torch.finfo(outputs.dtype).tiny)
        change = (torch.linalg.vector_norm(outputs - self.outputs, dim=1) / lengths).mean()
        return 1 - likeness + apart + self.output_weight * change

    def search(
        self, start: Float[Tensor, "n c h w"], *, steps: int, learning_rate: float, distance_limit: float
    ) -> tuple[Float[Tensor, "n c h w"], int]:
        """x~ by Adam on :meth:`objective` from ``start``, and the steps taken until the limit or the end.

        As published, the pixels are not held in the range of real images.
        """
        concealing = start.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([concealing], lr=learning_rate)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = search_rate(step, steps, learning_rate)
            (concealing.grad,) = torch.autograd.grad(self.objective(concealing), concealing)
            optimiser.step()
            if image_distance(concealing.detach(), self.images) > distance_limit:
                return concealing.detach(), step + 1
        return concealing.detach(), steps

    def mixed_gradients(
        self, concealing: Float[Tensor, "n c h w"], labels: Tensor, mixing: float
    ) -> dict[str, Float[Tensor, "..."]]:
        """The gradient of ``[lambda_y CE(x~, y_public) + (1 - lambda_y) CE(x~, y) + CE(x, y)] / 3``.

        Divided by 2 where one weight is 0 (spec/defenses.md 3.1). The weights add up to 2, half of them the private
        images'; divided by 3, as published, steps are a third shorter than they would be otherwise.

        Args:
            labels: y, of the private images.
            mixing: lambda_y, 0 to 1.
        """

        def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
            concealed, private = outputs.split(len(self.images))
            public_term, own_term = self.loss_fn(concealed, self.labels), self.loss_fn(concealed, wanted)
            whole = mixing * public_term + (1 - mixing) * own_term + self.loss_fn(private, wanted)
            return whole / (3 if 0 < mixing < 1 else 2)

        both = torch.cat([concealing, self.images])
        return loss_gradients(self.model, self.parameters, self.buffers, both, labels, loss)


class ConcealingSamplesDefense(ParameterDefense):
    """Each step's gradient replaced by that of a mixture of the batch with its concealing images.

    All in eval mode, as in the reference: of a model with batch norm in train mode the sent gradient is not the one
    that training would have taken, and its running statistics are still those of the clean batch. The private images
    stay in the mixture at half of its weight: an attacker who looks for twice as many images may find them
    (spec/defenses.md 3.1).

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
