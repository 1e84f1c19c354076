"""Learning to Invert (Wu et al. 2023; docs/attacks.md): a network learns to read images off updates."""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from shadow_defense.attacks.gradient_features import FeatureHashing, Standardisation
from shadow_defense.attacks.inversion_network import Examples, learn, matched_error
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.simulated_clients import (
    Pool,
    draw_clients,
    image_pools,
    simulated_defense,
    simulated_updates,
)
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.data.dataset import ImageSet
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import DataError
from shadow_defense.metrics.psnr import decibels
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class LearningToInvert(BaseModel):
    """The attack's settings; the defaults are made for one processor core, far below the published scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"public images", "local training"})

    updates: int = Field(
        2000,
        ge=2,
        le=1_000_000,
        description="simulated updates to learn from, at most one for each single image that is not defended; "
        "published: 50000",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="share of images and updates that choose the epoch")
    features: int = Field(
        2048,
        ge=1,
        le=1_000_000,
        description="bins that the update is hashed to; published: none for small models, else more",
    )
    hidden: int = Field(
        1000, ge=1, le=65_536, description="width of the two hidden layers; published: 3000, for 4 images 10000"
    )
    epochs: int = Field(
        40, ge=1, le=100_000, description="passes over the simulated updates; published: 200, for 4 images 5000"
    )
    batch_size: int = Field(32, ge=1, le=4096, description="simulated updates in a step; published: 256")
    learning_rate: float = Field(
        3e-4, gt=0, description="of Adam, a tenth in the last quarter; published: 1e-4, with fifty times the steps"
    )
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    def steps(self) -> int:
        """Simulated updates and epochs of a whole attack, for progress."""
        return self.updates + self.epochs

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Learn ``argmin_f E ||f(T(U(x))) - x||^2`` on auxiliary images x, then return ``f`` of the observed update.

        U is the client's training from this global model, T its defense where that is granted. Simulated clients hold
        images of the client's own labels, as granted or recovered. The epoch is chosen on held-out auxiliary images;
        the client's enter nowhere.

        Raises:
            ThreatModelError: where auxiliary images or the local training are not granted.
            DataError: for fewer than two auxiliary images, or images of another size.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "learning-to-invert")
        auxiliary = _checked(observation)
        objective = MatchingObjective(
            observation,
            matching=cosine_distance,
            prior=lambda images: images.new_zeros(()),
            longest_unroll=self.longest_unroll,
        )
        target = objective.target
        defense, notes = simulated_defense(observation)
        pools, own = image_pools(auxiliary.labels, target.labels.cpu())
        if not own:
            notes = (*notes, "fewer than two auxiliary images of a label: all of them stand in for every label")
        draws = named_generator(seed, "learning to invert")
        kept, left = zip(*(pool.split(self.held_out, draws) for pool in pools), strict=True)
        held_out = max(1, round(self.held_out * self.updates))
        clients = [
            draw_clients(some, self._useful(some, count, defense), draws)
            for some, count in ((kept, max(1, self.updates - held_out)), (left, held_out))
        ]
        observed = torch.cat([tensor.flatten() for tensor in target.observed]).unsqueeze(0)
        hashing = FeatureHashing.drawn(observed.shape[1], self.features, seed)
        hashed = []
        for updates in simulated_updates(observation, target, auxiliary, torch.cat(clients), defense, seed):
            hashed.append(hashing(updates))
            if task is not None:
                task.advance(len(updates), note="simulating clients")
        sizes = [len(some) for some in clients]
        if task is not None:
            task.advance(self.updates - sum(sizes))
        features = torch.cat(hashed)
        standardised = Standardisation.measured(features[: sizes[0]])
        training, chosen = (
            Examples(rows, auxiliary.unit_images()[some].flatten(2).to(observation.device))
            for rows, some in zip(standardised(features).split(sizes), clients, strict=True)
        )
        learned = learn(
            training,
            chosen,
            target.labels,
            hidden=self.hidden,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=seed,
            task=task,
        )
        with torch.no_grad():
            images = learned.network(standardised(hashing(observed)))[0].view(-1, *observation.image_shape)
        with objective:
            matched = objective(observation.normalisation.apply(images).unsqueeze(0)).matching
        baseline = matched_error(training.images.mean(0).expand_as(chosen.images), chosen.images, target.labels)
        error = torch.tensor(learned.held_out[learned.epoch - 1])
        learned_from = (
            f"learned from {sizes[0]} simulated updates; after epoch {learned.epoch} of {self.epochs} images left out "
            f"are met to {float(decibels(error)):.1f} dB, by their mean to {float(decibels(baseline)):.1f} dB"
        )
        return Reconstruction(
            images,
            target.labels,
            float(matched[0]),
            self.epochs,
            time.perf_counter() - started,
            learned.held_out[:: -(-self.epochs // 100)],
            (*objective.notes, *notes, learned_from),
        )

    def _useful(self, pools: tuple[Pool, ...], count: int, defense: DefenseSettings | None) -> int:
        """One image alone, undefended, always sends the same: it is simulated once."""
        (first, *others) = pools
        alone = not others and len(first.places) == 1
        return min(count, len(first.images)) if alone and defense is None else count


def _checked(observation: Observation) -> ImageSet:
    auxiliary = observation.auxiliary
    if len(auxiliary) < 2:
        raise DataError(
            f"learning-to-invert was given {len(auxiliary)} auxiliary images: expected 2 or more, to learn from some "
            "and to choose by others; give more public images"
        )
    shape = tuple(auxiliary.images.shape[1:])
    if shape != observation.image_shape:
        raise DataError(
            f"auxiliary images have shape {shape} and the client's {observation.image_shape}: "
            "bring them to the same size"
        )
    return auxiliary


LEARNING_TO_INVERT = AttackKind(
    "learning-to-invert",
    "a network that learned to read images off simulated updates (Wu et al. 2023)",
    LearningToInvert,
)
