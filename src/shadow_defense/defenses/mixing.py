"""MixUp and InstaHide (Huang et al., ICML 2020): each image becomes a weighted sum of several, its label with it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Batch, Defense, Place, RoundContext
from shadow_defense.defenses.kind import DefenseKind, Resources
from shadow_defense.defenses.protected_pictures import ProtectedPictures
from shadow_defense.errors import ConfigError, DefenseError
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator

OWN_CONCENTRATION = 3
"""Of the image's own weight in the Dirichlet distribution; a partner's is 1, so that half is its own on average."""


class MixingSettings(BaseModel):
    """How many images go into one, and the most that any of them may show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(4, ge=2, le=16, description="k, images in each mixture, its own among them")
    largest: float = Field(0.65, gt=0, le=1, description="c2, largest weight that any image may have; 1 allows all")

    @model_validator(mode="after")
    def _reachable(self) -> MixingSettings:
        # Below it nearly every draw of weights would be thrown away.
        least = min(0.6, 2 / self.images)
        if self.largest < least:
            raise ConfigError(
                f"largest = {self.largest}: weights of {self.images} images are hardly ever all below; set at least "
                f"{least:g}, or more images"
            )
        return self


MIXING_PRESETS: dict[str, dict[str, Any]] = {
    # Ours: the fewest that are a mixture.
    "weak": {"images": 2},
    # The examples of GradAttack.
    "paper": {},
    # Ours.
    "strong": {"images": 6, "largest": 0.5},
}


