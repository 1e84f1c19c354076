"""A remover that is trained on pairs of the attacker's own making."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from shadow_defense.attacks.removers.remover import Removal, Remover
from shadow_defense.attacks.removers.unet import UNet
from shadow_defense.placement import CPU, device_of
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator, seed_for

WIDTH, STEPS, BATCH_SIZE, LEARNING_RATE = 24, 700, 32, 2e-3

TRAINING = "training a remover"
"""Of the progress task."""

Protect = Callable[[Tensor, list[torch.Generator]], Tensor]
"""The attacker's copy of the defense: clean images and draws to protected images."""


class LearnedRemover(Remover):
    """``R(x') + U(x', R(x'), label)``: a U-Net that corrects another remover R; its doubt is by how much.

    Trained on public images, each protected anew by the attacker's own copy with draws of its own. The network computes
    where it lies; images come from the host's memory and go back there.
    """

    def __init__(self, name: str, first: Remover, network: UNet, scale: float, classes: int) -> None:
        self.name, self.first, self.network, self.scale, self.classes = name, first, network, scale, classes

    def remove(self, protected: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Removal:
        before = self.first.remove(protected, labels).estimates
        with torch.no_grad():
            corrections = [
                self.correction(*part).cpu()
                for part in zip(protected.split(256), before.split(256), labels.split(256), strict=True)
            ]
        correction = torch.cat(corrections)
        return Removal((before + correction).clamp(0, 1), correction.square().mean(dim=(1, 2, 3)))

    def correction(
        self, protected: Float[Tensor, "n c h w"], before: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """U, where it lies: it reads x' at a deviation of about 1, its first removal, a plane for each class."""
        known = F.one_hot(labels, self.classes).float()[:, :, None, None].expand(-1, -1, *protected.shape[2:])
        planes = torch.cat([(protected - 0.5) / self.scale, 4 * (before - 0.5), known], dim=1)
        return self.network(planes.to(device_of(self.network)))


Pairs = Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]]
"""A batch of protected images, the clean ones and their labels, drawn from a generator."""


def pairs_of_own_making(protect: Protect, public: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Pairs:
    """Public images, protected anew each time by the attacker's copy of the defense."""

    def drawn(draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(public), (BATCH_SIZE,), generator=draws)
        # One stream for a batch: the draws need not be frozen here, only anew each time.
        return protect(public[chosen], [draws] * BATCH_SIZE), public[chosen], labels[chosen]

    return drawn


def pairs_found(
    protected: Float[Tensor, "n c h w"], clean: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]
) -> Pairs:
    """Protected images whose clean ones the attacker came by."""

    def drawn(draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(clean), (BATCH_SIZE,), generator=draws)
        return protected[chosen], clean[chosen], labels[chosen]

    return drawn


def train_remover(
    first: Remover,
    pairs: Pairs,
    classes: int,
    *,
    seed: int,
    steps: int = STEPS,
    name: str = "learned",
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> LearnedRemover:
    """Train a :class:`LearnedRemover` with Adam on the squared error, from scratch, on ``device``."""
    some, clean, _ = pairs(named_generator(seed, "scale"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(seed, "remover"))
        network = UNet(2 * clean.shape[1] + classes, clean.shape[1], WIDTH).to(device)
    remover = LearnedRemover(name, first, network, float(some.std()), classes)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    task = (progress or Progress()).start(TRAINING, steps)
    for step in range(steps):
        with torch.no_grad():
            protected, clean, known = pairs(named_generator(seed, "remover", "batch", step))
            before = first.remove(protected, known).estimates
        corrected = before.to(device) + remover.correction(protected, before, known)
        loss = F.mse_loss(corrected, clean.to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        task.advance(note=f"{loss.item():.4f}")
    task.finish()
    network.eval().requires_grad_(False)
    return remover
