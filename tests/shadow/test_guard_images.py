"""Images and ids of every type: what comes back is of the type that was given, and one image has one noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.shadow.little_guard import COUNT, SIDE, Z, generator, guard, images, net, step
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from shadow_defense.errors import DataError, DefenseError
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.sample_ids import sample_keys
from shadow_defense.shadow.settings import shadow_preset


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_result_has_the_precision_of_the_images(dtype: torch.dtype) -> None:
    given = images().to(dtype)
    expected = guard().protect(**step(given.float()))
    for model in (net(), net().to(dtype)):
        chosen = guard()
        protected = chosen.protect(**step(given, model=model))
        assert protected.dtype == dtype and torch.isfinite(protected).all()
        # The model, too, was rounded; the steps themselves run in single precision.
        torch.testing.assert_close(protected.float(), expected, rtol=0, atol=0.02)


def test_autocast_of_the_caller_does_not_reach_the_guard() -> None:
    plain = guard().protect(**step())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(guard().protect(**step()), plain)


def test_arrays_come_back_as_arrays() -> None:
    plain = guard().protect(**step())
    for dtype in (np.float32, np.float64):
        protected = guard().protect(**step(images().numpy().astype(dtype)))
        assert isinstance(protected, np.ndarray) and protected.dtype == dtype
        np.testing.assert_allclose(protected, plain.numpy(), rtol=0, atol=1e-6)
    reversed_twice = np.ascontiguousarray(images().numpy()[..., ::-1])[..., ::-1]
    np.testing.assert_allclose(guard().protect(**step(reversed_twice)), plain.numpy(), rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="images are an array of object"):
        guard().protect(**step(images().numpy().astype(object)))


def test_monai_tensors_keep_their_metadata() -> None:
    meta_tensor = pytest.importorskip("monai.data.meta_tensor").MetaTensor
    protected = guard().protect(**step(meta_tensor(images(), meta={"scan": "a"})))
    assert isinstance(protected, meta_tensor) and protected.meta["scan"] == "a"
    assert torch.equal(protected.as_tensor(), guard().protect(**step()))


@pytest.mark.parametrize(
    ("given", "low"),
    [
        ((images() + 1) * 127.5, 0),
        (((images() + 1) / 2 - 0.485) / 0.229, -2.1),
        (images() * 2, -2),
    ],
    ids=["bytes", "ImageNet", "another std"],
)
def test_a_range_that_the_normalisation_cannot_give_is_refused(given: Tensor, low: float) -> None:
    for call in (lambda: guard().protect(**step(given)), lambda: guard().encode(given, list("abcd"))):
        with pytest.raises(DataError, match=r"not normalised with the guard's mean \[0\.5\] and std \[0\.5\]"):
            call()
    # Resampling may overshoot a little.
    assert guard().protect(**step(images() * 1.2)).shape == images().shape


def test_mean_and_std_in_every_form() -> None:
    for mean, std in ((0.5, 0.25), ([0.5], [0.25]), (torch.tensor([0.5]), np.array([0.25])), (np.float32(0.5), 0.25)):
        chosen = ShadowGuard(generator(), z_dim=Z, mean=mean, std=std)
        assert (chosen.normalisation.mean, chosen.normalisation.std) == ((0.5,), (0.25,))
    for mean, std in ((0.5, 0.0), (0.5, -1.0), (float("nan"), 1.0), ("half", 1.0), ((), ())):
        with pytest.raises(DataError, match="mean"):
            ShadowGuard(generator(), z_dim=Z, mean=mean, std=std)


@pytest.mark.parametrize(
    "sample_ids",
    [
        ["0", "1", "2", "3"],
        range(COUNT),
        torch.arange(COUNT),
        list(torch.arange(COUNT)),
        np.arange(COUNT),
        list(np.arange(COUNT, dtype=np.int32)),
        np.array(["0", "1", "2", "3"]),
        [Path(str(index)) for index in range(COUNT)],
    ],
    ids=lambda ids: f"{type(ids).__name__} of {type(ids[0]).__name__}",
)
def test_equal_ids_match_whatever_their_type(sample_ids: Any) -> None:
    chosen = guard()
    first = chosen.protect(**step(sample_ids=["0", "1", "2", "3"]))
    codes = dict(chosen.latents)
    chosen.protect(**step(sample_ids=sample_ids, round=1))
    assert list(chosen.latents) == ["0", "1", "2", "3"] and all(chosen.latents[key] is codes[key] for key in codes)
    again = guard()
    again.load_state_dict(chosen.state_dict())
    assert list(again.latents) == list(chosen.latents)
    assert torch.equal(guard().protect(**step(sample_ids=sample_ids)), first)


def test_names_of_ids() -> None:
    assert sample_keys("one") == ("one",)
    assert sample_keys(torch.tensor(7)) == sample_keys(np.int16(7)) == sample_keys(7) == ("7",)
    assert sample_keys([("p", 1), ("p", np.int64(2))]) == ('["p", "1"]', '["p", "2"]')
    # A file name that is no UTF-8 can be hashed and saved.
    assert sample_keys([Path("scan\udcff.png")]) == ("scan\\udcff.png",)
    for given in ([1.5], torch.tensor([0.0, 1.0]), [None], [True], [b"x"], b"x", [()], [{"a": 1}]):
        with pytest.raises(DataError, match="a sample id is of type"):
            sample_keys(given)


def test_an_image_that_is_in_the_batch_twice_is_protected_once() -> None:
    once, twice = guard(), guard()
    order = [0, 1, 0, 2, 0]
    given = step(images()[order], torch.tensor(order) % 2, [f"i{index}" for index in order])
    protection = twice.protect_with_details(**given)
    for name in ("images", "noise", "noise_map", "cam", "rebuilt"):
        tensor = getattr(protection, name)
        assert len(tensor) == 5 and torch.equal(tensor[0], tensor[2]) and torch.equal(tensor[0], tensor[4])
    assert torch.equal(protection.images, images()[order] + protection.noise)
    assert set(twice.latents) == set(twice.noise_maps) == {"i0", "i1", "i2"}
    once.protect_with_details(**step(images()[:3]))
    for key, code in once.latents.items():
        torch.testing.assert_close(twice.latents[key], code)
    with pytest.raises(DataError, match="two different images of one batch have the id 'x'"):
        guard().protect(**step(sample_ids=["w", "x", "x", "y"]))
    with pytest.raises(DataError, match="two different images"):
        guard().encode(images(), ["w", "x", "x", "y"])


@pytest.mark.parametrize("placement", ["shuffled", "uniform"])
def test_the_controls_draw_once_for_an_image(placement: str) -> None:
    given = step(images()[[0, 0]], [0, 0], ["a", "a"])
    protected = guard(placement=placement).protect(**given)
    assert torch.equal(protected[0], protected[1])


def test_a_weighted_sampler_goes_through() -> None:
    labels = (torch.arange(12) >= 10).long()
    data = TensorDataset(images(12), labels, torch.arange(12))
    sampler = WeightedRandomSampler(torch.where(labels == 1, 9.0, 1.0), 16, generator=torch.Generator().manual_seed(0))
    chosen, repeats = guard(), 0
    for batch, targets, indices in DataLoader(data, batch_size=8, sampler=sampler):
        repeats += len(indices) - len(indices.unique())
        assert chosen.protect(**step(batch, targets, indices)).shape == batch.shape
    assert repeats > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flip(3),
        lambda x: x.roll(1, 2),
        lambda x: x * 0.9,
        lambda x: x + 0.02,
        lambda x: x.rot90(1, (2, 3)),
    ],
    ids=["flip", "shift", "contrast", "brightness", "rotation"],
)
def test_an_image_that_changes_under_its_id_is_noticed(change: Any) -> None:
    """Smooth images, in which a change moves little: the picture of a body, not noise."""
    axis = torch.linspace(-1, 1, SIDE)
    smooth = torch.stack([(axis[:, None] * a + axis[None] * b) * 0.4 for a, b in ((1, 0.3), (0.2, 1))]).unsqueeze(1)
    chosen = guard()
    before = chosen.protect(**step(smooth))
    # The same image read again, in another precision: no change.
    chosen.protect(**step(smooth.bfloat16(), round=1))
    assert before.shape == smooth.shape
    with pytest.raises(DataError, match="another image was protected under the id 'i0' before: protect first"):
        chosen.protect(**step(change(smooth), round=1))
    with pytest.raises(DataError, match="another image was protected"):
        chosen.encode(change(smooth), ["i0", "i1"])
    # A view with an id of its own is an image of its own.
    assert chosen.protect(**step(change(smooth), sample_ids=["i0 view", "i1 view"], round=1)).shape == smooth.shape


def test_images_of_another_size_are_refused() -> None:
    chosen = guard()
    chosen.protect(**step())
    small = torch.nn.functional.interpolate(images(), size=(12, 12))
    with pytest.raises(DataError, match="12 x 12 px, but the guard has protected images of 16 x 16 px"):
        chosen.protect(**step(small, sample_ids=["a", "b", "c", "d"]))


def ramp(top: float) -> Tensor:
    """A ramp from black to ``top``, normalised with 0.5 and 0.5: the paper's measure of it is |2 top - 1|."""
    return torch.linspace(0, top, SIDE * SIDE).view(1, 1, SIDE, SIDE) * 2 - 1


