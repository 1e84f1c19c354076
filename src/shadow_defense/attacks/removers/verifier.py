"""Whether a protected image and a clean one are of the same patient, told by a network that is trained to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.metrics.confidence import mean_interval
from shadow_defense.metrics.linkage import patient_ranks_above
from shadow_defense.placement import CPU, device_of
from shadow_defense.progress import Progress
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White
from shadow_defense.seeds import named_generator, seed_for

WIDTH, LENGTH, PATIENTS, LEARNING_RATE, TEMPERATURE = 16, 64, 32, 2e-3, 0.1
"""Of the networks, their embeddings, and a batch: so many patients, two images each."""

LEAST_PATIENTS = 40
"""With two images at least; of fewer nothing is learnt."""

WEAK = 0.05
"""Deviation of the white noise in which patients must be found."""


class Verifier:
    """``s(x', x) = <f(x', R(x')), g(x)>``, R the linear removal; both networks are trained on protected images.

    After Packhäuser et al. 2023 ("Deep learning-based anonymization of chest radiographs", arXiv 2209.11531), who train
    the verifier again on what is anonymised; with the contrastive loss of van den Oord et al. 2018.
    """

    def __init__(self, texture: Texture, channels: int, seed: int, device: torch.device = CPU) -> None:
        self.texture = texture
        self.removal = LinearRemover(texture.whitening, texture.view()).removal
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_for(seed, "verifier"))
            self.probe, self.clean = _embedding(2 * channels).to(device), _embedding(channels).to(device)

    def similarity(
        self, protected: Float[Tensor, "n c h w"], gallery: Float[Tensor, "m c h w"]
    ) -> Float[Tensor, "n m"]:
        """Of every protected image to every clean one, from -1 to 1."""
        with torch.no_grad():
            seen, known = (
                torch.cat([of(part).cpu() for part in images.split(256)])
                for of, images in ((self.of_protected, protected), (self.of_clean, gallery))
            )
        return seen @ known.T

    def of_protected(self, protected: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e"]:
        """f, of length 1."""
        removed = self.removal.images([protected])
        both = torch.cat([protected.clamp(-1, 2) - 0.5, 4 * (removed - 0.5)], dim=1)
        return F.normalize(self.probe(both.to(device_of(self.probe))), dim=1)

    def of_clean(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e"]:
        """g, of length 1."""
        return F.normalize(self.clean(4 * (images - 0.5).to(device_of(self.clean))), dim=1)


def train_verifier(
    texture: Texture, knowledge: Knowledge, *, seed: int, steps: int, progress: Progress | None = None
) -> Verifier | None:
    """From public images of known patients, protected anew each time; None where too few patients have two images.

    In a batch each patient's protected image has to find its other, clean one among all patients'.
    """
    images, several = knowledge.images, patients_of_several(knowledge.groups or ())
    if len(several) < LEAST_PATIENTS:
        return None
    verifier = Verifier(texture, images.shape[1], seed, knowledge.device)
    parameters = [*verifier.probe.parameters(), *verifier.clean.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    own = torch.arange(min(PATIENTS, len(several)), device=knowledge.device)
    task = (progress or Progress()).start("training a verifier of patients", steps)
    for step in range(steps):
        draws = named_generator(seed, "verifier", step)
        chosen = torch.randperm(len(several), generator=draws)[: len(own)]
        pairs = torch.stack(
            [several[place][torch.randperm(len(several[place]), generator=draws)[:2]] for place in chosen.tolist()]
        )
        protected = texture.protect(images[pairs[:, 0]], [draws] * len(own))
        logits = verifier.of_protected(protected) @ verifier.of_clean(images[pairs[:, 1]]).T / TEMPERATURE
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        task.advance(note=f"{loss.item():.3f}")
    task.finish()
    return verifier


def finds_patients_in_weak_noise(texture: Texture, knowledge: Knowledge, *, seed: int, steps: int) -> bool:
    """The planted break: so trained on three patients of four, the rest are told apart under noise of :data:`WEAK`."""
    groups = knowledge.groups or ()
    names = list(dict.fromkeys(groups))
    held = {name for place, name in enumerate(names) if place % 4 == 0}
    known = torch.tensor([name not in held for name in groups])
    weak = White(texture.whitening, WEAK)
    verifier = train_verifier(weak, knowledge.subset(known), seed=seed, steps=steps)
    if verifier is None:
        return False
    left = knowledge.subset(~known)
    draws = [named_generator(seed, "verifier", "weak", place) for place in range(len(left.images))]
    similarity = verifier.similarity(weak.protect(left.images, draws), left.images)
    ranks = patient_ranks_above(similarity, torch.arange(len(left.images)), left.groups or ())
    interval = mean_interval(ranks.tolist()).interval if len(ranks) else None
    return interval is not None and interval[0] > 0.5


def patients_of_several(groups: Sequence[str]) -> list[Int64[Tensor, " _"]]:
    """The places of each patient's images, of patients who have two at least."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(groups):
        places.setdefault(name, []).append(place)
    return [torch.tensor(each) for each in places.values() if len(each) > 1]


def _embedding(channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((channels, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, 4 * WIDTH)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * WIDTH, LENGTH))
