"""GAN pre-training of the shadow generator on public images (step 1 of docs/method.md)."""

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
from shadow_defense.generators.augmentation import adapted_probability, augment
from shadow_defense.generators.build import (
    architecture,
    build_networks,
    covering_size,
    load_generator,
    save_generator,
)
from shadow_defense.generators.grid import save_grid
from shadow_defense.generators.held_out import HeldOut, hold_out
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.recipe import plan_training
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.stylegan3.blur import blur, fading_sigma
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator

ADAPTED_EVERY = 4
"""Steps between changes of ADA's probability."""

PRETRAINING = "pre-training the shadow generator"
"""The name under which progress is reported, one step a training step."""


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    return {str(index): entry for index, entry in optimiser.state_dict()["state"].items()}


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Any]) -> None:
    state = optimiser.state_dict()
    state["state"] = {int(index): entry for index, entry in tensors.items()}
    optimiser.load_state_dict(state)
    for parameter, moments in optimiser.state.items():
        for name, moment in moments.items():
            if moment.shape == parameter.shape:
                # A fused step reads memory in its order: moments have to lie as their parameter does.
                moments[name] = torch.empty_like(parameter).copy_(moment)


class GanTraining:
    """Generator, discriminator, the average that is kept, and their optimisers; one call of :meth:`step` a batch.

    Every draw of step i comes from a generator named by i, so a training resumed at any step goes on as if it
    had not stopped.
    """

    def __init__(
        self,
        settings: GeneratorSettings,
        *,
        image_size: int,
        channels: int,
        seed: int,
        device: torch.device = CPU,
    ) -> None:
        self.settings, self.seed, self.device = settings, seed, device
        self.generator, self.discriminator = build_networks(
            settings, image_size=image_size, channels=channels, seed=seed
        )
        recipe = architecture(settings.name).recipe
        for network in (self.generator, self.discriminator):
            network.to(device)
            if recipe.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator.train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.plan = plan_training(recipe, settings, image_size)
        self.generator_optimiser = torch.optim.Adam(
            self.generator.parameters(), lr=self.plan.generator_rate, betas=self.plan.generator_betas, fused=True
        )
        self.discriminator_optimiser = torch.optim.Adam(
            self.discriminator.parameters(),
            lr=self.plan.discriminator_rate,
            betas=self.plan.discriminator_betas,
            fused=True,
        )
        self.steps_done = 0
        self._penalty = 0.0
        self.augmentation = settings.augmentation_probability if settings.augmentation != "none" else 0.0
        self._signs: list[float] = []

    def step(self, public: UInt8[Tensor, "n c h w"]) -> dict[str, float]:
        """One generator step, one discriminator step and, where due, the gradient penalty.

        Returns the losses: ``generator``, ``discriminator``, ``r1`` as it was when last due, and ``augmentation``,
        the probability, where there is any.
        """
        settings, plan, index = self.settings, self.plan, self.steps_done
        draws = named_generator(self.seed, "gan", index)
        z_dim = self.generator.z_dim
        latents = torch.randn(2, settings.batch_size, z_dim, generator=draws).to(self.device)
        chosen = torch.randint(len(public), (settings.batch_size,), generator=draws)
        real = as_generator_images(public[chosen].to(self.device), self.generator.image_size)
        sigma = fading_sigma(index * settings.batch_size, settings.batch_size) if plan.fading_blur else 0.0

        def judge(images: Tensor) -> Tensor:
            logits: Tensor = self.discriminator(augment(blur(images, sigma), self.augmentation, draws))
            return logits

        self.discriminator.requires_grad_(False)
        loss_g = generator_loss(judge(self.generator(latents[0])))
        self._apply(self.generator_optimiser, loss_g)

        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self.generator.training_images(latents[1])
        real_logits = judge(real)
        loss_d = discriminator_loss(real_logits, judge(fake))
        due = plan.r1_gamma > 0 and index % plan.r1_every == 0
        if due and not plan.own_penalty_step:
            penalty = r1_penalty(judge, real)
            self._penalty = penalty.item()
            self._apply(self.discriminator_optimiser, loss_d + 0.5 * plan.r1_gamma * plan.r1_every * penalty)
        else:
            self._apply(self.discriminator_optimiser, loss_d)
        if due and plan.own_penalty_step:
            penalty = r1_penalty(judge, real)
            self._penalty = penalty.item()
            self._apply(self.discriminator_optimiser, 0.5 * plan.r1_gamma * plan.r1_every * penalty)
        self._adapt(real_logits.detach())

        # Early on a long average would hold on to the untrained weights: it grows with what was seen.
        half_life = plan.half_life
        if settings.begin_from is None:
            half_life = min(half_life, max(0.05 * (index + 1) * settings.batch_size, 1.0))
        move_average(self.average, self.generator, 0.5 ** (settings.batch_size / half_life))
        self.steps_done += 1
        losses = {"generator": loss_g.item(), "discriminator": loss_d.item(), "r1": self._penalty}
        return losses if settings.augmentation == "none" else {**losses, "augmentation": self.augmentation}

    def _adapt(self, real_logits: Float[Tensor, " n"]) -> None:
        if self.settings.augmentation != "adaptive":
            return
        self._signs.append(real_logits.sign().mean().item())
        if len(self._signs) == ADAPTED_EVERY:
            self.augmentation = adapted_probability(
                self.augmentation,
                sum(self._signs) / ADAPTED_EVERY,
                ADAPTED_EVERY * self.settings.batch_size,
                speed_images=500_000 if self.settings.begin_from is None else 100_000,
            )
            self._signs.clear()

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
            "penalty": torch.tensor(self._penalty, dtype=torch.float64),
            "augmentation": torch.tensor([self.augmentation, *self._signs], dtype=torch.float64),
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
        self._penalty = state["penalty"].item()
        self.augmentation, *self._signs = state["augmentation"].tolist()


