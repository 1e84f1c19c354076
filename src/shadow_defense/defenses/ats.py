"""ATS (Gao et al., CVPR 2021): images are transformed, by policies from a search, before they are trained on."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.data.dataset import Normalisation
from shadow_defense.defenses.base import Batch, Defense, Place, RoundContext
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.protected_pictures import ProtectedPictures
from shadow_defense.defenses.transformations import HIGHEST_LEVEL, OperationName, Policy, apply_policy
from shadow_defense.seeds import named_generator

# The published policies (3-1-7+43-18-18) number the entries of another pool and cannot be reproduced. These come from
#     search_policy(the 4708 training images of PneumoniaMNIST, ModelSettings(name="convnet", width=16,
#                   normalisation="group", activation="gelu"), classes=2, seed=0, candidates=400)
# in ats_search.py. Scores: privacy (lower hides more) / accuracy (higher is better); untouched images 0.525 / -165.
PAPER_POLICY: Policy = (
    (("rotate", 3), ("contrast", 9), ("sharpness", 7)),
    (("brightness", 5), ("posterize", 1)),
)

ATS_PRESETS: dict[str, dict[str, Any]] = {
    # The highest accuracy score among those that hide more than untouched images do: 0.493 / -143.
    "weak": {"policy": ((("contrast", 7), ("sharpness", 7), ("solarize", 3)),)},
    # The two best of ats_search.rank, as a hybrid like the published one: 0.380 / -268 and 0.417 / -236.
    "paper": {},
    # The three lowest privacy scores, whatever they cost: 0.374 / -1031, 0.380 / -268, 0.395 / -518.
    "strong": {
        "policy": (
            (("solarize", 7), ("contrast", 9), ("contrast", 5)),
            (("rotate", 3), ("contrast", 9), ("sharpness", 7)),
            (("rotate", 3), ("contrast", 7), ("contrast", 9)),
        )
    },
}


class ATSSettings(BaseModel):
    """The policy: lists of operations with levels, of which each image meets one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: tuple[tuple[tuple[OperationName, Annotated[int, Field(ge=0, le=HIGHEST_LEVEL)]], ...], ...] = Field(
        PAPER_POLICY,
        min_length=1,
        description="sub-policies, one chosen at random for each image at each step: lists of [operation, level 0 to "
        "9], applied in order",
    )


class ATSDefense(Defense):
    """A random transformation of every image at every step; the labels stay.

    The published training crops and flips at random before the policy; that is augmentation, which belongs to all arms
    or to none, and is left out.

    Args:
        normalisation: of the batches: operations work on [0, 1].
        seed: the client's own.
    """

    acts_on: ClassVar[frozenset[Place]] = frozenset({"batch"})

    def __init__(self, settings: ATSSettings, normalisation: Normalisation, seed: int) -> None:
        self.policy: Policy = settings.policy
        self.normalisation = normalisation
        self.seed = seed
        self._step = 0
        self._pictures = ProtectedPictures()

    def begin_round(self, context: RoundContext) -> None:
        self._step = 0
        self._pictures.clear()

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        draws = named_generator(self.seed, "ats", context.round, self._step)
        self._step += 1
        transformed = apply_policy(self.normalisation.invert(batch.images), self.policy, draws)
        protected = Batch(self.normalisation.apply(transformed), batch.labels, batch.sample_ids)
        self._pictures.keep(protected, context)
        return protected

    def explanations(self) -> dict[str, Tensor]:
        """The transformed images that the report asked for."""
        return self._pictures.explanations()


ATS = DefenseKind(
    "ats",
    "images transformed at random by a searched policy (Gao et al. 2021)",
    ATSSettings,
    lambda settings, resources: ATSDefense(settings, resources.normalisation, resources.seed_of("ats")),
    ATS_PRESETS,
    acts_on=("batch",),
    image_by_image=True,
    nothing_to_fit="images are transformed before training: what is rebuilt is the transformed image",
)
