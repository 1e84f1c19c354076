"""LPIPS against the implementations of its authors' package and of torchmetrics, and its properties."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from shadow_defense.config import MetricSettings
from shadow_defense.errors import ConfigError, DataError, ModelError
from shadow_defense.metrics.lpips import Lpips, load_lpips
from shadow_defense.metrics.lpips_trunks import CHANNELS, KERNEL_SIZES, read_alexnet_weights
from shadow_defense.seeds import named_generator


@pytest.fixture(scope="module")
def shift_tolerant() -> Lpips:
    return load_lpips("st-lpips")


@pytest.fixture(scope="module")
def alexnet(shared_data: Path) -> Lpips:
    return load_lpips("alexnet", shared_data / "lpips_alexnet.npz")


def image_pair(count: int, channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images and noisy versions of them: far apart for LPIPS, unlike two images of noise."""
    shape = (count, channels, height, width)
    generator = named_generator(0, "lpips", *shape)
    coarse = torch.rand(count, channels, 6, 6, generator=generator)
    first = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return first, (first + 0.3 * torch.randn(shape, generator=generator)).clamp(0, 1)


@pytest.fixture
def published_shift_tolerant(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """The package's own class, with the three packages that it imports but does not need here replaced."""
    for name, contents in {
        "torchvision": {"models": SimpleNamespace()},
        "IPython": {"embed": None},
        "torchsummary": {"summary": None},
    }.items():
        stub = ModuleType(name)
        vars(stub).update(contents)
        monkeypatch.setitem(sys.modules, name, stub)
    return importlib.import_module("stlpips_pytorch.stlpips").LPIPS


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 75, 101), (1, 3, 224, 224)])
def test_st_lpips_equals_its_authors_implementation(
    shift_tolerant: Lpips, published_shift_tolerant: type[nn.Module], shape: tuple[int, ...]
) -> None:
    first, second = image_pair(*shape)
    published = published_shift_tolerant(net="alex", variant="shift_tolerant", verbose=False)
    published_map = published_shift_tolerant(net="alex", variant="shift_tolerant", verbose=False, spatial=True)
    distances, maps = shift_tolerant(first, second)
    with torch.no_grad():
        expected = published(first, second, normalize=True).flatten()
        expected_maps = published_map(first, second, normalize=True)[:, 0]
    assert expected.min() > 0.05
    torch.testing.assert_close(distances, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(maps, expected_maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shift_tolerant.pairwise(first, second).diagonal(), expected, rtol=1e-4, atol=1e-6)


def alexnet_features_from(weights: Path) -> nn.Sequential:
    """AlexNet's feature layers as torchvision lays them out, with the trunk of the LPIPS weights."""
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )
    with np.load(weights) as file:
        for i, place in enumerate((0, 3, 6, 8, 10)):
            kernel = torch.from_numpy(file[f"AlexNet_0.Conv_{i}.kernel"])
            layers[place].weight.data = kernel.permute(3, 2, 0, 1).contiguous()
            layers[place].bias.data = torch.from_numpy(file[f"AlexNet_0.Conv_{i}.bias"])
    return layers


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 75, 101)])
def test_alexnet_equals_torchmetrics(
    alexnet: Lpips, shared_data: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    # torchmetrics brings its own copy of the heads; only the trunk is handed to it, which it asks torchvision for.
    implementation = importlib.import_module("torchmetrics.functional.image.lpips")
    features = alexnet_features_from(shared_data / "lpips_alexnet.npz")
    monkeypatch.setattr(implementation, "_get_tv_model_features", lambda net, pretrained: features)
    first, second = image_pair(*shape)
    expected = implementation._LPIPS(net="alex")(first, second, normalize=True).flatten()
    distances, _ = alexnet(first, second)
    assert expected.min() > 0.05
    torch.testing.assert_close(distances, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(alexnet.pairwise(first, second).diagonal(), expected, rtol=1e-4, atol=1e-6)


def test_equal_images_have_no_distance_and_more_noise_has_more(shift_tolerant: Lpips) -> None:
    image, noisy = image_pair(1, 3, 64, 64)
    halfway = (image + noisy) / 2
    assert shift_tolerant.distance(image, image).item() == 0
    assert 0 < shift_tolerant.distance(halfway, image) < shift_tolerant.distance(noisy, image)


def test_grey_is_repeated_to_three_channels(shift_tolerant: Lpips) -> None:
    first, second = image_pair(1, 1, 64, 64)
    colour = shift_tolerant.distance(first.repeat(1, 3, 1, 1), second.repeat(1, 3, 1, 1))
    torch.testing.assert_close(shift_tolerant.distance(first, second), colour)


def test_small_images_are_enlarged_to_64_px_on_their_shorter_side(shift_tolerant: Lpips) -> None:
    first, second = image_pair(1, 3, 28, 42)
    enlarged = [
        nn.functional.interpolate(image, size=(64, 96), mode="bilinear", align_corners=False)
        for image in (first, second)
    ]
    distances, maps = shift_tolerant(first, second)
    torch.testing.assert_close(distances, shift_tolerant.distance(*enlarged), rtol=1e-4, atol=1e-6)
    assert maps.shape == (1, 28, 42)


def test_map_shows_where_images_differ(shift_tolerant: Lpips) -> None:
    image, noisy = image_pair(1, 3, 128, 128)
    changed = image.clone()
    changed[..., :32, 96:] = noisy[..., :32, 96:]
    corner = torch.zeros(1, 128, 128, dtype=torch.bool)
    corner[:, :32, 96:] = True
    _, maps = shift_tolerant(changed, image)
    row, column = divmod(int(maps.argmax()), 128)
    assert row < 32 and column >= 96
    inside = shift_tolerant.distance(changed, image, corner)
    torch.testing.assert_close(inside, maps[:, :32, 96:].mean().view(1))
    assert inside > maps[:, :32, :32].mean() and inside > maps[:, 96:, 96:].mean()
    # Each layer's map is resized without antialiasing, so its mean is only close to the distance.
    assert maps.mean().item() == pytest.approx(shift_tolerant.distance(changed, image).item(), rel=0.1)


def test_pairwise_has_reconstructions_as_rows_and_chunks_change_nothing(
    shift_tolerant: Lpips, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconstructions, _ = image_pair(2, 1, 64, 64)
    _, truths = image_pair(3, 1, 64, 64)
    whole = shift_tolerant.pairwise(reconstructions, truths)
    assert whole.shape == (2, 3)
    single = shift_tolerant.distance(reconstructions[:1], truths[2:])
    torch.testing.assert_close(whole[0, 2:], single, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr("shadow_defense.metrics.lpips._PIXELS_AT_ONCE", 2 * 64 * 64)
    torch.testing.assert_close(shift_tolerant.pairwise(reconstructions, truths), whole)
    expected, _ = shift_tolerant(truths, truths.flip(0))
    monkeypatch.setattr("shadow_defense.metrics.lpips._PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(shift_tolerant(truths, truths.flip(0))[0], expected)


def test_nothing_is_trained(shift_tolerant: Lpips) -> None:
    image = torch.rand(1, 1, 64, 64, generator=named_generator(0, "lpips"), requires_grad=True)
    assert not list(shift_tolerant.parameters())
    assert not shift_tolerant.distance(image, image.detach()).requires_grad


def test_the_package_with_the_weights_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("stlpips_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    load_lpips("st-lpips")
    assert not any(name.startswith("stlpips_pytorch") for name in sys.modules)


def test_two_channels_are_refused(shift_tolerant: Lpips) -> None:
    with pytest.raises(DataError, match="1 or 3 channels, not 2"):
        shift_tolerant.distance(torch.zeros(1, 2, 64, 64), torch.zeros(1, 2, 64, 64))


def test_unknown_names_and_unusable_weights_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'alexnet'"):
        load_lpips("alexnett")
    with pytest.raises(ModelError, match="has no weights of its own"):
        load_lpips("alexnet")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"not weights")
    other = tmp_path / "other.npz"
    np.savez(other, unrelated=np.zeros(1))
    for name in ("alexnet", "st-lpips"):
        for path in (damaged, other, tmp_path / "missing", tmp_path):
            with pytest.raises(ModelError, match=f"from {path} ") as raised:
                load_lpips(name, path)
            assert "\n" not in str(raised.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install .shadow-defense.lpips.., or name a file"):
        load_lpips("st-lpips")


def test_weights_of_another_shape_or_a_negative_head_are_refused(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "lpips_alexnet.npz") as file:
        arrays = dict(file)
    path = tmp_path / "weights.npz"
    np.savez(path, **(arrays | {"AlexNet_0.Conv_1.bias": np.zeros(7, dtype=np.float32)}))
    with pytest.raises(ModelError, match=r"bias 1 has shape \(7,\), expected \(192,\)"):
        load_lpips("alexnet", path)
    np.savez(path, **(arrays | {"NetLinLayer_4.Conv_0.kernel": -arrays["NetLinLayer_4.Conv_0.kernel"]}))
    with pytest.raises(ModelError, match="head 4 has a negative weight"):
        load_lpips("alexnet", path)


def test_weights_that_would_run_code_when_read_are_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    for name, file in (("st-lpips", "weights.pth"), ("alexnet", "weights.npz")):
        path = tmp_path / file
        if name == "st-lpips":
            torch.save({"net.slice1.0.weight": Payload()}, path)
        else:
            np.savez(path, **{"AlexNet_0.Conv_0.kernel": np.array([Payload()], dtype=object)})
        with pytest.raises(ModelError, match="cannot read"):
            load_lpips(name, path)
    assert not (tmp_path / "executed").exists()


def test_torchvisions_alexnet_with_the_heads_of_torchmetrics(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    state = {}
    for place, i in zip((0, 3, 6, 8, 10), range(5), strict=True):
        size = KERNEL_SIZES[i]
        state[f"features.{place}.weight"] = torch.randn(CHANNELS[i + 1], CHANNELS[i], size, size, generator=draw)
        state[f"features.{place}.bias"] = torch.randn(CHANNELS[i + 1], generator=draw)
    torch.save({**state, "classifier.1.weight": torch.zeros(1)}, tmp_path / "alexnet.pth")
    read = read_alexnet_weights(tmp_path / "alexnet.pth")
    assert torch.equal(read.kernels[3], state["features.8.weight"]) and torch.equal(
        read.biases[4], state["features.10.bias"]
    )
    # Published heads are sparse and sum to what Zhang et al. released: none negative, the first of 64 channels.
    assert [len(head) for head in read.heads] == list(CHANNELS[1:]) and all((head >= 0).all() for head in read.heads)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="give torchvision's alexnet"):
        read_alexnet_weights(tmp_path / "other.pth")


def test_without_the_extra_the_distance_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MetricSettings().lpips == "st-lpips"
    monkeypatch.setattr("shadow_defense.config.find_spec", lambda name: None)
    assert MetricSettings().lpips is None and MetricSettings(lpips="st-lpips").lpips == "st-lpips"