def as_generator_images(images: UInt8[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c s s"]:
    """Bytes to [-1, 1] at the generator's size."""
    scaled = images.float() / 127.5 - 1
    if scaled.shape[-2:] != (size, size):
        scaled = F.interpolate(scaled, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return scaled


def _own_size(settings: GeneratorSettings) -> int | None:
    return None if settings.begin_from is None else load_generator(settings.begin_from).image_size


def _diverged(step: int) -> GeneratorError:
    return GeneratorError(f"GAN training diverged at step {step}: lower generator.learning_rate or raise r1_gamma")


def pretrain(
    settings: GeneratorSettings,
    public: UInt8[Tensor, "n c h w"],
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> Generator:
    """Train a generator on public images, or go on where an earlier call stopped; returns the averaged weights.

    With ``settings.patience`` it ends where held-out images are approached no more, with the weights that came nearest
    (:mod:`~shadow_defense.generators.held_out`).

    Writes to ``folder``: ``generator.safetensors`` (the result), ``checkpoint.safetensors`` (to resume), and
    ``grid-<step>.png`` with samples of fixed latent codes.

    Raises:
        GeneratorError: when there are no public images, or too few to hold some out, the checkpoint is another
            generator's, or training diverges.
    """
    if len(public) == 0:
        raise GeneratorError("no public images to train the shadow generator on: set data.public_fraction above 0")
    size = settings.image_size or _own_size(settings) or covering_size(settings.name, max(public.shape[-2:]))
    training = GanTraining(settings, image_size=size, channels=public.shape[1], seed=seed, device=device)
    held_out: HeldOut | None = None
    if settings.patience:
        public, held = hold_out(public)
        held_out = HeldOut(as_generator_images(held.to(device), size), settings.patience, seed)
    checkpoint = folder / "checkpoint.safetensors"
    losses: list[dict[str, float]] = []
    if checkpoint.exists():
        tensors, metadata = read_tensors(checkpoint, "delete it to begin the pre-training anew")
        try:
            state = nest_tensors(tensors)
            training.load_state_dict(state)
            losses = metadata["losses"]
            if held_out:
                held_out.best = state["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise GeneratorError(
                f"{checkpoint} is of another generator: restore the generator's settings or delete the file"
            ) from error

    def save() -> None:
        if not all(torch.isfinite(tensor).all() for tensor in training.average.state_dict().values()):
            raise _diverged(training.steps_done)
        best = {"best": held_out.best} if held_out else {}
        write_tensors(checkpoint, flatten_tensors({**training.state_dict(), **best}), {"losses": losses})
        codes = torch.randn(32, training.generator.z_dim, generator=named_generator(seed, "grid"))
        with torch.no_grad():
            samples = training.average(codes.to(device)).cpu()
        save_grid(folder / f"grid-{training.steps_done:06d}.png", (samples + 1) / 2)

    task = (progress or Progress()).start(PRETRAINING, settings.steps)
    task.advance(training.steps_done)
    while training.steps_done < settings.steps and not (held_out and held_out.ends(losses)):
        last = training.step(public)
        if not all(map(math.isfinite, last.values())):
            raise _diverged(training.steps_done)
        task.advance(note=f"G {last['generator']:.2f}  D {last['discriminator']:.2f}")
        if training.steps_done % settings.save_every == 0 or training.steps_done == settings.steps:
            losses.append({"step": training.steps_done, **last})
            if held_out:
                held_out.measure(training.average, losses)
            save()
    task.finish()
    if settings.steps == 0:
        save()
    if held_out and held_out.best:
        training.average.load_state_dict(held_out.best)
    record = {"images": len(public), "steps": training.steps_done, "seed": seed, "losses": losses}
    average = training.average.cpu()
    save_generator(folder / "generator.safetensors", average, settings.name, record)
    return average
