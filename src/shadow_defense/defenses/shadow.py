"""Shadow Defense under the Defense contract: it acts on the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from shadow_defense.defenses.base import Batch, Defense, Place, RoundContext
from shadow_defense.defenses.kind import DefenseKind, Resources
from shadow_defense.errors import DefenseError
from shadow_defense.progress import Progress
from shadow_defense.shadow.guard import Protection, ShadowGuard
from shadow_defense.shadow.sample_store import pack_samples
from shadow_defense.shadow.settings import SHADOW_PRESETS, ShadowSettings


class ShadowDefense(Defense):
    """A :class:`ShadowGuard` in the place where the client's batches pass."""

    acts_on: ClassVar[frozenset[Place]] = frozenset({"batch"})

    def __init__(self, guard: ShadowGuard) -> None:
        self.guard = guard
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._squares, self._values, self._peak = 0.0, 0, 0.0

    def prepare(
        self, images: Float[Tensor, "n c h w"], sample_ids: tuple[str, ...], progress: Progress | None = None
    ) -> None:
        self.guard.encode(images, sample_ids, progress)

    def begin_round(self, context: RoundContext) -> None:
        self._kept = {}
        self._squares, self._values, self._peak = 0.0, 0, 0.0

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        protection = self.guard.protect_with_details(
            batch.images,
            batch.labels,
            batch.sample_ids,
            model=context.model,
            global_model=context.global_state,
            loss_fn=context.loss_fn,
            round=context.round,
            rounds=context.rounds,
        )
        self._squares += float(protection.noise.double().square().sum())
        self._values += protection.noise.numel()
        self._peak = max(self._peak, float(protection.noise.abs().max()))
        if context.explain.intersection(batch.sample_ids):
            self._keep(batch, protection, context.explain)
        return Batch(protection.images, batch.labels, batch.sample_ids)

    def _keep(self, batch: Batch, protection: Protection, wanted: frozenset[str]) -> None:
        pictures = {
            "protected": protection.images,
            "noise": protection.noise,
            "noise_map": protection.noise_map,
            "cam": protection.cam,
            "rebuilt": protection.rebuilt,
        }
        for name, tensor in pictures.items():
            if tensor is not None:
                kept = self._kept.setdefault(name, {})
                for sample, picture in zip(batch.sample_ids, tensor, strict=True):
                    if sample in wanted:
                        kept[sample] = picture.detach().cpu().clone()

    def measurements(self) -> dict[str, float]:
        """Root mean square and peak of the round's noise, in units of the images' standard deviation."""
        return {"noise_rms": math.sqrt(self._squares / max(self._values, 1)), "noise_peak": self._peak}

    def explanations(self) -> dict[str, Tensor]:
        """For each picture of :class:`Protection` its ``<name>::values`` and ``<name>::names``, packed by sample."""
        return {
            f"{name}::{part}": tensor
            for name, samples in self._kept.items()
            for part, tensor in pack_samples(samples).items()
        }

    def state_dict(self) -> dict[str, Any]:
        return self.guard.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.guard.load_state_dict(state)


def _guarded(settings: ShadowSettings, resources: Resources) -> ShadowDefense:
    if resources.generator is None:
        raise DefenseError("Shadow Defense has no generator: run the pretrain stage first or set generator.path")
    return ShadowDefense(
        ShadowGuard(
            resources.generator,
            settings,
            mean=resources.normalisation.mean,
            std=resources.normalisation.std,
            seed=resources.seed_of("guard"),
        )
    )


SHADOW = DefenseKind(
    "shadow",
    "noise where a shadow generator can rebuild the image (Jiang et al. 2025)",
    ShadowSettings,
    _guarded,
    SHADOW_PRESETS,
    acts_on=("batch",),
    needs_generator=True,
    needs_classes=True,
    knows_images=True,
    searches=True,
    adds_noise_to_images=True,
    nothing_to_fit="noise on images: the update is that of the noisy images, and is matched as it is",
)
