"""Shadow Defense as one object for any training loop: clean batch in, protected batch out.

guard = ShadowGuard(generator, ShadowSettings(), mean=(0.5,), std=(0.25,))
for images, labels, sample_ids in loader:
    images = guard.protect(images, labels, sample_ids, model=local_model, global_model=global_model,
                           loss_fn=loss_fn, round=r, rounds=R)
    ...the loop's own step...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shadow_defense.errors import DataError, GeneratorError
from shadow_defense.generators.interface import as_generator, check_generator, private_copy
from shadow_defense.models.class_activation import find_cam_layer
from shadow_defense.models.functional import LossFunction, training_mode
from shadow_defense.models.named_state import ModelState, plain_module
from shadow_defense.models.simulated_gradient import Derivative
from shadow_defense.placement import device_of
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.batch import (
    Images,
    ShadowBatch,
    add_noise,
    as_normalisation,
    check_repeats,
    check_round,
    read_batch,
    read_images,
)
from shadow_defense.shadow.encoding import encode_samples
from shadow_defense.shadow.foreground import diagnosed_foreground, read_foreground, spare_foreground, sparing_strength
from shadow_defense.shadow.guard_state import GuardState, pack_state, unpack_state
from shadow_defense.shadow.noise import check_noise, noise_amplitude, place_noise, scale_noise
from shadow_defense.shadow.noise_map import blend, reconstruction_error, spread, vulnerability_map
from shadow_defense.shadow.protection import Protection
from shadow_defense.shadow.pseudo_attack import attack_batch
from shadow_defense.shadow.rendering import render
from shadow_defense.shadow.sample_ids import distinct, sample_keys
from shadow_defense.shadow.sample_store import stacked
from shadow_defense.shadow.settings import ShadowSettings
from shadow_defense.shadow.task import TrainingTask, check_finite, model_in_words, read_task
from shadow_defense.shadow.thumbnails import check_known, check_size, thumbnails
from shadow_defense.shadow.victim import victim_signals


class ShadowGuard:
    """Protects batches with a shadow generator; one guard a client, kept for the whole run.

    The generator is copied and the models are only read: they run with other tensors in place of their own. Gradients,
    buffers, modes, hooks and the global random state of the caller stay as they were. docs/guard.md lists what is
    accepted, and what is refused before anything is drawn.

    Args:
        generator: any module from latent codes (n, z_dim) to images in [-1, 1].
        settings: of the nine steps.
        mean, std: normalisation of the images given to :meth:`protect`, a number or one for each channel (sequence,
            tensor or array); the defaults mean [-1, 1].
        seed: of the latent codes' starting points and of the control placements.
        z_dim: length of a latent code, where the generator has no attribute of that name.
        logits: takes the logits out of what the task model gives, where that is a tuple, a dict or the like.

    Raises:
        GeneratorError: a generator without parameters, or without the latent space of the settings.
        DataError: a mean or std that is no number, or a std that is not above 0.
    """

    def __init__(
        self,
        generator: nn.Module,
        settings: ShadowSettings = ShadowSettings(),
        *,
        mean: Any = (0.5,),
        std: Any = (0.5,),
        seed: int = 0,
        z_dim: int | None = None,
        logits: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.normalisation = as_normalisation(mean, std)
        self.generator = as_generator(private_copy(generator), z_dim)
        self.generator.check_space(settings.latent_space)
        self.settings = settings
        self.seed = seed
        # Never written to, only replaced: the copy's own tensors, with which codes are sought, stay.
        self.synthesis = {name: parameter.detach() for name, parameter in self.generator.synthesis_parameters().items()}
        if not self.synthesis:
            raise GeneratorError("the generator has no parameters to fine-tune: give a trained network")
        self.latents: dict[str, Tensor] = {}
        self.noise_maps: dict[str, Tensor] = {}
        self.thumbnails: dict[str, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}
        self.batches_protected = 0
        self.derivative: Derivative = "unknown"
        self.draws = named_generator(seed, "shadow noise")
        self._cam_layer = settings.cam_layer
        self._logits = logits

    def protect(
        self,
        images: Images,
        labels: Any,
        sample_ids: Any,
        *,
        model: nn.Module,
        global_model: ModelState,
        loss_fn: LossFunction,
        round: int,
        rounds: int,
        foreground: Tensor | np.ndarray | None = None,
    ) -> Images:
        """``images`` with the noise of :meth:`protect_with_details`, to train on with the true labels.

        In the type, the precision and on the device in which they were given; the steps run in single precision on
        the device of the model.
        """
        protection = self.protect_with_details(
            images,
            labels,
            sample_ids,
            model=model,
            global_model=global_model,
            loss_fn=loss_fn,
            round=round,
            rounds=rounds,
            foreground=foreground,
        )
        return add_noise(images, protection.noise)

    def protect_with_details(
        self,
        images: Tensor | np.ndarray,
        labels: Any,
        sample_ids: Any,
        *,
        model: nn.Module,
        global_model: ModelState,
        loss_fn: LossFunction,
        round: int,
        rounds: int,
        foreground: Tensor | np.ndarray | None = None,
    ) -> Protection:
        """Steps 2 to 9 of docs/method.md on one batch.

        Args:
            images: clean and normalised with this guard's mean and std, (n, channels, height, width).
            labels: as the training step's loss takes them: (n,) or (n, 1) classes, (n, k) targets, masks; a tensor, an
                array or a list.
            sample_ids: a stable name for each image (:func:`sample_keys`); codes and maps are kept under it.
            model: the local model as it stands before the step, in the mode it trains in.
            global_model: this round's global model, its state dict, or the arrays of that in its order.
            loss_fn: the loss of the training step, from (the model's output, labels) to a scalar or a value an image.
            round, rounds: r (0-based) and R.
            foreground: (n, height, width), what the diagnosis rests on, in place of Grad-CAM++.

        Raises:
            DataError: images, labels or ids that cannot be used, or another image under a known id.
            ModelError: a model that cannot be run with other tensors in place of its own, or gives no logits.
            GeneratorError: a generator whose channels or size don't fit the images.
            DefenseError: NaN or infinity in a model, the loss or a result; an image without noise. In every case maps
                and generator are as they were. Where all images have frozen noise no model is looked at.
        """
        settings = self.settings
        check_round(round, rounds)
        if foreground is not None and not settings.foreground:
            raise DataError("a foreground was given but the settings spare none: set foreground=True, or give none")
        plain = plain_module(model)
        batch = read_batch(images, labels, sample_ids, self.normalisation, device_of(plain))
        clean = batch.images[batch.firsts]
        check_size(self.noise_maps, clean)
        check_known(self.thumbnails, clean, batch.samples, self.normalisation)
        if all(sample in self.frozen for sample in batch.samples):
            self.batches_protected += 1
            noise, noise_map = (stacked(each, batch.samples, clean) for each in (self.frozen, self.noise_maps))
            return Protection.of_batch(batch, noise, noise_map, None, None)
        task = read_task(plain, global_model, loss_fn, self._logits)
        check_generator(self.generator, clean.shape[1], (clean.shape[2], clean.shape[3]))
        attacked, rebuilt, cam = round < settings.shadow_rounds, None, None
        derivative, synthesis = self.derivative, self.synthesis
        maps = {key: self.noise_maps[key] for key in batch.samples if key in self.noise_maps}
        # After the shadow's rounds a new sample gets its map from the generator as it was left.
        rendered = attacked or len(maps) < len(batch.samples)
        # The caller may hold gradients off around its data, or precision down; the attack needs both.
        with (
            torch.enable_grad(),
            torch.autocast(clean.device.type, enabled=False),
            training_mode(self.generator.to(clean.device), False) if rendered else nullcontext(),
        ):
            # The model's part first: what it can't do is said before minutes of encoding.
            with model_in_words():
                if settings.foreground:
                    cam = self._foreground(batch, task, foreground)  # 8
                if attacked:
                    victim = victim_signals(task.model, batch.images, batch.labels, task.loss_fn)  # 3
            self._encode(clean, batch.samples)  # 2
            if rendered:
                codes = stacked(self.latents, batch.samples, clean)
                tuned = before = {name: tensor.to(clean) for name, tensor in synthesis.items()}
                if attacked:
                    tuned, derivative = attack_batch(  # 4
                        self._render,
                        before,
                        codes,
                        batch,
                        victim,
                        task,
                        iterations=settings.attack_iterations,
                        learning_rate=settings.attack_learning_rate,
                        weights=settings.weights,
                        derivative=derivative,
                    )
                    synthesis = {
                        name: torch.lerp(tuned[name], old, settings.generator_decay).cpu()
                        for name, old in before.items()
                    }
                with torch.no_grad():
                    rebuilt = self._render(tuned, codes, clean)
                error = reconstruction_error(clean, rebuilt)
                vulnerability = vulnerability_map(error, settings.vulnerability_temperature)  # 5
                new_maps = spread(
                    vulnerability, equalise=settings.equalise, temperature=settings.spread_temperature
                )  # 6
                for sample, new in zip(batch.samples, new_maps, strict=True):
                    if attacked or sample not in maps:
                        maps[sample] = blend(new.cpu(), maps.get(sample), settings.momentum)  # 7
        check_finite("the noise map", maps, "lower attack_learning_rate; no update leaves")
        noise_map = spared = stacked(maps, batch.samples, clean)
        if cam is not None:
            alpha = sparing_strength(round, rounds, settings.alpha_low, settings.alpha_high)
            spared = spare_foreground(
                noise_map, cam, alpha, share=settings.foreground_share, temperature=settings.foreground_temperature
            )
        amplitude = noise_amplitude(round, rounds, settings.strength, schedule=settings.schedule)
        noise = scale_noise(spared, clean, amplitude, settings.floor / min(self.normalisation.std))
        if settings.strength > 0:
            check_noise(noise, batch.samples)
        noise = place_noise(noise, settings.placement, self.draws)  # 9
        if settings.schedule == "frozen":
            for sample, each in zip(batch.samples, noise, strict=True):
                self.frozen.setdefault(sample, each.detach().cpu().clone())
            noise = stacked(self.frozen, batch.samples, clean)
        self.synthesis, self.derivative, self.batches_protected = synthesis, derivative, self.batches_protected + 1
        self.noise_maps.update(maps)
        return Protection.of_batch(batch, noise, noise_map, cam, rebuilt)

    def encode(self, images: Tensor | np.ndarray, sample_ids: Any, progress: Progress | None = None) -> None:
        """Step 2 for the samples that have no latent code yet.

        Call it on all of a client's images before round 0 to have them encoded in one large batch; otherwise
        :meth:`protect` encodes each sample when it first sees it, with the same result.
        """
        keys = sample_keys(sample_ids)
        plain = read_images(images, keys, self.normalisation)
        check_repeats(plain, keys, self.normalisation)
        check_known(self.thumbnails, plain, keys, self.normalisation)
        firsts, _ = distinct(keys)
        self._encode(plain[firsts], tuple(dict.fromkeys(keys)), progress)

    def _encode(self, images: Tensor, samples: Sequence[str], progress: Progress | None = None) -> None:
        new = [index for index, sample in enumerate(samples) if sample not in self.latents]
        if not new:
            return
        check_generator(self.generator, images.shape[1], (images.shape[2], images.shape[3]))
        names = [samples[index] for index in new]
        # The generator as it was given, not as the rounds moved it: a code does not depend on when it is found.
        codes = encode_samples(
            self.generator.to(images.device),
            images[new],
            names,
            self.normalisation,
            space=self.settings.latent_space,
            seed=self.seed,
            learning_rate=self.settings.latent_learning_rate,
            iterations=self.settings.latent_iterations if self.settings.latent_pretraining else 0,
            examples=self.settings.latent_examples,
            progress=progress,
        ).cpu()
        found = dict(zip(names, codes.unbind(), strict=True))
        check_finite("the latent code", found, "lower latent_learning_rate, or give a trained generator")
        self.latents.update(found)
        self.thumbnails.update(zip(names, thumbnails(images[new], self.normalisation).cpu().unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Generator (as given and as moved), codes, maps, thumbnails, counter and random state, with their latent space
        and normalisation, as nested dicts of tensors. As private as the images.
        """
        return pack_state(self._state(), self.settings.latent_space, self.normalisation)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; where it raises, the guard stays as it was.

        Raises:
            DefenseError: when the state is not whole, or of another generator, latent space or normalisation.
        """
        restored = unpack_state(state, self._state(), self.settings.latent_space, self.normalisation)
        for field in fields(GuardState):
            setattr(self, field.name, getattr(restored, field.name))

    def _state(self) -> GuardState:
        return GuardState(**{field.name: getattr(self, field.name) for field in fields(GuardState)})

    def _render(self, synthesis: Mapping[str, Tensor], codes: Tensor, like: Tensor) -> Tensor:
        size, space = (like.shape[2], like.shape[3]), self.settings.latent_space
        return render(self.generator, synthesis, codes, size, self.normalisation, space=space)

    def _foreground(self, batch: ShadowBatch, task: TrainingTask, given: Tensor | np.ndarray | None) -> Tensor:
        if given is not None:
            return read_foreground(given, batch.images)[batch.firsts]
        if self._cam_layer is None:
            self._cam_layer = find_cam_layer(task.model, batch.images[batch.firsts], task.global_state)
        return diagnosed_foreground(batch, task, self._cam_layer, self.settings.cam_class)
