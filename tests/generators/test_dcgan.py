"""The DCGAN, and the interface through which any generator is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.build import GENERATORS, build_networks, covering_size
from shadow_defense.generators.dcgan import DCGANDiscriminator, DCGANGenerator
from shadow_defense.generators.grid import image_grid
from shadow_defense.generators.interface import AdaptedGenerator, as_generator, check_generator
from shadow_defense.generators.settings import GeneratorSettings


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(size: int, channels: int) -> None:
    generator = DCGANGenerator(image_size=size, channels=channels, z_dim=5, width=4).eval()
    images = generator(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert not torch.equal(images[0], images[1])
    assert DCGANDiscriminator(image_size=size, channels=channels, width=4)(images).shape == (2,)


def test_in_eval_mode_an_image_does_not_depend_on_its_batch() -> None:
    generator = DCGANGenerator(image_size=16, z_dim=5, width=4).eval()
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(generator(z)[1:2], generator(z[1:2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "channels"), [(24, 1), (8, 1), (16, 2)])
def test_sizes_that_do_not_exist(size: int, channels: int) -> None:
    for kind in (DCGANGenerator, DCGANDiscriminator):
        with pytest.raises(GeneratorError, match=str(size if channels == 1 else channels)):
            kind(image_size=size, channels=channels)


def test_networks_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerators: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", accelerators.append)

    def weights(seed: int) -> tuple[Tensor, Tensor]:
        generator, discriminator = build_networks(
            GeneratorSettings(z_dim=4, width=4), image_size=16, channels=1, seed=seed
        )
        return generator.state_dict()["project.0.weight"], discriminator.state_dict()["logit.weight"]

    before = torch.get_rng_state()
    first, second, other = weights(0), weights(0), weights(1)
    assert torch.equal(torch.get_rng_state(), before) and not accelerators
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in zip(first, second, other, strict=True))


def test_covering_size() -> None:
    assert [covering_size("dcgan", side) for side in (8, 16, 17, 32, 33, 64)] == [16, 16, 32, 32, 64, 64]
    largest = max(GENERATORS["dcgan"].sizes)
    assert covering_size("dcgan", largest) == largest
    with pytest.raises(GeneratorError, match=f"comes in 16, 32, .* px but the images have {largest + 1} px"):
        covering_size("dcgan", largest + 1)
    with pytest.raises(GeneratorError, match="did you mean 'dcgan'"):
        covering_size("dcgam", 16)


class Fixed(nn.Module):
    """An output of a fixed shape, whatever the code."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.values.expand(len(z), *self.values.shape)


def test_any_module_is_adapted() -> None:
    adapted = as_generator(Fixed(3, 8, 8), z_dim=7)
    assert (adapted.z_dim, adapted.channels, adapted.image_size) == (7, 3, 8)
    assert list(adapted.synthesis_parameters()) == ["module.values"]
    assert adapted.mapping_parameters() == {}
    named = Fixed(1, 8, 8)
    named.z_dim = 9
    assert as_generator(named).z_dim == 9
    own = DCGANGenerator(image_size=16, z_dim=4, width=4)
    assert as_generator(own, z_dim=99) is own


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (1, 8, 9), (1, 8, 8, 1)])
def test_modules_that_are_no_generators(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeneratorError, match="1 or 3 channels"):
        AdaptedGenerator(Fixed(*shape), 4)


def test_module_of_another_code_length() -> None:
    module = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
    with pytest.raises(GeneratorError, match=r"failed on a latent code of shape \(1, 5\)"):
        as_generator(module, z_dim=5)
    with pytest.raises(GeneratorError, match="no attribute z_dim"):
        as_generator(module)


def test_mapping_parameters_are_not_synthesis() -> None:
    class WithMapping(DCGANGenerator):
        def mapping_parameters(self) -> dict[str, nn.Parameter]:
            return {name: each for name, each in self.named_parameters() if name.startswith("project.")}

    generator = WithMapping(image_size=16, z_dim=4, width=4)
    synthesis, mapping = generator.synthesis_parameters(), generator.mapping_parameters()
    assert synthesis and mapping and not synthesis.keys() & mapping.keys()
    assert synthesis.keys() | mapping.keys() == dict(generator.named_parameters()).keys()


def test_generator_and_images_must_fit() -> None:
    generator = DCGANGenerator(image_size=16, channels=1, z_dim=4, width=4)
    check_generator(generator, 1, (16, 16))
    check_generator(generator, 1, (12, 12))
    for channels, size, message in ((3, (16, 16), "1 channels"), (1, (16, 8), "square"), (1, (17, 17), "17 px")):
        with pytest.raises(GeneratorError, match=message):
            check_generator(generator, channels, size)


def test_grid_of_five_in_columns_of_two() -> None:
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 3, 4) / 5
    picture = image_grid(images, 2)
    assert picture.shape == (3 * 3 + 2 * 2, 2 * 4 + 2, 3)
    for index in range(5):
        top, left = (index // 2) * 5, (index % 2) * 6
        assert (picture[top : top + 3, left : left + 4] == index * 51).all()
    assert (picture[10:, 6:] == 255).all() and (picture[3:5] == 255).all()
