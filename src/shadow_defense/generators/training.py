"""GAN pre-training of the shadow generator on public images (step 1 of spec/shadow_defense.md)."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError
from shadow_defense.files import flatten_tensors, nest_tensors, read_tensors, write_tensors
from shadow_defense.generators.adversarial import discriminator_loss, generator_loss, move_average, r1_penalty
from shadow_defense.generators.build import build_networks, covering_size, save_generator
from shadow_defense.generators.grid import save_grid
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    return {str(index): entry for index, entry in optimiser.state_dict()["state"].items()}


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Any]) -> None:
    state = optimiser.state_dict()
    state["state"] = {int(index): entry for index, entry in tensors.items()}
    optimiser.load_state_dict(state)


class GanTraining:
    """Generator, discriminator, the average that is kept, and their optimisers; one call of :meth:`step` a batch.

    Every draw of step i comes from a generator named by i, so a training resumed at any step goes on as if it
    had not stopped.
    """

    def __init__(self, settings: GeneratorSettings, *, image_size: int, channels: int, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.generator, self.discriminator = build_networks(
            settings.name,
            image_size=image_size,
            channels=channels,
            z_dim=settings.z_dim,
            width=settings.width,
            seed=seed,
        )
        self.generator.train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.generator_optimiser, self.discriminator_optimiser = (
            torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=(0.5, 0.99))
            for network in (self.generator, self.discriminator)
        )
        self.steps_done = 0

    def step(self, public: UInt8[Tensor, "n c h w"]) -> dict[str, float]:
        """One generator step and one discriminator step; returns the losses."""
        settings, index = self.settings, self.steps_done
        draws = named_generator(self.seed, "gan", index)
        latents = torch.randn(2, settings.batch_size, settings.z_dim, generator=draws)
        chosen = torch.randint(len(public), (settings.batch_size,), generator=draws)
        real = as_generator_images(public[chosen], self.generator.image_size)

        self.discriminator.requires_grad_(False)
        loss_g = generator_loss(self.discriminator(self.generator(latents[0])))
        self._apply(self.generator_optimiser, loss_g)

        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self.generator(latents[1])
        loss_d = discriminator_loss(self.discriminator(real), self.discriminator(fake))
        total, penalty = loss_d, torch.zeros(())
        if settings.r1_gamma > 0 and index % settings.r1_every == 0:
            penalty = r1_penalty(self.discriminator, real)
            total = loss_d + 0.5 * settings.r1_gamma * settings.r1_every * penalty
        self._apply(self.discriminator_optimiser, total)

        # Early on a long average would hold on to the untrained weights: it grows with what was seen.
        half_life = min(settings.average_half_life, max(0.05 * (index + 1) * settings.batch_size, 1.0))
        move_average(self.average, self.generator, 0.5 ** (settings.batch_size / half_life))
        self.steps_done += 1
        return {"generator": loss_g.item(), "discriminator": loss_d.item(), "r1": penalty.item()}

    @staticmethod
    def _apply(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "generator_optimiser": _optimiser_tensors(self.generator_optimiser),
            "discriminator_optimiser": _optimiser_tensors(self.discriminator_optimiser),
            "steps_done": torch.tensor(self.steps_done),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        networks: tuple[tuple[str, nn.Module], ...] = (
            ("generator", self.generator),
            ("discriminator", self.discriminator),
            ("average", self.average),
        )
        for name, network in networks:
            network.load_state_dict(state[name])
        _restore_optimiser(self.generator_optimiser, state.get("generator_optimiser", {}))
        _restore_optimiser(self.discriminator_optimiser, state.get("discriminator_optimiser", {}))
        self.steps_done = int(state["steps_done"])


def as_generator_images(images: UInt8[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c s s"]:
    """Bytes to [-1, 1] at the generator's size."""
    scaled = images.float() / 127.5 - 1
    if scaled.shape[-2:] != (size, size):
        scaled = F.interpolate(scaled, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return scaled


def pretrain(
    settings: GeneratorSettings,
    public: UInt8[Tensor, "n c h w"],
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> Generator:
    """Train a generator on public images, or go on where an earlier call stopped; returns the averaged weights.

    Writes to ``folder``: ``generator.safetensors`` (the result), ``checkpoint.safetensors`` (to resume), and
    ``grid-<step>.png`` with samples of fixed latent codes.

    Raises:
        GeneratorError: when there are no public images, the checkpoint is another generator's, or training diverges.
    """
    if len(public) == 0:
        raise GeneratorError("no public images to train the shadow generator on: set data.public_fraction above 0")
    size = settings.image_size or covering_size(settings.name, max(public.shape[-2:]))
    training = GanTraining(settings, image_size=size, channels=public.shape[1], seed=seed)
    checkpoint = folder / "checkpoint.safetensors"
    losses: list[dict[str, float]] = []
    if checkpoint.exists():
        tensors, metadata = read_tensors(checkpoint, "delete it to begin the pre-training anew")
        try:
            training.load_state_dict(nest_tensors(tensors))
            losses = metadata["losses"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise GeneratorError(
                f"{checkpoint} is of another generator: restore the generator's settings or delete the file"
            ) from error

    def save() -> None:
        write_tensors(checkpoint, flatten_tensors(training.state_dict()), {"losses": losses})
        codes = torch.randn(32, settings.z_dim, generator=named_generator(seed, "grid"))
        with torch.no_grad():
            samples = training.average(codes)
        save_grid(folder / f"grid-{training.steps_done:06d}.png", (samples + 1) / 2)

    task = (progress or Progress()).start("pre-training the shadow generator", settings.steps)
    task.advance(training.steps_done)
    while training.steps_done < settings.steps:
        last = training.step(public)
        if not all(map(math.isfinite, last.values())):
            raise GeneratorError(
                f"GAN training diverged at step {training.steps_done}: lower generator.learning_rate or raise r1_gamma"
            )
        task.advance(note=f"G {last['generator']:.2f}  D {last['discriminator']:.2f}")
        if training.steps_done % settings.save_every == 0 or training.steps_done == settings.steps:
            losses.append({"step": training.steps_done, **last})
            save()
    task.finish()
    if settings.steps == 0:
        save()
    record = {"images": len(public), "steps": settings.steps, "seed": seed, "losses": losses}
    save_generator(folder / "generator.safetensors", training.average, settings.name, record)
    return training.average
