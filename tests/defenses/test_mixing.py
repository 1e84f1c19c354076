"""MixUp and InstaHide: weights, partners, soft labels, signs, and where too few images are there to mix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.build import DefenseSettings, Resources
from shadow_defense.defenses.mixing import (
    MIXING_PRESETS,
    MixingDefense,
    MixingSettings,
    as_probabilities,
    draw_partners,
    mixing_weights,
)
from shadow_defense.errors import ConfigError, DefenseError

CLASSES = 3
IDENTITY = Normalisation((0.0,), (1.0,))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context(round: int = 0, explain: frozenset[str] = frozenset()) -> RoundContext:
    return RoundContext(nn.Linear(1, 1), {}, F.cross_entropy, round, 3, 0.1, explain)


def marked(first: int, count: int, side: int = 16) -> Batch:
    """Image i is zero but for a one at pixel i: a mixture of such images shows its weights. Its class is i mod 3."""
    numbers = torch.arange(first, first + count)
    images = F.one_hot(numbers, side).float().view(count, 1, 1, side)
    return Batch(images, numbers % CLASSES, tuple(f"train/{number}" for number in numbers.tolist()))


def public(count: int = 4, side: int = 16) -> ImageSet:
    """Marked at the pixels from the far end."""
    numbers = side - 1 - torch.arange(count)
    images = (F.one_hot(numbers, side) * 255).to(torch.uint8).view(count, 1, 1, side)
    return ImageSet(images, numbers % CLASSES, tuple(f"public/{number}" for number in numbers.tolist()))


def defense(
    flip_signs: bool = False,
    *,
    others: ImageSet | None = None,
    normalisation: Normalisation = IDENTITY,
    seed: int = 0,
    **chosen: object,
) -> MixingDefense:
    made = MixingDefense(
        MixingSettings(**chosen),
        flip_signs=flip_signs,
        public=public() if others is None else others,
        normalisation=normalisation,
        classes=CLASSES,
        seed=seed,
    )
    made.begin_round(context())
    return made


def test_weights_follow_the_dirichlet_distribution() -> None:
    """Without a limit the own weight is Beta(3, 3) and a partner's Beta(1, 5), by the marginals of Dirichlet."""
    weights = mixing_weights(4000, 4, 1.0, draws(), torch.float64)
    assert stats.kstest(weights[:, 0].numpy(), stats.beta(3, 3).cdf).pvalue > 1e-3
    assert stats.kstest(weights[:, 2].numpy(), stats.beta(1, 5).cdf).pvalue > 1e-3
    assert stats.kstest(weights[:, 0].numpy(), stats.beta(1, 5).cdf).pvalue < 1e-9


def test_the_limit_is_a_redraw_and_not_a_cut() -> None:
    """With two images: Beta(3, 1), its cdf x^3, given that it lies between 0.35 and 0.65."""
    weights = mixing_weights(4000, 2, 0.65, draws(), torch.float64)[:, 0].numpy()
    assert stats.kstest(weights, lambda x: (x**3 - 0.35**3) / (0.65**3 - 0.35**3)).pvalue > 1e-3


@given(images=st.integers(2, 16), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_weights_sum_to_one_below_the_limit(images: int, seed: int, share: float) -> None:
    least = min(0.6, 2 / images)
    largest = MixingSettings(images=images, largest=least + share * (1 - least)).largest
    weights = mixing_weights(20, images, largest, draws(seed))
    assert weights.shape == (20, images) and (weights >= 0).all() and (weights <= largest).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(20))


