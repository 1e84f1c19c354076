"""What an attacker that knows the defense compares, in place of the simulated and the observed update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor

from shadow_defense.attacks.objectives import Matching, cosine_distance

Tensors = Sequence[Tensor]
Transform = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]
"""From a simulated and an observed update to what is compared, tensor by tensor; differentiable in the first."""


@dataclass(frozen=True)
class Mask:
    """A transform: both updates, times zero outside the masks, of which there is one for each tensor.

    Attributes:
        under_cosine: the factor outside the masks where a cosine is matched.
    """

    masks: Sequence[Bool[Tensor, "..."]]
    under_cosine: float = 0.0

    def __call__(self, simulated: Tensors, observed: Tensors) -> tuple[Tensors, Tensors]:
        return products(simulated, self.masks), products(observed, self.masks)

    def under(self, matching: Matching) -> Transform:
        """The transform for an attack that matches by ``matching``."""
        if matching is not cosine_distance or not self.under_cosine:
            return self
        factors = [mask + self.under_cosine * ~mask for mask in self.masks]
        return lambda simulated, observed: (products(simulated, factors), products(observed, factors))


def products(tensors: Tensors, factors: Sequence[Tensor | float]) -> list[Tensor]:
    """Each tensor times its factor."""
    return [tensor * factor for tensor, factor in zip(tensors, factors, strict=True)]


@dataclass(frozen=True)
class MatchingAdaptation:
    """How a matching term is fitted to a defense; without anything given, not at all.

    Attributes:
        transforms: what both updates go through, one after the other, in the order of the parameters that are sent.
        distances: by the attack's own matching term, what takes its place; one that is not named is kept.
        draws: simulations that the update is averaged over.
        support: by parameter, the entries that the defense let pass, where it tells; for attacks that solve equations.
        notes: what was fitted and what could not be, in words.
    """

    transforms: tuple[Transform, ...] = ()
    distances: Mapping[Matching, Matching] = field(default_factory=dict)
    draws: int = 1
    support: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def fitted(self, matching: Matching) -> Matching:
        """``D(T(u), T(u*))`` from a matching term D; called once before a loop, not within it."""
        distance = self.distances.get(matching, matching)
        transforms = [each.under(distance) if isinstance(each, Mask) else each for each in self.transforms]
        if not transforms:
            return distance

        def adapted(simulated: Tensors, observed: Tensors) -> Tensor:
            for transform in transforms:
                simulated, observed = transform(simulated, observed)
            return distance(simulated, observed)

        return adapted

    def then(self, later: MatchingAdaptation) -> MatchingAdaptation:
        """This adaptation and then ``later``, of a defense that acts on what this one's has left."""
        both = self.support.keys() & later.support.keys()
        return MatchingAdaptation(
            self.transforms + later.transforms,
            {**self.distances, **later.distances},
            max(self.draws, later.draws),
            {**self.support, **later.support, **{name: self.support[name] & later.support[name] for name in both}},
            self.notes + later.notes,
        )
