"""The StyleGAN3 generator as the project sees it: interface, errors, official arguments, parameters and state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.generators.stylegan3.conftest import draw, little_generator
from torch import Tensor

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator
from shadow_defense.generators.stylegan3.mapping import MappingNetwork, truncate

CONFIGURATIONS = [{}, {"kernel": 1, "radial": True}]


@pytest.fixture(scope="module")
def generator() -> StyleGAN3Generator:
    """Not to be changed."""
    return little_generator()


@pytest.fixture
def codes() -> Tensor:
    return draw(2, 8)


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(size: int, channels: int) -> None:
    little = little_generator(image_size=size, channels=channels, channel_base=64, channel_max=4)
    with torch.no_grad():
        images = little(draw(2, 8))
    assert images.shape == (2, channels, size, size)
    assert images.isfinite().all() and not torch.equal(images[0], images[1])


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=["T", "R"])
@pytest.mark.parametrize(("space", "shape"), [("z", (2, 8)), ("w", (2, 12)), ("w+", (2, 16, 12))])
def test_latent_spaces(configuration: dict[str, Any], space: Any, shape: tuple[int, ...]) -> None:
    little = little_generator(**configuration)
    assert space in little.latent_spaces
    z = draw(2, 8)
    with torch.no_grad():
        encoded = little.encode(z, space)
        assert encoded.shape == shape
        assert torch.equal(little.decode(encoded, space), little(z))


def test_unknown_latent_space(generator: StyleGAN3Generator, codes: Tensor) -> None:
    # Past the shape checks of the tests, as a user without them would call it.
    with pytest.raises(GeneratorError, match=r"latent space 's' was asked for but .* has z, w, w\+"):
        generator.check_space("s")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 48}, "48 px was asked for: expected 16, 32, 64"),
        ({"image_size": 2048}, "2048 px was asked for"),
        ({"channels": 2}, "2 channels was asked for: expected 1 .grey. or 3"),
        ({"channel_base": 8}, "channel_base 8 leaves a layer of 32 px without feature maps: expected at least 32"),
    ],
)
def test_networks_that_do_not_exist(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(GeneratorError, match=message) as caught:
        StyleGAN3Generator(**arguments)
    assert "\n" not in str(caught.value)


OFFICIAL = {
    "img_resolution": 64,
    "img_channels": 3,
    "z_dim": 8,
    "w_dim": 12,
    "c_dim": 5,
    "channel_base": 256,
    "channel_max": 7,
    "conv_kernel": 1,
    "use_radial_filters": True,
    "magnitude_ema_beta": 0.9,
    "mapping_kwargs": {"num_layers": 3},
    "num_fp16_res": 4,
    "conv_clamp": 256,
}


def test_official_arguments() -> None:
    little = StyleGAN3Generator.from_official_arguments(OFFICIAL)
    assert (little.image_size, little.channels, little.z_dim, little.w_dim, little.c_dim) == (64, 3, 8, 12, 5)
    assert (little.channel_base, little.channel_max, little.kernel, little.radial) == (256, 7, 1, True)
    assert (little.magnitude_ema_beta, little.mapping_layers) == (0.9, 3)
    names = dict(little.named_parameters())
    assert names["synthesis.L0_36_7.weight"].shape == (7, 7, 1, 1) and names["mapping.fc2.weight"].shape == (12, 12)
    assert names["mapping.embed.weight"].shape == (12, 5) and "mapping.fc3.weight" not in names
    assert little.get_buffer("synthesis.L0_36_7.down_filter").shape == (12, 12)
    assert little.synthesis.get_submodule("L0_36_7").magnitude_ema_beta == 0.9


def test_official_arguments_default_to_those_of_configuration_t() -> None:
    given = {"img_resolution": 32, "img_channels": 1, "channel_base": 256, "channel_max": 7}
    little = StyleGAN3Generator.from_official_arguments(given | {"mapping_kwargs": {}})
    assert (little.z_dim, little.w_dim, little.c_dim, little.kernel, little.radial) == (512, 512, 0, 3, False)
    assert (little.mapping_layers, little.magnitude_ema_beta) == (2, 0.999)


@pytest.mark.parametrize(
    ("unknown", "name"),
    [({"num_layers": 10}, "num_layers"), ({"mapping_kwargs": {"num_layers": 2, "lr_multiplier": 1}}, "lr_multiplier")],
)
def test_official_arguments_of_another_architecture(unknown: dict[str, Any], name: str) -> None:
    with pytest.raises(GeneratorError, match=f"built with '{name}', or a value of it, unknown here"):
        StyleGAN3Generator.from_official_arguments(OFFICIAL | unknown)


def test_conditions() -> None:
    little = little_generator(c_dim=4)
    z, classes = draw(2, 8), torch.eye(4)
    with torch.no_grad():
        first, second = (little.styles(z, classes[[label, label]]) for label in (0, 1))
        assert not torch.allclose(first, second, atol=1e-2)
        # Without a condition all classes are weighed alike.
        assert torch.equal(little(z), little(z, torch.full((2, 4), 0.25)))
    with pytest.raises(GeneratorError, match=r"was given no condition: give c of shape \(n, 4\)"):
        little.mapping(z)


def test_codes_are_normalised(generator: StyleGAN3Generator, codes: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(generator.styles(codes), generator.styles(codes * 7), rtol=1e-4, atol=1e-5)


def test_truncation(generator: StyleGAN3Generator, codes: Tensor) -> None:
    with torch.no_grad():
        ws = generator.styles(codes)
        half = generator.styles(codes, psi=0.5, cutoff=8)
        average = generator.mapping.w_avg
        torch.testing.assert_close(half[:, :8], (ws[:, :8] + average) / 2)
        assert torch.equal(half[:, 8:], ws[:, 8:])
        none_left = generator.styles(codes, psi=0.0)
        torch.testing.assert_close(none_left, average.expand(2, 16, 12))
        image = generator(codes, psi=0.0)
        torch.testing.assert_close(image[0], image[1])
        assert truncate(ws, average, 1.0, 3) is ws


def test_averages_move_on_request_alone(codes: Tensor) -> None:
    little = little_generator(magnitude_ema_beta=0.9)
    before = copy.deepcopy(little.state_dict())
    with torch.no_grad():
        little(codes)
        assert all(torch.equal(value, before[name]) for name, value in little.state_dict().items())
        image = little(codes, update_averages=True)
    after = little.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in after if name.endswith(("w_avg", "magnitude_ema"))} and len(moved) == 16
    torch.testing.assert_close(
        after["mapping.w_avg"], 0.998 * before["mapping.w_avg"] + 0.002 * little.mapping(codes).mean(0)
    )
    # Each layer's average has moved before the layer ran: the same image again without moving them.
    with torch.no_grad():
        torch.testing.assert_close(little(codes), image)
        torch.testing.assert_close(
            copy.deepcopy(little).training_images(codes), copy.deepcopy(little)(codes, update_averages=True)
        )


def test_mapping_and_synthesis_share_no_parameter(generator: StyleGAN3Generator) -> None:
    mapping, synthesis = generator.mapping_parameters(), generator.synthesis_parameters()
    assert list(synthesis) + list(mapping) == [name for name, _ in generator.named_parameters()]
    assert {name.split(".")[0] for name in mapping} == {"mapping"}
    assert {name.split(".")[0] for name in synthesis} == {"synthesis"}
    assert len(mapping) == 4 and mapping["mapping.fc0.weight"] is generator.mapping.fc0.weight


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=["T", "R"])
def test_as_a_function_of_its_parameters(configuration: dict[str, Any]) -> None:
    """The pseudo attack runs the generator with parameters that are not its own."""
    little, other = little_generator(**configuration), little_generator(seed=1, **configuration)
    z = draw(2, 8)
    with torch.no_grad():
        own, foreign = little(z), other(z)
    state = {name: value.detach().clone() for name, value in little.state_dict().items()}
    given = {name: value.detach().clone() for name, value in other.state_dict().items()}
    parameters = {name: given[name].requires_grad_() for name, _ in other.named_parameters()}
    image = torch.func.functional_call(little, given | parameters, (z,))
    torch.testing.assert_close(image, foreign)
    gradients = torch.autograd.grad(image.square().sum(), list(parameters.values()))
    expected = torch.autograd.grad(other(z).square().sum(), list(other.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in little.state_dict().items())
    assert all(parameter.grad is None for parameter in little.parameters())
    with torch.no_grad():
        assert torch.equal(little(z), own)


def test_a_copy_is_independent(codes: Tensor) -> None:
    little = little_generator()
    with torch.no_grad():
        image = little(codes)
        twin = copy.deepcopy(little)
        assert torch.equal(twin(codes), image)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        twin.synthesis.get_buffer("L3_36_16.up_filter").mul_(0.5)
        twin.load_state_dict(twin.state_dict())  # The twin's own hook, not the original's.
        assert not torch.allclose(twin(codes), image, atol=1e-2)
        assert torch.equal(little(codes), image)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=["T", "R"])
def test_loaded_filters_are_used(configuration: dict[str, Any]) -> None:
    """Images after loading do not depend on those made before it."""
    source, used, fresh = (little_generator(seed, **configuration) for seed in (0, 1, 2))
    for name, buffer in source.named_buffers():
        if name.endswith("_filter"):
            buffer.copy_(torch.full_like(buffer, 1 / buffer.numel()))
    codes = draw(2, 8)
    with torch.no_grad():
        before = used(codes)
        for target in (used, fresh):
            target.load_state_dict(source.state_dict())
        assert torch.equal(used(codes), fresh(codes))
        assert torch.equal(used(codes), source(codes))
        assert not torch.allclose(used(codes), before, atol=1e-2)


def test_double_precision_agrees(generator: StyleGAN3Generator, codes: Tensor) -> None:
    """The road through matrices, which is the accelerators' too, against the compiled one."""
    with torch.no_grad():
        torch.testing.assert_close(
            copy.deepcopy(generator).double()(codes.double()).float(), generator(codes), rtol=1e-4, atol=1e-5
        )


def test_more_layers_of_mapping() -> None:
    deep = MappingNetwork(8, 0, 12, layers=5)
    assert [name for name, _ in deep.named_children()] == ["fc0", "fc1", "fc2", "fc3", "fc4"]
    assert deep(draw(3, 8)).shape == (3, 12)
