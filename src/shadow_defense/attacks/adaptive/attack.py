"""An attack that knows the defense: any other, fitted to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, SerializeAsAny
from torch import Tensor

from shadow_defense.attacks.adaptive.denoiser import denoise
from shadow_defense.attacks.adaptive.fitting import adaptation_of
from shadow_defense.attacks.adaptive.image_noise import subtract_expected_noise
from shadow_defense.attacks.adaptive.learned_noise import can_learn, learned_remover
from shadow_defense.attacks.adaptive.over_rounds import average_over_rounds
from shadow_defense.attacks.adaptive.settings import AdaptiveSettings
from shadow_defense.attacks.contrast import is_left_to_chance, with_contrast
from shadow_defense.attacks.observation import Attack, Observation, Reconstruction
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.progress import Task
from shadow_defense.seeds import seed_for

WHERE_NOTHING_IS_LEARNT = "total-variation"
"""The denoiser where a defense puts no noise on images, or no copy of it can be had."""


class AdaptiveAttack(BaseModel):
    """``inner`` with its matching term fitted to the defense, over several rounds, and what is done with its images.

    The matching term reaches the inner attack through the observation (:attr:`Observation.matching`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    inner: SerializeAsAny[BaseModel]
    adaptive: AdaptiveSettings
    contrast: bool

    @property
    def _attack(self) -> Attack:
        return self.inner  # type: ignore[return-value]

    @property
    def needs(self) -> frozenset[Knowledge]:
        """What the inner attack needs, the defense, and the rounds before where they are used."""
        added: frozenset[Knowledge] = frozenset({"defense"})
        if self.adaptive.rounds > 1:
            added |= {"earlier rounds"}
        if self.adaptive.denoiser == "learned":
            added |= {"public images"}
        return self._attack.needs | added

    @property
    def longest_unroll(self) -> int:
        """The inner attack's; :class:`AttributeError` where it has none."""
        unroll: int = self.inner.longest_unroll  # type: ignore[attr-defined]
        return unroll

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: every round takes as many."""
        return self._attack.steps() * self.adaptive.rounds

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from each round, at the usual contrast, take off the noise, average, and denoise.

        The matching loss and its history are those of the attacked round, before anything is averaged.

        Raises:
            ThreatModelError: where the defense, or the rounds before, are not granted.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, f"adaptive {self.name}")
        chosen, notes = self.adaptive, list[str]()
        seen = self._rounds(observation)
        missing = chosen.rounds - len(seen)
        if missing:
            notes.append(f"{len(seen)} of {chosen.rounds} rounds: no more were kept, or had been")
            if task:
                task.advance(missing * self._attack.steps())
        found = [self._of_round(each, observation, seed, task) for each in seen]
        # An attack that finds another number of images in another round cannot say which they are.
        alike = [number for number, each in enumerate(found) if each.images.shape == found[-1].images.shape]
        learnt = None
        if chosen.denoiser == "learned" and can_learn(observation):
            if task:
                task.advance(0, "learning to remove the noise")
            learnt = learned_remover([seen[number] for number in alike])
        if self.contrast and is_left_to_chance(self._attack.needs, observation):
            usual = learnt.contrast if learnt else observation.usual_contrast
            found = [with_contrast(one, each, usual, seed) for one, each in zip(found, seen, strict=True)]
        attacked = found[-1]
        # Round by round: the mean has less noise than the defense adds in any of them.
        cleaned = [
            one.images if learnt else self._without_noise(one, each, seed, notes)
            for one, each in zip(found, seen, strict=True)
        ]
        images = cleaned[-1]
        if len(found) > 1:
            images = average_over_rounds(
                [cleaned[number] for number in alike], [found[number].labels for number in alike]
            )
            notes.append(f"the mean of the reconstructions of {len(alike)} rounds")
        if learnt:
            images = learnt.remover.remove(images.cpu(), attacked.labels.cpu()).estimates.to(images)
            notes.append("the noise removed by a network that learned it on public images")
        elif chosen.denoiser != "none":
            name = WHERE_NOTHING_IS_LEARNT if chosen.denoiser == "learned" else chosen.denoiser
            images = denoise(images, name)
            notes.append(f"denoised: {name}")
        return Reconstruction(
            images,
            attacked.labels,
            attacked.matching_loss,
            sum(each.iterations for each in found),
            time.perf_counter() - started,
            attacked.history,
            (*attacked.notes, *notes),
        )

    def _rounds(self, observation: Observation) -> Sequence[Observation]:
        """The rounds used, oldest first and the attacked one last."""
        if self.adaptive.rounds == 1:
            return (observation,)
        return (*observation.earlier[-(self.adaptive.rounds - 1) :], observation)

    def _of_round(self, seen: Observation, attacked: Observation, seed: int, task: Task | None) -> Reconstruction:
        # Another start for every round: what the start leaves behind is averaged out as well.
        own = seed if seen is attacked else seed_for(seed, "earlier round", seen.update.round)
        if not self.adaptive.matching:
            return self._attack.reconstruct(seen, seed=own, task=task)
        fitted = adaptation_of(seen, self.adaptive.draws)
        found = self._attack.reconstruct(replace(seen, matching=fitted), seed=own, task=task)
        if fitted.notes and fitted.notes[0] not in found.notes:
            unused = "this attack compares no updates: no matching term was fitted to the defense"
            return replace(found, notes=(*found.notes, unused))
        return found

    def _without_noise(
        self, found: Reconstruction, observation: Observation, seed: int, notes: list[str]
    ) -> Float[Tensor, "n c h w"]:
        images, parts = found.images, observation.defense.parts()
        noisy = [part for part in parts if DEFENSES[part].adds_noise_to_images]
        if not noisy or not self.adaptive.subtract_noise or not images.isfinite().all():
            return images
        if not observation.grants("generator"):
            _note_once(notes, "no generator is granted: the expected noise cannot be subtracted")
            return images
        rounds = observation.rounds
        if rounds is None:
            rounds = observation.update.round + 1
            _note_once(notes, f"the number of rounds is not known: taken as {rounds}")
        _note_once(notes, "the noise that the defense is expected to add is subtracted")
        for part in reversed(noisy):
            images = subtract_expected_noise(
                images, found.labels, observation, DEFENSES[part], parts[part], rounds=rounds, seed=seed
            )
        return images


def _note_once(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)
