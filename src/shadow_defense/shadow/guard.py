"""Shadow Defense as one object for any training loop: clean batch in, protected batch out.

guard = ShadowGuard(generator, ShadowSettings(), mean=(0.5,), std=(0.25,))
for images, labels, sample_ids in loader:
    images = guard.protect(images, labels, sample_ids, model=local_model, global_model=global_model,
                           loss_fn=loss_fn, round=r, rounds=R)
    ...the loop's own step...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DataError, DefenseError, GeneratorError
from shadow_defense.generators.interface import as_generator, check_generator, private_copy
from shadow_defense.models.functional import LossFunction, training_mode
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.checks import check_batch, check_state, pack_space
from shadow_defense.shadow.encoding import encode_samples
from shadow_defense.shadow.foreground import class_activation_maps, find_cam_layer, spare_foreground, sparing_strength
from shadow_defense.shadow.momentum import blend
from shadow_defense.shadow.noise import noise_amplitude, scale_noise, shuffle_noise, uniform_noise
from shadow_defense.shadow.protection import Protection
from shadow_defense.shadow.pseudo_attack import learning_rate_for, pseudo_attack
from shadow_defense.shadow.rendering import render
from shadow_defense.shadow.sample_store import pack_samples, unpack_samples
from shadow_defense.shadow.settings import ShadowSettings
from shadow_defense.shadow.spread import spread
from shadow_defense.shadow.victim import victim_signals
from shadow_defense.shadow.vulnerability import reconstruction_error, vulnerability_map

ENCODED_AT_ONCE = 64
"""Images a batch of latent inversion: codes do not depend on it, memory does."""


class ShadowGuard:
    """Protects batches with a shadow generator; one guard a client, kept for the whole run.

    The generator is copied and the models are only read: they run with other tensors in place of their own. Gradients,
    buffers, modes, hooks and the global random state of the caller stay as they were.

    Args:
        generator: any module from latent codes (n, z_dim) to images in [-1, 1]; shared between guards if wanted.
        settings: the knobs of the nine steps.
        mean, std: per-channel normalisation of the images given to :meth:`protect`; the defaults mean [-1, 1].
        seed: of the latent codes' starting points and of the control placements.
        z_dim: length of a latent code, where the generator has no attribute of that name.

    Raises:
        GeneratorError: a generator without parameters, or without the latent space of the settings.
    """

    def __init__(
        self,
        generator: nn.Module,
        settings: ShadowSettings = ShadowSettings(),
        *,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        seed: int = 0,
        z_dim: int | None = None,
    ) -> None:
        self.generator = as_generator(private_copy(generator), z_dim)
        self.generator.check_space(settings.latent_space)
        self.settings = settings
        self.normalisation = Normalisation(tuple(mean), tuple(std))
        self.seed = seed
        self.synthesis = {
            name: parameter.detach().clone() for name, parameter in self.generator.synthesis_parameters().items()
        }
        if not self.synthesis:
            raise GeneratorError("the generator has no parameters to fine-tune: give a trained network")
        self.latents: dict[str, Tensor] = {}
        self.noise_maps: dict[str, Tensor] = {}
        self.batches_protected = 0
        self._draws = named_generator(seed, "shadow noise")
        self._cam_layer = settings.cam_layer

    def protect(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, "n"],
        sample_ids: Sequence[str],
        *,
        model: nn.Module,
        global_model: nn.Module | Mapping[str, Tensor],
        loss_fn: LossFunction,
        round: int,
        rounds: int,
    ) -> Float[Tensor, "n c h w"]:
        """The protected images of :meth:`examine`, to train on with the true labels."""
        return self.examine(
            images,
            labels,
            sample_ids,
            model=model,
            global_model=global_model,
            loss_fn=loss_fn,
            round=round,
            rounds=rounds,
        ).images

    def examine(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, "n"],
        sample_ids: Sequence[str],
        *,
        model: nn.Module,
        global_model: nn.Module | Mapping[str, Tensor],
        loss_fn: LossFunction,
        round: int,
        rounds: int,
    ) -> Protection:
        """Steps 2 to 9 of docs/method.md on one batch.

        Args:
            images: clean and normalised with this guard's mean and std.
            labels: true class of each image.
            sample_ids: a stable name for each image; codes and maps are kept under it.
            model: the local model as it stands before the step, in the mode it trains in.
            global_model: this round's global model, or its state dict.
            loss_fn: the loss of the training step, from (logits, labels) to a scalar.
            round, rounds: r (0-based) and R.

        Raises:
            DataError: images with NaN or infinity, wrong shape, repeated or missing sample ids, labels out of range.
            GeneratorError: a generator whose channels or size don't fit the images.
            DefenseError: a pseudo attack that diverged; no map and no generator was changed.
        """
        settings = self.settings
        sample_ids = tuple(sample_ids)
        check_batch(images, labels, sample_ids, round, rounds, self.normalisation)
        check_generator(self.generator, images.shape[1], (images.shape[2], images.shape[3]))
        rebuilt = None
        # The caller may hold gradients off around its data; the attack needs them.
        with torch.enable_grad(), training_mode(self.generator.to(images.device), False):
            self.encode(images, sample_ids)  # 2
            unseen = any(sample not in self.noise_maps for sample in sample_ids)
            if round < settings.shadow_rounds or unseen:
                z = torch.stack([self.latents[sample] for sample in sample_ids]).to(images)
                synthesis = {name: tensor.to(images) for name, tensor in self.synthesis.items()}
                if round < settings.shadow_rounds:
                    tuned = self._attack(synthesis, z, images, labels, model, global_model, loss_fn)  # 3, 4
                else:
                    # First seen after the shadow's rounds: its map comes from the generator as it was left.
                    tuned = synthesis
                with torch.no_grad():
                    rebuilt = self._render(tuned, z, images)
                error = reconstruction_error(images, rebuilt)
                vulnerability = vulnerability_map(error, settings.vulnerability_temperature)  # 5
                new_maps = spread(
                    vulnerability, equalise=settings.equalise, temperature=settings.spread_temperature
                )  # 6
                for sample, new in zip(sample_ids, new_maps, strict=True):
                    previous = self.noise_maps.get(sample)
                    if previous is None or round < settings.shadow_rounds:
                        self.noise_maps[sample] = blend(new.cpu(), previous, settings.momentum)  # 7
                self.synthesis = {
                    name: torch.lerp(tuned[name], old, settings.generator_decay).cpu()
                    for name, old in synthesis.items()
                }
        noise_map = torch.stack([self.noise_maps[sample] for sample in sample_ids]).to(images)
        cam, spared = None, noise_map
        if settings.foreground:
            cam = self._foreground(images, labels, model, global_model)
            alpha = sparing_strength(round, rounds, settings.alpha_low, settings.alpha_high)
            spared = spare_foreground(
                noise_map, cam, alpha, share=settings.foreground_share, temperature=settings.foreground_temperature
            )  # 8
        amplitude = noise_amplitude(round, rounds, settings.strength, schedule=settings.schedule)
        noise = self._place(scale_noise(spared, images, amplitude))  # 9
        self.batches_protected += 1
        return Protection(images + noise, noise, noise_map, cam, rebuilt)

    def encode(
        self, images: Float[Tensor, "n c h w"], sample_ids: Sequence[str], progress: Progress | None = None
    ) -> None:
        """Step 2 for the samples that have no latent code yet.

        Call it on all of a client's images before round 0 to have them encoded in one large batch; otherwise
        :meth:`protect` encodes each sample when it first sees it, with the same result.
        """
        new = [index for index, sample in enumerate(sample_ids) if sample not in self.latents]
        if not new:
            return
        check_generator(self.generator, images.shape[1], (images.shape[2], images.shape[3]))
        task = (progress or Progress()).start("encoding images", len(new))
        for start in range(0, len(new), ENCODED_AT_ONCE):
            chunk = new[start : start + ENCODED_AT_ONCE]
            samples = [sample_ids[index] for index in chunk]
            # The generator as it was given, not as the rounds moved it: a code does not depend on when it is found.
            codes = encode_samples(
                self.generator.to(images.device),
                images[chunk],
                samples,
                self.normalisation,
                space=self.settings.latent_space,
                seed=self.seed,
                learning_rate=self.settings.latent_learning_rate,
                iterations=self.settings.latent_iterations if self.settings.latent_pretraining else 0,
            )
            self.latents.update(zip(samples, codes.cpu().unbind(), strict=True))
            task.advance(len(chunk))
        task.finish()

    def state_dict(self) -> dict[str, Any]:
        """Generator, latent codes and their space, noise maps, counter and random state, as nested dicts of tensors."""
        return {
            "synthesis": dict(self.synthesis),
            "latent_space": pack_space(self.settings.latent_space),
            "latents": pack_samples(self.latents),
            "noise_maps": pack_samples(self.noise_maps),
            "batches_protected": torch.tensor(self.batches_protected),
            "random_state": self._draws.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            DefenseError: when it is another generator's, or its latent codes are of another space.
        """
        check_state(state, self.synthesis, self.settings.latent_space)
        self.synthesis = {name: tensor.clone() for name, tensor in state["synthesis"].items()}
        self.latents = unpack_samples(state.get("latents", {}))
        self.noise_maps = unpack_samples(state.get("noise_maps", {}))
        self.batches_protected = int(state["batches_protected"])
        self._draws.set_state(state["random_state"])

    def _render(self, synthesis: Mapping[str, Tensor], z: Tensor, like: Tensor) -> Tensor:
        size, space = (like.shape[2], like.shape[3]), self.settings.latent_space
        return render(self.generator, synthesis, z, size, self.normalisation, space=space)

    def _attack(
        self,
        synthesis: dict[str, Tensor],
        z: Tensor,
        images: Tensor,
        labels: Tensor,
        model: nn.Module,
        global_model: nn.Module | Mapping[str, Tensor],
        loss_fn: LossFunction,
    ) -> dict[str, Tensor]:
        try:
            victim = victim_signals(model, images, labels, loss_fn)
        except IndexError as error:
            raise DataError(
                f"labels {labels.min()} to {labels.max()} do not fit the model's classes: {error}"
            ) from error
        tuned, losses = pseudo_attack(
            lambda parameters, codes: self._render(parameters, codes, images),
            synthesis,
            z,
            images,
            labels,
            victim,
            model=model,
            global_state=global_model,
            loss_fn=loss_fn,
            iterations=self.settings.attack_iterations,
            learning_rate=self.settings.attack_learning_rate or learning_rate_for(len(images)),
            weights=self.settings.weights,
        )
        if not all(torch.isfinite(tensor).all() for tensor in tuned.values()):
            raise DefenseError(
                f"the pseudo attack diverged (loss {losses[-1]}): lower attack_learning_rate; no update leaves"
            )
        return tuned

    def _foreground(
        self, images: Tensor, labels: Tensor, model: nn.Module, global_model: nn.Module | Mapping[str, Tensor]
    ) -> Tensor:
        if self._cam_layer is None:
            self._cam_layer = find_cam_layer(model, images)
        chosen = self.settings.cam_class
        classes = labels if chosen == "label" else torch.full_like(labels, int(chosen))
        return class_activation_maps(model, global_model, images, classes, self._cam_layer)

    def _place(self, noise: Tensor) -> Tensor:
        if self.settings.placement == "shuffled":
            return shuffle_noise(noise, self._draws)
        if self.settings.placement == "uniform":
            return uniform_noise(noise, self._draws)
        return noise