def mixing_weights(
    count: int, images: int, largest: float, draws: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n k"]:
    """``lambda ~ Dirichlet(3, 1, ..., 1)``, drawn again until ``max(lambda) <= largest`` (docs/defenses.md).

    Returns:
        A row for each of ``count`` mixtures that sums to 1; its first entry is the image's own weight.
    """
    weights = torch.empty(count, images, dtype=dtype)
    waiting = torch.ones(count, dtype=torch.bool)
    while waiting.any():
        # Sums of a exponentials are Gamma(a), and Gammas over their sum are Dirichlet.
        size = int(waiting.sum()), OWN_CONCENTRATION + images - 1
        single = torch.empty(size, dtype=dtype).exponential_(generator=draws)
        own, others = single[:, :OWN_CONCENTRATION].sum(1, keepdim=True), single[:, OWN_CONCENTRATION:]
        gammas = torch.cat([own, others], dim=1)
        weights[waiting] = gammas / gammas.sum(1, keepdim=True)
        waiting = weights.amax(1) > largest
    return weights


def draw_partners(count: int, own: int, public: int, partners: int, draws: torch.Generator) -> Int64[Tensor, "n p"]:
    """For each of the last ``count`` of ``own`` images its partners: distinct, and never itself.

    All are own images where there are enough of them. Where not, each image takes all other own images and fills up
    with public ones, which have the numbers from ``own`` on.

    >>> draw_partners(1, 1, 2, 2, torch.Generator().manual_seed(0)).sort().values
    tensor([[1, 2]])
    """
    rows = []
    for index in range(own - count, own):
        others = torch.randperm(own - 1, generator=draws)[:partners]
        others = others + (others >= index)
        strangers = own + torch.randperm(public, generator=draws)[: partners - len(others)]
        rows.append(torch.cat([others, strangers]))
    return torch.stack(rows)


def as_probabilities(labels: Tensor, classes: int) -> Float[Tensor, "n k"]:
    """Classes as rows of zeros with a one; rows of probabilities as they are."""
    return labels if labels.dim() == 2 else F.one_hot(labels, classes).float()


class MixingDefense(Defense):
    """Train on mixtures of the client's images, drawn anew at every step, with labels that are mixed alike.

    Partners are images that came by in this round, in this batch or before it, as they came: published code draws from
    all of the client's images, whose labels, and whose protection by a defense before this one, a client knows only
    once they come by. Where fewer than k - 1 others have come by (the first small batches, a client with few images)
    public images fill up; they hide less, since the attacker may hold them too.

    Args:
        flip_signs: InstaHide, the sign of every value of the mixture drawn at random; values are around 0 since images
            are normalised.
        public: may be empty where every first batch holds k images.
        classes: how many there are.
        seed: the client's own. In a deployment it is a secret of the client's: it reproduces mixtures and signs.
    """

    acts_on: ClassVar[frozenset[Place]] = frozenset({"batch"})

    def __init__(
        self,
        settings: MixingSettings,
        *,
        flip_signs: bool,
        public: ImageSet,
        normalisation: Normalisation,
        classes: int,
        seed: int,
    ) -> None:
        self.settings = settings
        self.flip_signs = flip_signs
        self.public = public
        self.normalisation = normalisation
        self.classes = classes
        self.seed = seed
        self._pictures = ProtectedPictures()
        self._start()

    def _start(self) -> None:
        self._step = 0
        self._own: dict[str, tuple[Tensor, Tensor]] = {}
        self._weights: list[Tensor] = []
        self._partners, self._strangers = 0, 0

    def prepare(
        self, images: Float[Tensor, "n c h w"], sample_ids: tuple[str, ...], progress: Progress | None = None
    ) -> None:
        """Raises :class:`DefenseError` when all images together, own and public, are too few to mix."""
        self._check(len(images))

    def _check(self, own: int) -> None:
        wanted = self.settings.images
        if own + len(self.public) < wanted:
            raise DefenseError(
                f"mixtures of {wanted} images, but there are {own} of the client's own that came by in this round and "
                f"{len(self.public)} public ones: set images lower, a larger batch size, or give public images"
            )

    def begin_round(self, context: RoundContext) -> None:
        self._start()
        self._pictures.clear()

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        labels = as_probabilities(batch.labels, self.classes)
        for sample, image, label in zip(batch.sample_ids, batch.images, labels, strict=True):
            # Out and in again: the batch's own images are the last ones.
            self._own.pop(sample, None)
            # Copies: a later batch may be written into the same memory.
            self._own[sample] = (image.detach().clone(), label.clone())
        self._check(len(self._own))
        draws = named_generator(self.seed, "mixing", context.round, self._step)
        self._step += 1
        count, wanted = len(batch.images), self.settings.images
        weights = mixing_weights(count, wanted, self.settings.largest, draws)
        partners = draw_partners(count, len(self._own), len(self.public), wanted - 1, draws)
        own = torch.arange(len(self._own) - count, len(self._own))[:, None]
        images, targets = self._look_up(torch.cat([own, partners], dim=1))
        mixed = torch.einsum("nk,nkchw->nchw", weights.to(images), images)
        if self.flip_signs:
            mixed = mixed * (torch.randint(2, mixed.shape, generator=draws) * 2 - 1).to(mixed)
        protected = Batch(mixed, torch.einsum("nk,nkj->nj", weights.to(targets), targets), batch.sample_ids)
        self._weights.append(weights[:, 0])
        self._partners += partners.numel()
        self._strangers += int((partners >= len(self._own)).sum())
        self._pictures.keep(protected, context)
        return protected

    def _look_up(self, numbers: Int64[Tensor, "n k"]) -> tuple[Float[Tensor, "n k c h w"], Float[Tensor, "n k j"]]:
        own = list(self._own.values())
        found = {}
        for number in numbers.unique().tolist():
            found[number] = own[number] if number < len(own) else self._stranger(number - len(own), own[0][0].device)
        images, labels = (
            torch.stack([torch.stack([found[number][part] for number in row]) for row in numbers.tolist()])
            for part in (0, 1)
        )
        return images, labels

    def _stranger(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        image = self.normalisation.apply(self.public.images[index : index + 1].to(device).float() / 255)
        return image[0], as_probabilities(self.public.labels[index : index + 1].to(device), self.classes)[0]

    def measurements(self) -> dict[str, float]:
        """The mean weight of an image in its own mixture, and the share of partners that were public images."""
        own = float(torch.cat(self._weights).mean()) if self._weights else 0.0
        return {"own_weight": own, "public_share": self._strangers / max(self._partners, 1)}

    def explanations(self) -> dict[str, Tensor]:
        """The mixtures that stood for the images that the report asked for."""
        return self._pictures.explanations()


def _kind(name: str, summary: str, nothing_to_fit: str, *, flip_signs: bool) -> DefenseKind[MixingSettings]:
    def build(settings: MixingSettings, resources: Resources) -> MixingDefense:
        return MixingDefense(
            settings,
            flip_signs=flip_signs,
            public=resources.public,
            normalisation=resources.normalisation,
            classes=resources.classes,
            seed=resources.seed_of(name),
        )

    return DefenseKind(
        name,
        summary,
        MixingSettings,
        build,
        MIXING_PRESETS,
        acts_on=("batch",),
        mixes_labels=True,
        nothing_to_fit=nothing_to_fit,
    )


MIXUP = _kind(
    "mixup",
    "weighted sums of images, with labels mixed alike (MixUp)",
    "images are mixed before training: the matching term has nothing to fit",
    flip_signs=False,
)
INSTAHIDE = _kind(
    "instahide",
    "weighted sums of images with random signs, labels mixed alike (Huang et al. 2020)",
    "images are mixed before training, with random signs: the matching term has nothing to fit",
    flip_signs=True,
)
