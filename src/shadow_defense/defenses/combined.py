"""Several defenses at once, such as ``shadow+clip+dp``: what each leaves is what the next one gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor, nn

from shadow_defense.defenses.base import Batch, Defense, Place, RoundContext
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.errors import DefenseError
from shadow_defense.progress import Progress
from shadow_defense.registry import NoOptions


def check_combination(places: Mapping[str, Collection[Place]], settings: Mapping[str, object]) -> None:
    """Refuse parts that would be without effect, that break another's guarantee, or that cannot read what they get.

    A part that the registry does not know is taken to read the images.

    Args:
        places: where each part acts, by the part's name in the registry, in order.
        settings: of each part.

    Raises:
        DefenseError: naming the two parts.
    """
    kinds = {name: DEFENSES.get(name, _UNKNOWN) for name in places}
    anew = [name for name, kind in kinds.items() if kind.computes_anew(settings.get(name))]
    readers = [name for name, kind in kinds.items() if kind.reads == "images" or name in anew]
    for name, kind in kinds.items():
        if kind is not _UNKNOWN and kind.protects_nothing:
            raise DefenseError(f"a combination holds '{name}', which protects nothing: leave it out")
        _check_part(name, kinds, places, anew, readers)


def _check_part(
    name: str,
    kinds: Mapping[str, DefenseKind],
    places: Mapping[str, Collection[Place]],
    anew: Collection[str],
    readers: Collection[str],
) -> None:
    names, kind = list(kinds), kinds[name]
    before, after = names[: names.index(name)], names[names.index(name) + 1 :]
    instead = f"take {_private_at_the_update()} in place of {name}"
    for other in before if name in anew else ():
        if "gradients" not in places[other]:
            continue
        if other in anew:
            hint = f"and {name} does so again: take one of the two"
            _refuse([other], name, f"computes gradients anew from the batch, {hint}")
        hint = instead if kind.private_at == "gradients" and other in readers else "put it after"
        _refuse([other], name, f"acts on gradients before {name}, which computes them anew from the batch: {hint}")
    if kind.private_at == "gradients":
        _refuse(
            [other for other in names if "batch" in places[other] and not kinds[other].image_by_image],
            name,
            "lets images of a batch depend on one another, so that clipping single samples bounds nobody's "
            f"influence: {instead}",
        )
        later = [other for other in after if "gradients" in places[other]]
        later += [other for other in names if "update" in places[other]]
        _refuse_readers([other for other in later if other in readers], name, instead)
    if kind.private_at == "update":
        later = [other for other in after if "update" in places[other]]
        _refuse_readers([other for other in later if other in readers], name, "put it before")
    if kind.needs_classes:
        _refuse(
            [other for other in before if kinds[other].mixes_labels],
            name,
            f"mixes labels and {name} attacks with classes: put {name} first",
        )
    if kind.knows_images:
        _refuse(
            [other for other in before if kinds[other].knows_images],
            name,
            "puts images of its own in their place: take one of the two",
        )
        _refuse(
            [other for other in before if "batch" in places[other]],
            name,
            f"changes the images that {name} knows by their ids: put {name} first",
        )


def _private_at_the_update() -> str:
    return " or ".join(name for name, kind in DEFENSES.own.items() if kind.private_at == "update")


def _nothing(settings: BaseModel, resources: object) -> Defense:
    return Defense()


_UNKNOWN = DefenseKind("unknown", "a defense that no registry knows", NoOptions, _nothing)


def _refuse(found: list[str], name: str, reason: str) -> None:
    if found:
        raise DefenseError(f"{name} cannot be combined with {found[0]} like this: {found[0]} {reason}")


def _refuse_readers(found: list[str], name: str, hint: str) -> None:
    _refuse(found, name, f"reads the private images after {name}, whose epsilon would no longer hold: {hint}")


class CombinedDefense(Defense):
    """Parts that act one after another at each place: batch first, then gradients, then the update.

    The order of the parts counts where two act at the same place: ``clip+noise`` adds noise to what was clipped,
    ``noise+clip`` clips noise and all. Between places it does not: a part that acts on batches always comes before one
    that acts on updates. Every part prepares itself with the client's clean images.

    Args:
        parts: by their names in the registry; the order is that of the mapping.

    Raises:
        DefenseError: where :func:`check_combination` refuses them.
    """

    def __init__(self, parts: Mapping[str, Defense]) -> None:
        check_combination(
            {name: part.acts_on for name, part in parts.items()},
            {name: getattr(part, "settings", None) for name, part in parts.items()},
        )
        self.parts = dict(parts)

    @property
    def acts_on(self) -> frozenset[Place]:
        return frozenset().union(*(part.acts_on for part in self.parts.values()))

    def check_model(self, model: nn.Module) -> None:
        for part in self.parts.values():
            part.check_model(model)

    def prepare(
        self, images: Float[Tensor, "n c h w"], sample_ids: tuple[str, ...], progress: Progress | None = None
    ) -> None:
        for part in self.parts.values():
            part.prepare(images, sample_ids, progress)

    def begin_round(self, context: RoundContext) -> None:
        for part in self.parts.values():
            part.begin_round(context)

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        for part in self.parts.values():
            batch = part.protect_batch(batch, context)
        return batch

    def protect_gradients(
        self, gradients: Mapping[str, Tensor], batch: Batch, context: RoundContext
    ) -> Mapping[str, Tensor]:
        for part in self.parts.values():
            gradients = part.protect_gradients(gradients, batch, context)
        return gradients

    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        for part in self.parts.values():
            tensors = part.protect_update(tensors, context)
        return tensors

    def measurements(self) -> dict[str, float]:
        """The parts' numbers; a name that several parts use gets the part's name and a dot before it."""
        measured = {name: part.measurements() for name, part in self.parts.items()}
        uses = Counter(key for numbers in measured.values() for key in numbers)
        return {
            (key if uses[key] == 1 else f"{name}.{key}"): number
            for name, numbers in measured.items()
            for key, number in numbers.items()
        }

    def explanations(self) -> dict[str, Tensor]:
        """The parts' pictures; of a name that several parts use the last part's, which is what was trained on."""
        return {key: picture for part in self.parts.values() for key, picture in part.explanations().items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises :class:`DefenseError` where a part that has a state from the start, such as a budget, finds none."""
        for name, part in self.parts.items():
            # Files do not keep the empty state of a part that has none.
            if name in state:
                part.load_state_dict(state[name])
            elif part.state_dict():
                raise DefenseError(f"the state of the combination holds nothing of {name}")