@given(
    own=st.integers(1, 9), count=st.integers(1, 9), strangers=st.integers(0, 5), partners=st.integers(1, 8),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_partners_are_distinct_and_public_only_where_own_ones_lack(
    own: int, count: int, strangers: int, partners: int, seed: int
) -> None:
    count = min(count, own)
    if own - 1 + strangers < partners:
        return
    found = draw_partners(count, own, strangers, partners, draws(seed))
    assert found.shape == (count, partners)
    for index, row in zip(range(own - count, own), found.tolist(), strict=True):
        assert len(set(row)) == partners and index not in row
        assert sum(number < own for number in row) == min(partners, own - 1)
        assert all(0 <= number < own + strangers for number in row)


def test_every_other_image_is_as_likely() -> None:
    found = Counter(draw_partners(1, 5, 3, 2, draws(seed))[0, place].item() for seed in range(2000) for place in (0, 1))
    assert set(found) == {0, 1, 2, 3}
    # 1000 each of 4000 draws in pairs: five standard deviations.
    assert all(abs(count - 1000) < 125 for count in found.values())


def test_pixels_and_labels_are_mixed_with_the_same_weights() -> None:
    made, batch = defense(), marked(0, 8)
    protected = made.protect_batch(batch, context())
    weights = protected.images.view(8, 16)
    torch.testing.assert_close(weights.sum(1), torch.ones(8))
    assert ((weights > 0).sum(1) == 4).all() and (weights <= 0.65).all()
    assert (weights.diagonal() > 0).all(), "each holds its own image"
    assert (weights[:, 8:] == 0).all(), "eight own images need no public ones"
    expected = weights @ F.one_hot(torch.arange(16) % CLASSES, CLASSES).float()
    torch.testing.assert_close(protected.labels, expected)
    assert protected.sample_ids == batch.sample_ids
    assert made.measurements() == {
        "own_weight": pytest.approx(float(weights.diagonal().mean())),
        "public_share": 0.0,
    }


def test_instahide_flips_the_signs_of_the_same_mixtures() -> None:
    images = torch.randn(6, 2, 9, 9, generator=draws())
    batch = Batch(images, torch.arange(6) % CLASSES, tuple(map(str, range(6))))
    mixed, hidden = (defense(flip).protect_batch(batch, context()) for flip in (False, True))
    torch.testing.assert_close(hidden.images.abs(), mixed.images.abs())
    assert torch.equal(hidden.labels, mixed.labels)
    signs = hidden.images.sign() * mixed.images.sign()
    # 972 fair coins, each value its own: five standard deviations.
    assert abs(float(signs.mean())) < 5 / 972**0.5
    assert not torch.equal(signs[0], signs[1]) and not torch.equal(signs[:, 0], signs[:, 1])


def test_every_step_round_and_client_mixes_anew_and_can_be_repeated() -> None:
    def mixture(round: int, steps: int, seed: int = 0) -> Tensor:
        made = defense(True, seed=seed)
        made.begin_round(context(round))
        return [made.protect_batch(marked(0, 8), context(round)).images for _ in range(steps)][-1]

    torch.manual_seed(0)
    assert torch.equal(mixture(1, 2), mixture(1, 2))
    for other in (mixture(1, 1), mixture(2, 2), mixture(1, 2, seed=1)):
        assert not torch.equal(other, mixture(1, 2))


def test_partners_come_from_the_whole_round_and_not_from_the_last() -> None:
    made = defense(images=2)
    made.protect_batch(marked(0, 4), context())
    partners: set[int] = set()
    for _ in range(30):
        weights = made.protect_batch(marked(4, 4), context()).images.view(4, 16)
        partners.update(weights.nonzero()[:, 1].tolist())
    assert partners == set(range(8))
    made.begin_round(context(1))
    weights = made.protect_batch(marked(4, 4), context(1)).images.view(4, 16)
    assert set(weights.nonzero()[:, 1].tolist()) <= {4, 5, 6, 7}


def test_partners_are_as_a_defense_before_this_one_left_them() -> None:
    """In a second epoch an image comes again, protected anew: the first protection is forgotten."""
    made, first = defense(images=2), marked(0, 2)
    made.protect_batch(first, context())
    made.protect_batch(Batch(first.images * 100, first.labels, first.sample_ids), context())
    third = made.protect_batch(marked(2, 1), context()).images
    assert third.max() > 10


def test_public_images_fill_up_and_are_normalised() -> None:
    normalisation = Normalisation((0.5,), (0.25,))
    made, batch = defense(normalisation=normalisation), marked(0, 1)
    made.prepare(batch.images, batch.sample_ids)
    protected = made.protect_batch(batch, context())
    others = normalisation.apply(public().images.float() / 255).view(4, 16)
    weight = protected.images.view(16)[0] + 2 * (1 - made.measurements()["own_weight"])
    assert weight.item() == pytest.approx(made.measurements()["own_weight"], abs=1e-5)
    lift = protected.images.view(16) - made.measurements()["own_weight"] * batch.images.view(16)
    # A mixture of three of the four public images.
    found = torch.linalg.lstsq(others.T, lift[:, None]).solution.flatten()
    assert (found.abs() > 1e-4).sum() == 3
    torch.testing.assert_close(others.T @ found, lift, rtol=0, atol=1e-5)
    assert made.measurements()["public_share"] == 1.0
    labels = made.measurements()["own_weight"] * F.one_hot(batch.labels, CLASSES)[0]
    labels = labels + found @ F.one_hot(public().labels, CLASSES).float()
    torch.testing.assert_close(protected.labels[0], labels, rtol=0, atol=1e-5)


def test_too_few_images_are_said_at_once() -> None:
    none = public(0)
    made = defense(others=none)
    with pytest.raises(DefenseError, match=r"mixtures of 4 images.* 3 of .*0 public.*set images lower") as raised:
        made.prepare(marked(0, 3).images, marked(0, 3).sample_ids)
    assert "\n" not in str(raised.value)
    # Enough images, but not in the first batch.
    made.prepare(marked(0, 4).images, marked(0, 4).sample_ids)
    with pytest.raises(DefenseError, match="a larger batch size"):
        made.protect_batch(marked(0, 2), context())
    assert made.protect_batch(marked(2, 2), context()).images.shape == (2, 1, 1, 16)


def test_labels_that_are_probabilities_stay_so() -> None:
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    assert as_probabilities(soft, CLASSES) is soft
    batch = marked(0, 2)
    mixed = defense(images=2).protect_batch(Batch(batch.images, soft, batch.sample_ids), context())
    torch.testing.assert_close(mixed.labels, mixed.images.view(2, 16)[:, :2] @ soft)


def test_the_batch_is_left_as_it_was_and_nothing_of_it_is_handed_on() -> None:
    batch, made = marked(0, 8), defense(True)
    images, labels = batch.images.clone(), batch.labels.clone()
    first = made.protect_batch(batch, context())
    first.images.fill_(7.0)
    first.labels.fill_(7.0)
    assert torch.equal(batch.images, images) and torch.equal(batch.labels, labels)
    assert made.protect_batch(batch, context()).images.abs().max() <= 1


def test_partners_do_not_change_with_the_memory_that_they_came_in() -> None:
    """A training loop may write every batch into the same buffer."""
    made, buffer = defense(images=2), marked(0, 2)
    made.protect_batch(buffer, context())
    buffer.images.copy_(marked(2, 2).images)
    buffer.labels.copy_(marked(2, 2).labels)
    later = Batch(buffer.images, buffer.labels, ("train/2", "train/3"))
    partners = set[int]()
    for _ in range(20):
        partners.update(made.protect_batch(later, context()).images.view(2, 16).nonzero()[:, 1].tolist())
    assert partners == {0, 1, 2, 3}


def test_what_was_trained_on_is_kept_where_asked_for() -> None:
    made, asked = defense(), context(explain=frozenset({"train/2"}))
    protected = made.protect_batch(marked(0, 8), asked)
    assert torch.equal(made.explanations()["protected::values"], protected.images[2:3])
    made.begin_round(asked)
    assert made.explanations() == {}


@pytest.mark.parametrize("name", ["mixup", "instahide"])
def test_a_round_of_training_on_mixtures(
    local_round: Callable[..., object], build: Callable[..., nn.Module], name: str
) -> None:
    """Soft labels reach the loss: the last bias's step is the mean of p - y over the batch."""
    images = ImageSet(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    made = DefenseSettings(defense=name).build(
        Resources(None, Normalisation((0.5,), (0.25,)), images, 2, "site-1", seed=0)
    )
    assert made.acts_on == {"batch"}
    kept: list[Batch] = []
    protect = made.protect_batch
    made.protect_batch = lambda batch, context: kept.append(protect(batch, context)) or kept[-1]  # type: ignore
    result = local_round(made)
    expected = (build()(kept[0].images).softmax(1) - kept[0].labels).mean(0)
    torch.testing.assert_close(result.update.tensors["classifier.bias"], -0.1 * expected.detach(), rtol=1e-4, atol=1e-6)
    assert result.measurements["public_share"] == pytest.approx(1 / 3)


def test_settings_and_presets() -> None:
    assert set(MIXING_PRESETS) == {"weak", "paper", "strong"}
    assert [MixingSettings(**values).images for values in MIXING_PRESETS.values()] == [2, 4, 6]
    for options, match in [
        ({"images": 1}, "greater than or equal to 2"),
        ({"images": 4, "largest": 0.3}, "hardly ever all below; set at least 0.5"),
    ]:
        with pytest.raises(ConfigError, match=match):
            DefenseSettings(defense="mixup", options=options)
