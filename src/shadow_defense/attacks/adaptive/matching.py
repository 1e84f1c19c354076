"""What an attacker that knows the defense compares, in place of the simulated and the observed update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from shadow_defense.attacks.objectives import Matching

Tensors = Sequence[Tensor]
Transform = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]
"""From a simulated and an observed update to what is compared, tensor by tensor; differentiable in the first."""


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
        distance, transforms = self.distances.get(matching, matching), self.transforms
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
