"""Steps 7 and 9: what is remembered, how strong the noise is, and the controls of equal energy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shadow_defense.models.class_activation import keep_top
from shadow_defense.shadow.foreground import spare_foreground, sparing_strength
from shadow_defense.shadow.noise import EXPONENTS, noise_amplitude, scale_noise, shuffle_noise, uniform_noise
from shadow_defense.shadow.noise_map import blend
from shadow_defense.shadow.sample_store import pack_samples, unpack_samples
from shadow_defense.shadow.settings import ShadowSettings


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_momentum() -> None:
    new, previous = torch.full((1, 2, 2), 4.0), torch.full((1, 2, 2), 2.0)
    assert torch.equal(blend(new, None, 0.9), new)
    torch.testing.assert_close(blend(new, previous, 0.1), torch.full((1, 2, 2), 3.8))
    torch.testing.assert_close(blend(new, previous, 0.9), torch.full((1, 2, 2), 2.2))


@pytest.mark.parametrize(
    ("round", "expected"), [(0, 0.1), (9, 0.1), (10, 0.1), (25, 0.25), (50, 0.5), (51, 0.5), (99, 0.5)]
)
def test_sparing_strength(round: int, expected: float) -> None:
    assert sparing_strength(round, 100) == pytest.approx(expected)


def test_amplitude_grows_from_0_19_by_e() -> None:
    assert noise_amplitude(0, 100) == pytest.approx(0.19)
    assert noise_amplitude(50, 100) == pytest.approx(0.19 * math.sqrt(math.e))
    assert noise_amplitude(50, 100, 0.5) == pytest.approx(0.5 * math.sqrt(math.e))


def test_schedules_begin_alike_and_part_by_powers_of_e() -> None:
    assert {noise_amplitude(0, 8, 0.7, schedule=schedule) for schedule in EXPONENTS} == {0.7}
    assert noise_amplitude(8, 8, 0.7, schedule="constant") == pytest.approx(0.7)
    assert noise_amplitude(4, 8, 0.7, schedule="decaying") == pytest.approx(0.7 / math.sqrt(math.e))
    assert noise_amplitude(8, 8, 0.7, schedule="decaying") == pytest.approx(0.7 / math.e)


def test_noise_peak_is_a_share_of_the_image_peak() -> None:
    noise_map = torch.tensor([0.1, 0.4]).view(1, 1, 1, 2)
    image = torch.tensor([[-3.0, 2.0], [1.0, 0.0]]).view(1, 2, 1, 2)
    noise = scale_noise(noise_map, image, 0.25)
    # max(x) = 2 over both channels, max(N4) = 0.4: factor 2 / 0.4 * 0.25; one map for both channels.
    expected = torch.tensor([0.125, 0.5]).view(1, 1, 1, 2).expand(1, 2, 1, 2)
    torch.testing.assert_close(noise, expected)


def test_a_negative_peak_does_not_turn_the_noise_around() -> None:
    noise_map = torch.tensor([0.1, 0.4]).view(1, 1, 1, 2)
    noise = scale_noise(noise_map, torch.full((1, 1, 1, 2), -2.0), 0.25)
    torch.testing.assert_close(noise, torch.tensor([0.125, 0.5]).view(1, 1, 1, 2))


def test_a_map_of_zeros_gives_no_noise() -> None:
    assert torch.equal(scale_noise(torch.zeros(1, 1, 2, 2), drawn(1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2))


def test_noise_of_one_image_does_not_depend_on_the_others() -> None:
    maps, images = drawn(3, 1, 4, 4), drawn(3, 3, 4, 4, seed=1) * torch.tensor([1.0, 5.0, 20.0]).view(3, 1, 1, 1)
    together = scale_noise(maps, images, 0.19)
    for index in range(3):
        one = slice(index, index + 1)
        assert torch.equal(together[one], scale_noise(maps[one], images[one], 0.19))


def test_shuffling_keeps_the_values_and_moves_them() -> None:
    noise = scale_noise(drawn(2, 1, 6, 6), drawn(2, 3, 6, 6, seed=1), 0.3)
    shuffled = shuffle_noise(noise, torch.Generator().manual_seed(2))
    assert torch.equal(shuffled.flatten(2).sort(dim=2).values, noise.flatten(2).sort(dim=2).values)
    assert not torch.equal(shuffled, noise)
    # The same places for every channel, but other places for every image.
    assert torch.equal(shuffled[:, :1].expand_as(shuffled), shuffled)
    places = [[int((noise[i, 0].flatten() == value).nonzero()) for value in shuffled[i, 0].flatten()] for i in (0, 1)]
    assert places[0] != places[1]


def test_uniform_control_has_the_same_energy_per_image() -> None:
    noise = drawn(3, 1, 8, 8) * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1, 1)
    control = uniform_noise(noise, torch.Generator().manual_seed(2))
    torch.testing.assert_close(control.square().sum(dim=(1, 2, 3)), noise.square().sum(dim=(1, 2, 3)))
    # Both signs and independent of where the noise was.
    assert (control < 0).any() and (control > 0).any()
    correlation = torch.corrcoef(torch.stack([control[0].flatten(), noise[0].flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.4


def test_sparing_lowers_the_foreground() -> None:
    """N3 = 1/4 everywhere; the one kept pixel at T = 0.1 takes e^10 / (e^10 + 3) of the mass."""
    cam = torch.tensor([[[0.9, 1.0], [0.2, 0.1]]])
    spared = spare_foreground(torch.full((1, 1, 2, 2), 0.25), cam, 0.1, share=0.3, temperature=0.1)
    top = math.exp(10) / (math.exp(10) + 3)
    rest = (1 - top) / 3
    expected = 0.25 - 0.1 * torch.tensor([[[[rest, top], [rest, rest]]]])
    torch.testing.assert_close(spared, expected)


def test_top_share_of_pixels_is_kept() -> None:
    cam = drawn(2, 10, 10)
    kept = keep_top(cam, 0.3)
    for image, result in zip(cam, kept, strict=True):
        threshold = image.flatten().sort(descending=True).values[29]
        assert torch.equal(result, torch.where(image >= threshold, image, torch.zeros_like(image)))


def test_samples_survive_packing() -> None:
    samples = {"train/é ::1": drawn(1, 2, 2), "b": drawn(1, 2, 2, seed=1)}
    packed = pack_samples(samples)
    assert all(isinstance(tensor, Tensor) for tensor in packed.values())
    unpacked = unpack_samples(packed)
    assert list(unpacked) == list(samples)
    assert all(torch.equal(unpacked[name], samples[name]) for name in samples)
    assert pack_samples({}) == {} and unpack_samples({}) == {}


def test_no_chest_x_ray_is_left_without_noise(shared_data: Path) -> None:
    """PneumoniaMNIST's training images, normalised by their own statistics; on a flat map noise is its scale."""
    with np.load(shared_data / "medmnist" / "pneumoniamnist.npz") as data:
        images = torch.from_numpy(data["train_images"]).unsqueeze(1).float() / 255
    normalised, flat = (images - images.mean()) / images.std(), torch.ones(len(images), 1, 28, 28)

    def below(least_peak: float) -> int:
        noise = scale_noise(flat, normalised, 0.19, least_peak)[:, 0, 0, 0]
        return int((noise < noise.median() / 4).sum())

    assert below(0.0) == 61
    assert below(ShadowSettings().floor / float(images.std())) == 0
