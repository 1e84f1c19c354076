"""What runs between a generator's layers can be read and given back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.generators.interface import AdaptedGenerator, Generator, LatentSpace
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator


def dcgan(size: int) -> Generator:
    return DCGANGenerator(size, 3, 6, 4).eval()


def stylegan3(size: int) -> Generator:
    return StyleGAN3Generator(size, 3, z_dim=6, w_dim=5, channel_base=512, channel_max=16).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generator", "space", "layers"),
    [(dcgan(16), "z", 2), (dcgan(64), "z", 4), *((stylegan3(16), space, 15) for space in ("z", "w", "w+"))],
    ids=lambda value: type(value).__name__ if isinstance(value, Generator) else str(value),
)
def test_images_do_not_depend_on_where_they_are_begun(generator: Generator, space: LatentSpace, layers: int) -> None:
    codes = generator.encode(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), space)
    assert generator.feature_layers == layers
    with torch.no_grad():
        expected = generator.decode(codes, space)
        features = generator.features(codes, 0, space)
        for layer in range(layers):
            torch.testing.assert_close(features, generator.features(codes, layer, space))
            torch.testing.assert_close(generator.from_features(features, codes, layer, space), expected)
            changed = generator.from_features(features + 0.5, codes, layer, space)
            assert not torch.allclose(changed, expected)
            if layer + 1 < layers:
                features = generator.next_features(features, codes, layer, space)


@pytest.mark.parametrize("generator", [dcgan(16), stylegan3(16)], ids=["dcgan", "stylegan3"])
def test_layers_that_are_not_there(generator: Generator) -> None:
    codes, last = torch.zeros(1, 6), generator.feature_layers - 1
    features = generator.features(codes, last)
    for layer in (-1, last + 1):
        with pytest.raises(GeneratorError, match=rf"feature layer {layer} was asked for but \w+ has 0 to {last}: "):
            generator.features(codes, layer)
        with pytest.raises(GeneratorError, match=f"feature layer {layer} was asked for"):
            generator.from_features(features, codes, layer)
    with pytest.raises(GeneratorError, match=f"feature layer {last + 1} was asked for"):
        generator.next_features(features, codes, last)


def test_a_space_that_is_not_there() -> None:
    generator, codes = dcgan(16), torch.zeros(1, 6)
    features = generator.features(codes, 0)
    for call in (
        lambda: generator.features(codes, 0, "w"),
        lambda: generator.next_features(features, codes, 0, "w"),
        lambda: generator.from_features(features, codes, 0, "w"),
    ):
        with pytest.raises(GeneratorError, match="latent space 'w' was asked for but DCGANGenerator has z"):
            call()


def test_a_module_of_unknown_make_shows_no_features() -> None:
    adapted = AdaptedGenerator(nn.Sequential(nn.Linear(6, 16), nn.Unflatten(1, (1, 4, 4))), 6)
    assert adapted.feature_layers == 0
    for call in (
        lambda: adapted.features(torch.zeros(1, 6), 0),
        lambda: adapted.next_features(torch.zeros(1, 1, 4, 4), torch.zeros(1, 6), 0),
        lambda: adapted.from_features(torch.zeros(1, 1, 4, 4), torch.zeros(1, 6), 0),
    ):
        with pytest.raises(GeneratorError, match="AdaptedGenerator shows no features between its layers"):
            call()