@pytest.mark.parametrize("top", [1.0, 0.8, 0.6, 0.5, 0.3])
def test_brightness_near_the_mean_does_not_take_the_noise_away(top: float) -> None:
    """0.19 of the brightest pixel's distance from the mean in the paper, of a quarter of the range 2 at least here."""
    assert float(guard().protect_with_details(**step(ramp(top))).noise.max()) == pytest.approx(
        0.19 * max(abs(2 * top - 1), 0.5)
    )
    exact = guard(floor=0.01).protect_with_details(**step(ramp(top))).noise
    assert float(exact.max()) == pytest.approx(0.19 * max(abs(2 * top - 1), 0.02), rel=1e-4)
    bright = step(ramp(1.0))
    assert torch.equal(guard().protect(**bright), guard(floor=0.0).protect(**bright))


def test_an_image_that_the_formula_gives_no_noise_is_an_error_that_names_it() -> None:
    grey = torch.cat([ramp(1.0), ramp(0.5).clamp_max(0.0)])
    chosen = ShadowGuard(generator(), shadow_preset("paper", latent_iterations=5), z_dim=Z)
    with pytest.raises(DefenseError, match=r"image 'i1' would get no noise.*: set `floor` above 0"):
        chosen.protect(**step(grey))
    assert chosen.noise_maps == {} and chosen.batches_protected == 0
    assert (guard().protect_with_details(**step(grey)).noise.flatten(1).amax(1) > 0).all()
