"""ATS: its operations against scipy and Pillow, the choice of policies, and the scores of the search."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.ats import ATS_PRESETS, ATSDefense, ATSSettings
from shadow_defense.defenses.ats_search import (
    ScoredPolicy,
    accuracy_score,
    input_jacobians,
    random_steps,
    rank,
    search_policy,
    similarity_areas,
)
from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.transformations import (
    HIGHEST_LEVEL,
    LARGEST_ANGLE,
    LARGEST_SHEAR,
    OPERATIONS,
    POOL,
    apply_policy,
)
from shadow_defense.errors import ConfigError, DataError
from shadow_defense.models.settings import ModelSettings

NORMALISATION = Normalisation((0.4,), (0.2,))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def byte_images(count: int = 2, height: int = 11, width: int = 8, channels: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, channels, height, width), generator=draws(5)).float() / 255


def operate(name: str, images: Tensor, strength: float) -> Tensor:
    return OPERATIONS[name].apply(images, torch.full((len(images),), strength))


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().numpy().astype(np.uint8))


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.4, 1.0])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometry_against_scipy(name: str, strength: float) -> None:
    """On a picture that is not square: rows and columns are pixels, not shares of the side."""
    images = byte_images()
    height, width = images.shape[2:]
    shear, angle = LARGEST_SHEAR * strength, LARGEST_ANGLE * strength
    cosine, sine = math.cos(angle), math.sin(angle)
    # From (row, column) of the result, counted from the middle, to where it comes from.
    matrix, shift = {
        "shear_x": ([[1, 0], [shear, 1]], (0, 0)),
        "shear_y": ([[1, shear], [0, 1]], (0, 0)),
        "translate_x": (np.eye(2), (0, 0.45 * strength * width)),
        "translate_y": (np.eye(2), (0.45 * strength * height, 0)),
        "rotate": ([[cosine, sine], [-sine, cosine]], (0, 0)),
    }[name]
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = middle - np.array(matrix) @ middle + shift
    expected = [
        ndimage.affine_transform(image[0].numpy(), matrix, offset, order=1, mode="grid-constant") for image in images
    ]
    np.testing.assert_allclose(operate(name, images, strength)[:, 0].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("level", [1, 4, 9])
def test_values_against_pillow(level: int) -> None:
    images, strength = byte_images(), level / HIGHEST_LEVEL
    bits = 8 - round(4 * strength)
    for name, expected, tolerance in [
        ("invert", ImageOps.invert, 1e-6),
        ("posterize", lambda picture: ImageOps.posterize(picture, bits), 1e-6),
        # Pillow's threshold belongs to what is inverted: one byte above ours.
        ("solarize", lambda picture: ImageOps.solarize(picture, math.floor(255 * (1 - strength)) + 1), 1e-6),
        ("autocontrast", ImageOps.autocontrast, 1.01 / 255),
        ("brightness", lambda picture: ImageEnhance.Brightness(picture).enhance(1 + 0.9 * strength), 1.01 / 255),
        # Pillow rounds the mean.
        ("contrast", lambda picture: ImageEnhance.Contrast(picture).enhance(1 - 0.9 * strength), 1.5 / 255),
    ]:
        for image in images:
            signed = -strength if name == "contrast" else strength
            found = operate(name, image[None], signed)[0, 0].numpy()
            np.testing.assert_allclose(
                found, np.asarray(expected(as_pillow(image))) / 255, atol=tolerance, err_msg=name
            )


def test_sharpness_against_pillow_inside_the_border() -> None:
    image = byte_images(1)
    for factor in (0.1, 0.5, 1.45):
        found = operate("sharpness", image, (factor - 1) / 0.9)[0, 0, 1:-1, 1:-1].numpy()
        expected = np.asarray(ImageEnhance.Sharpness(as_pillow(image[0])).enhance(factor))[1:-1, 1:-1] / 255
        np.testing.assert_allclose(found, expected, atol=2.01 / 255)


def test_equalise_by_hand() -> None:
    """Bytes 10, 10, 20, 30: shares (2, 2, 3, 4) of 4 less the 2 darkest, over the 2 others."""
    image = torch.tensor([10.0, 10.0, 20.0, 30.0]).reshape(1, 1, 2, 2) / 255
    torch.testing.assert_close(operate("equalise", image, 1.0).flatten(), torch.tensor([0.0, 0.0, 0.5, 1.0]))
    both = torch.cat([image, torch.full_like(image, 0.3)], dim=1)
    for name in ("equalise", "autocontrast"):
        assert torch.equal(operate(name, both, 1.0)[:, 1], both[:, 1]), "a flat channel stays"


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if operation.levelled])
@pytest.mark.parametrize("channels", [1, 3])
def test_level_zero_is_the_identity(name: str, channels: int) -> None:
    images = byte_images(channels=channels)
    torch.testing.assert_close(apply_policy(images, [((name, 0),)], draws()), images, rtol=0, atol=2e-6)
    assert not torch.allclose(apply_policy(images, [((name, 5),)], draws()), images, atol=1e-2)


@given(
    policy=st.lists(st.lists(st.sampled_from(POOL), max_size=3).map(tuple), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_images_stay_in_range_and_the_draws_do_not_look_at_them(policy: list[tuple], seed: int) -> None:
    images = byte_images(3)
    before = images.clone()
    found = apply_policy(images, policy, draws(seed))
    assert found.shape == images.shape and found.min() >= -1e-6 and found.max() <= 1 + 1e-5
    found += 1
    assert torch.equal(images, before)
    # What is done to an image does not depend on the others of its batch.
    alone = images.clone()
    alone[1:] = 0.5
    torch.testing.assert_close(apply_policy(alone, policy, draws(seed))[0] + 1, found[0])


def test_one_sub_policy_an_image_with_random_signs() -> None:
    images = torch.full((600, 1, 3, 3), 0.25)
    found = apply_policy(images, [(), (("invert", 9),), (("brightness", 9),)], draws())
    values = Counter(found.mean((1, 2, 3)).mul(1000).round().int().tolist())
    assert set(values) == {250, 750, 25, 475}
    # Chance of a third each, of a sixth for either sign: five standard deviations.
    assert all(abs(values[value] - 200) < 58 for value in (250, 750))
    assert all(abs(values[value] - 100) < 46 for value in (25, 475))


def test_operations_come_in_order() -> None:
    image = torch.tensor([0.1, 0.9]).reshape(1, 1, 1, 2)
    first = apply_policy(image, [(("solarize", 9), ("invert", 9))], draws()).flatten()
    torch.testing.assert_close(first, torch.tensor([0.1, 0.9]))
    second = apply_policy(image, [(("invert", 9), ("solarize", 3))], draws()).flatten()
    torch.testing.assert_close(second, torch.tensor([0.1, 0.1]))


def context(round: int = 0, explain: frozenset[str] = frozenset()) -> RoundContext:
    return RoundContext(nn.Linear(1, 1), {}, F.cross_entropy, round, 3, 0.1, explain)


def batch(count: int = 4) -> Batch:
    images = NORMALISATION.apply(byte_images(count))
    return Batch(images, torch.arange(count) % 2, tuple(map(str, range(count))))


def defense(policy: list, seed: int = 0) -> ATSDefense:
    return ATSDefense(ATSSettings(policy=policy), NORMALISATION, seed)


def test_operations_see_images_between_0_and_1() -> None:
    given = batch()
    protected = defense([[["invert", 9]]]).protect_batch(given, context())
    torch.testing.assert_close(NORMALISATION.invert(protected.images), 1 - byte_images(4))
    assert protected.labels is given.labels and protected.sample_ids == given.sample_ids


def test_draws_are_named_by_client_round_and_step() -> None:
    policy = [[["rotate", 9]], [["shear_x", 9]], [["brightness", 5]]]

    def images(round: int, steps: int, seed: int = 0) -> Tensor:
        made = defense(policy, seed)
        made.begin_round(context(round))
        return [made.protect_batch(batch(8), context(round)).images for _ in range(steps)][-1]

    torch.manual_seed(0)
    assert torch.equal(images(1, 2), images(1, 2))
    for other in (images(1, 1), images(2, 2), images(1, 2, seed=1)):
        assert not torch.allclose(other, images(1, 2))


def test_what_was_trained_on_is_kept_where_asked_for() -> None:
    made, asked = defense([[["invert", 9]]]), context(explain=frozenset({"2"}))
    made.begin_round(asked)
    protected = made.protect_batch(batch(), asked)
    assert torch.equal(made.explanations()["protected::values"], protected.images[2:3])
    made.begin_round(context())
    assert made.explanations() == {}


def test_an_empty_policy_changes_no_update_and_another_does(local_round: Callable[..., object]) -> None:
    normalisation = Normalisation((0.5,), (0.25,))
    plain = local_round().update.tensors
    empty = local_round(ATSDefense(ATSSettings(policy=[[]]), normalisation, 0)).update.tensors
    changed = local_round(ATSDefense(ATSSettings(), normalisation, 0)).update.tensors
    for name, tensor in plain.items():
        torch.testing.assert_close(empty[name], tensor, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(changed["classifier.weight"], plain["classifier.weight"], rtol=1e-2)


def test_settings_say_what_is_wrong() -> None:
    for policy, match in [
        ([[["rotat", 3]]], "shear_x.*rotate"),
        ([[["rotate", 10]]], "less than or equal to 9"),
        ([], "at least 1 item"),
    ]:
        with pytest.raises(ConfigError, match=match) as raised:
            DefenseSettings(defense="ats", options={"policy": policy})
        assert "\n" not in str(raised.value)
    chosen = DefenseSettings(defense="ats", options={"policy": [[["rotate", 3], ["invert", 9]], []]})
    assert chosen.settings().policy == ((("rotate", 3), ("invert", 9)), ())


def test_presets() -> None:
    assert set(ATS_PRESETS) == {"weak", "paper", "strong"}
    policies = [ATSSettings(**values).policy for values in ATS_PRESETS.values()]
    assert len(set(policies)) == 3
    assert all(step in POOL for policy in policies for steps in policy for step in steps)


def test_accuracy_scores_of_the_specification() -> None:
    """Two orthogonal Jacobians: eigenvalues 1 and 1; identical ones: 2 and 0."""
    rows = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    assert accuracy_score(rows) == pytest.approx(-2.0, abs=1e-4)
    assert accuracy_score(torch.stack([rows[0], rows[0]])) == pytest.approx(-99990, abs=1)
    assert accuracy_score(torch.stack([rows[0], torch.ones(4)])) == -math.inf
    # Correlation, not the product: a constant added to a row and its size do not count.
    assert accuracy_score(torch.stack([3 * rows[0] + 2, rows[1] - 5])) == pytest.approx(-2.0, abs=1e-4)


def linear() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    model[1].weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    model[1].bias.data = torch.tensor([0.5, -0.5])
    return model


def test_input_jacobians_of_a_linear_model_are_its_summed_rows() -> None:
    images = torch.randn(3, 1, 1, 2, generator=draws())
    torch.testing.assert_close(input_jacobians(linear(), images), torch.tensor([[4.0, 1.0]]).repeat(3, 1))


def test_similarity_areas_one_image_and_one_step_at_a_time() -> None:
    model = linear()
    images, noise = (torch.randn(3, 1, 1, 2, generator=draws(seed)) for seed in (1, 2))
    labels = torch.tensor([0, 1, 0])

    def gradients(image: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), list(model.parameters()))

    expected = []
    for image, start, label in zip(images, noise, labels, strict=True):
        target, curve = gradients(image, label), []
        for step in range(21):
            found = gradients(step / 20 * image + (1 - step / 20) * start, label)
            cosines = [float((a * b).sum() / (a.norm() * b.norm())) for a, b in zip(found, target, strict=True)]
            curve.append(sum(cosines) / 2)
        expected.append(sum((a + b) / 40 for a, b in itertools.pairwise(curve)))
    torch.testing.assert_close(
        similarity_areas(model, images, labels, noise), torch.tensor(expected), rtol=1e-4, atol=0
    )
    # Where the way begins at the image itself the gradient is there from the start.
    torch.testing.assert_close(similarity_areas(model, images, labels, images), torch.ones(3))


def test_the_ranking_by_hand() -> None:
    def scored(level: int, privacy: float, variance: float, accuracy: float) -> ScoredPolicy:
        return ScoredPolicy((("rotate", level),), privacy, variance, accuracy)

    first, second, third = scored(1, 0.2, 0.4, -110.0), scored(2, 0.4, 0.0, -120.0), scored(3, 0.6, 0.2, -100.0)
    lost = scored(4, -1.0, 0.0, -math.inf)
    # 0.7 (0, 0.5, 1) + 0.3 (1, 0, 0.5) = (0.3, 0.35, 0.85)
    assert rank([third, lost, second, first], kept_share=0.75) == [first, second, third]
    assert rank([third, lost, second, first], kept_share=0.5) == [first, third]
    assert rank([first]) == [first]


def test_random_steps_come_from_the_pool_or_are_absent() -> None:
    found = [random_steps(draws(seed)) for seed in range(300)]
    assert all(step in POOL for steps in found for step in steps)
    # Three draws of one in 54 each: 300 of them lack about 17 steps.
    assert 3 < sum(3 - len(steps) for steps in found) < 40
    assert len(set(found)) > 290


@pytest.fixture
def striped() -> ImageSet:
    generator = draws(9)
    images = torch.randint(0, 120, (120, 1, 8, 8), generator=generator)
    labels = torch.arange(120) % 2
    images[labels == 1, :, ::2] += 120
    return ImageSet(images.to(torch.uint8), labels, tuple(map(str, range(120))))


@pytest.mark.slow
def test_the_search_scores_all_alike_and_repeats_itself(striped: ImageSet) -> None:
    model = ModelSettings(name="convnet", width=8, normalisation="group", activation="gelu")

    def search(candidates: int) -> list[ScoredPolicy]:
        return search_policy(
            striped,
            model,
            classes=2,
            seed=0,
            candidates=candidates,
            images_per_class=2,
            jacobian_images=6,
            networks=2,
            epochs=1,
        )

    found = search(4)
    # A candidate's score does not depend on how many there are.
    assert search(2) == found[:2]
    assert all(-1 <= each.privacy <= 1 and each.accuracy <= -5.9 for each in found)
    assert len({each.privacy for each in found}) == 4
    with pytest.raises(DataError, match="60 images of class 0 and has"):
        search_policy(striped, model, classes=2, seed=0, candidates=1, images_per_class=60)
