"""The gate before the upload where images are protected once: the bound of the client's own images, computed once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.worst_case import in_hindsight, scores
from shadow_defense.data.dataset import ImageSet
from shadow_defense.defenses.protect_once import ProtectOnce
from shadow_defense.errors import DefenseError
from shadow_defense.experiment.handed_over import removals
from shadow_defense.experiment.self_audit import SelfAuditSettings
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_object, write_json
from shadow_defense.protection.constants import hash_of

KEPT = "worst-case.json"

log = logging.getLogger("shadow_defense.self_audit")


@dataclass(frozen=True)
class WorstCaseGate:
    """Hands the protected images themselves to the removers that need no training, and withholds what they undo.

    No update tells more of an image than these do (docs/protect.md), so that no attack on one has to be tried.

    Attributes:
        images: the client's own.
        template: the mean of public images, in [0, 1].
        folder: the client's, where the bound is kept from round to round.
    """

    settings: SelfAuditSettings
    defense: ProtectOnce
    images: ImageSet
    template: Float[Tensor, "c h w"]
    folder: Path

    def __call__(self, update: ModelUpdate, global_state: Mapping[str, Tensor]) -> dict[str, float]:
        """The highest value of the metric over all images, for the client's own notes.

        Raises:
            DefenseError: where an image is beyond the threshold, and where the metric has no value.
        """
        metric, threshold = self.settings.metric, self.settings.threshold
        found, sample = self._bound()
        if not found <= threshold:
            raise DefenseError(
                f"self-audit: a remover finds {metric} {found:.3f} of image '{sample}' in its protected image, above "
                f"{threshold:g}: protect with more strength"
            )
        log.info("round %d: self-audit passed: worst case %s %.3f", update.round + 1, metric, found)
        return {f"self_audit_{metric}": found}

    def _bound(self) -> tuple[float, str]:
        protected, path = self.defense.protected(self.images.sample_ids), self.folder / KEPT
        asked = {"metric": self.settings.metric, "images": hash_of(self.images.images), "protected": hash_of(protected)}
        if path.exists():
            kept = read_object(path, "delete it: it is computed anew", "asked", "found", "sample")
            if kept["asked"] == asked:
                return kept["found"], kept["sample"]
        found, sample = self._measured()
        write_json(path, {"asked": asked, "found": found, "sample": sample})
        return found, sample

    def _measured(self) -> tuple[float, str]:
        truths, made = self.images.unit_images(), removals(self.defense, self.images)
        values = in_hindsight([scores(each, truths, self.template) for each in made.values()])[self.settings.metric]
        if values.isnan().any():
            raise DefenseError(f"the self-audit has no {self.settings.metric} of its images: take metric ssim")
        place = int(values.argmax())
        return float(values[place]), self.images.sample_ids[place]
