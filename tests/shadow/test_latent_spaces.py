"""Codes in z, w and w+: what each space can reach, what z keeps to the bit, and what is refused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.build import DefenseSettings, Resources
from shadow_defense.errors import ConfigError, DefenseError, GeneratorError
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.generators.interface import Generator, LatentSpace
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.encoding import starting_codes
from shadow_defense.shadow.guard import Protection, ShadowGuard
from shadow_defense.shadow.latents import invert_latents
from shadow_defense.shadow.rendering import render
from shadow_defense.shadow.settings import ShadowSettings, shadow_preset

Z, W, LAYERS, SIDE = 2, 4, 3, 16
SPACES: tuple[LatentSpace, ...] = ("z", "w", "w+")
SHAPES = {"z": (Z,), "w": (W,), "w+": (LAYERS, W)}
IDS = ("a", "b")
PLAIN = Normalisation((0.5,), (0.5,))


class StyleGenerator(Generator):
    """z -> linear, leaky relu -> w; the image is the sum of a linear map of each layer's style.

    In train mode it moves an average of the styles, as StyleGAN does: whoever encodes in train mode is found out.
    """

    latent_spaces: tuple[LatentSpace, ...] = SPACES

    def __init__(self) -> None:
        super().__init__()
        self.z_dim, self.channels, self.image_size = Z, 1, SIDE
        self.mapping = nn.Linear(Z, W, bias=False)
        self.layers = nn.Parameter(torch.empty(LAYERS, W, SIDE * SIDE))
        self.register_buffer("average", torch.zeros(W))
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.mapping.weight.copy_(torch.randn(W, Z, generator=draws))
            # Small, so that images stay inside [-1, 1], where clamping changes nothing.
            self.layers.copy_(0.05 * torch.randn(self.layers.shape, generator=draws))

    def style(self, z: Tensor) -> Tensor:
        w = F.leaky_relu(self.mapping(z), 0.2)
        if self.training:
            self.average.lerp_(w.detach().mean(0), 0.1)
        return w

    def synthesise(self, styles: Tensor) -> Tensor:
        return torch.einsum("nlw,lwp->np", styles, self.layers).view(-1, 1, SIDE, SIDE)

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesise(self.encode(z, "w+"))

    def encode(self, z: Tensor, space: LatentSpace = "z") -> Tensor:
        self.check_space(space)
        if space == "z":
            return z
        w = self.style(z)
        return w if space == "w" else w[:, None].expand(-1, LAYERS, -1)

    def decode(self, codes: Tensor, space: LatentSpace = "z") -> Tensor:
        self.check_space(space)
        if space == "z":
            return self(codes)
        return self.synthesise(codes[:, None].expand(-1, LAYERS, -1) if space == "w" else codes)

    def mapping_parameters(self) -> dict[str, nn.Parameter]:
        return {"mapping.weight": self.mapping.weight}


def model() -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation="batch", width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(SIDE, SIDE), seed=0)


def guard(space: LatentSpace = "z", generator: nn.Module | None = None, **changes: Any) -> ShadowGuard:
    settings = {"latent_iterations": 20, "latent_learning_rate": 0.05, "attack_iterations": 2, **changes}
    return ShadowGuard(generator or StyleGenerator(), ShadowSettings(latent_space=space, **settings))


def targets() -> Tensor:
    """Two images of distinct styles in each layer, whose means over the layers the mapping does not reach either."""
    drawn = torch.randn(2, LAYERS + 1, W, generator=torch.Generator().manual_seed(3))
    styles = drawn[:, :1] + 0.5 * drawn[:, 1:]
    with torch.no_grad():
        images = StyleGenerator().synthesise(styles)
    assert images.abs().max() < 1
    return images


def examine(chosen: ShadowGuard, **changes: Any) -> Protection:
    local = model()
    given = {"model": local, "global_model": local, "loss_fn": F.cross_entropy, "round": 0, "rounds": 10, **changes}
    return chosen.protect_with_details(targets(), torch.tensor([0, 1]), IDS, **given)


def equal_states(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        equal_states(value, second[name]) if isinstance(value, Mapping) else torch.equal(value, second[name])
        for name, value in first.items()
    )


def least_errors() -> dict[LatentSpace, Tensor]:
    """The least mean squared error of each image that any code of the space can have, by least squares.

    On each orthant of the styles the mapping is linear; leaving the orthant free gives a bound from below for z.
    """
    generator, images = StyleGenerator(), targets().flatten(1).double()
    layers = generator.layers.detach().double()
    of_one_style = layers.sum(0)
    mapping = generator.mapping.weight.detach().double()

    def residual(rows: Tensor) -> Tensor:
        codes = torch.linalg.lstsq(rows.T, images.T).solution
        return (rows.T @ codes - images.T).square().mean(0)

    slopes = [torch.tensor(signs, dtype=torch.float64) for signs in itertools.product((0.2, 1.0), repeat=W)]
    pieces = torch.stack([residual((slope[:, None] * mapping).T @ of_one_style) for slope in slopes])
    return {"z": pieces.amin(0), "w": residual(of_one_style), "w+": residual(layers.flatten(0, 1))}


@pytest.mark.slow
def test_a_wider_space_comes_closer() -> None:
    """Found error against what linear algebra says each space can reach: w+ all, w less, z least."""
    bounds = least_errors()
    assert bounds["w+"].max() < 1e-12
    assert (bounds["w"] > 2e-3).all() and (bounds["z"] > 1.1 * bounds["w"]).all()
    found: dict[str, Tensor] = {}
    for space in SPACES:
        chosen = guard(space, latent_iterations=2000, latent_learning_rate=0.02)
        chosen.encode(targets(), IDS)
        codes = torch.stack([chosen.latents[sample] for sample in IDS])
        with torch.no_grad():
            rebuilt = StyleGenerator().decode(codes, space)
        found[space] = (rebuilt - targets()).square().mean(dim=(1, 2, 3)).double()
        assert (found[space] > bounds[space] - 1e-7).all()
    assert (found["w+"] < 1e-5).all()
    torch.testing.assert_close(found["w"], bounds["w"], rtol=0.01, atol=0)
    assert (found["w+"] < found["w"]).all() and (found["w"] < found["z"]).all()


def test_z_is_inversion_through_the_whole_generator_to_the_bit() -> None:
    chosen, generator = guard(), StyleGenerator().eval()
    chosen.encode(targets(), IDS)
    initial = torch.stack([torch.randn(Z, generator=named_generator(0, "latent", sample)) for sample in IDS])
    expected = invert_latents(
        lambda z: PLAIN.apply((generator(z).clamp(-1, 1) + 1) / 2),
        targets(),
        initial,
        learning_rate=0.05,
        iterations=20,
    )
    assert ShadowSettings().latent_space == "z"
    assert torch.equal(torch.stack([chosen.latents[sample] for sample in IDS]), expected.z)


@pytest.mark.parametrize("space", SPACES)
def test_all_spaces_start_from_the_same_images(space: LatentSpace) -> None:
    chosen = guard(space, latent_pretraining=False)
    chosen.encode(targets(), IDS)
    codes = torch.stack([chosen.latents[sample] for sample in IDS])
    assert codes.shape == (2, *SHAPES[space])
    started = starting_codes(StyleGenerator(), IDS, targets(), space=space)
    assert torch.equal(started, codes) and not started.requires_grad
    z = starting_codes(StyleGenerator(), IDS, targets())
    assert torch.equal(StyleGenerator().decode(codes, space), StyleGenerator()(z))


@pytest.mark.parametrize("space", SPACES)
def test_codes_are_rendered_with_the_parameters_given(space: LatentSpace) -> None:
    generator = StyleGenerator().eval()
    codes = 0.5 * torch.randn(2, *SHAPES[space], generator=torch.Generator().manual_seed(5))
    halved = {"layers": generator.layers.detach() / 2}
    plain, half = (render(generator, given, codes, (SIDE, SIDE), PLAIN, space=space) for given in ({}, halved))
    # The image is linear in the layers; normalised with mean and std of 0.5 it is the image itself, in [-1, 1].
    torch.testing.assert_close(plain, generator.decode(codes, space))
    torch.testing.assert_close(half, plain / 2)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_the_pseudo_attack_tunes_the_synthesis_on_the_codes_as_they_are(space: LatentSpace) -> None:
    """A mapping changed after the codes were found changes nothing: steps 3 to 9 don't pass through it."""
    plain, changed = guard(space), guard(space)
    for chosen in (plain, changed):
        chosen.encode(targets(), IDS)
    with torch.no_grad():
        changed.generator.get_parameter("mapping.weight").fill_(torch.nan)
    expected = examine(plain)
    assert torch.equal(examine(changed).images, expected.images)
    assert set(plain.synthesis) == {"layers"}
    assert not torch.equal(plain.synthesis["layers"], StyleGenerator().layers)
    assert expected.rebuilt is not None and expected.rebuilt.shape == targets().shape


@pytest.mark.parametrize("space", SPACES)
def test_restored_guard_goes_on_to_the_bit(space: LatentSpace) -> None:
    straight, resumed = guard(space), guard(space)
    examine(straight)
    saved = copy.deepcopy(straight.state_dict())
    resumed.load_state_dict(saved)
    assert {code.shape for code in resumed.latents.values()} == {SHAPES[space]}
    assert torch.equal(examine(straight, round=1).images, examine(resumed, round=1).images)
    assert equal_states(straight.state_dict(), resumed.state_dict())


@pytest.mark.parametrize(("saved", "space"), [(a, b) for a in SPACES for b in SPACES if a != b])
def test_codes_of_another_space_are_refused(saved: LatentSpace, space: LatentSpace) -> None:
    other, chosen = guard(saved), guard(space)
    other.encode(targets(), IDS)
    with pytest.raises(DefenseError) as raised:
        chosen.load_state_dict(other.state_dict())
    said = str(raised.value)
    assert f"holds latent codes of {saved} but latent_space is {space}:" in said and "\n" not in said
    assert chosen.latents == {}


def test_codes_of_one_shape_are_told_apart() -> None:
    """z and w of one length, as in StyleGAN3: only the name of the space tells them apart."""
    other, chosen = guard("z"), guard("w")
    state = other.state_dict()
    assert state["latents"] == {}
    with pytest.raises(DefenseError, match="latent codes of z"):
        chosen.load_state_dict(state)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_a_generator_without_the_space_is_refused_when_the_guard_is_built(space: LatentSpace) -> None:
    generator = DCGANGenerator(image_size=SIDE, channels=1, z_dim=Z, width=4)
    message = f"latent space '{space.replace('+', '[+]')}' was asked for but DCGANGenerator has z: choose"
    with pytest.raises(GeneratorError, match=message):
        guard(space, generator)
    no_images = ImageSet(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ())
    with pytest.raises(GeneratorError, match=message):
        DefenseSettings(defense="shadow", options={"latent_space": space}).build(
            Resources(generator, PLAIN, no_images, 2, client="hospital", seed=0)
        )
    with pytest.raises(GeneratorError, match="has z: choose"):
        ShadowGuard(nn.Sequential(nn.Linear(Z, 256), nn.Unflatten(1, (1, 16, 16))), guard(space).settings, z_dim=Z)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("space", SPACES)
def test_the_generator_stays_as_it_was(space: LatentSpace, training: bool) -> None:
    generator = StyleGenerator().train(training)
    generator.mapping.train(not training)
    before = copy.deepcopy(generator.state_dict())
    modes = [module.training for module in generator.modules()]
    chosen = guard(space, generator)
    # By itself first: examine puts the generator in eval mode of its own accord.
    chosen.encode(targets(), IDS)
    for round in (0, 1):
        examine(chosen, round=round)
    assert equal_states(generator.state_dict(), before)
    assert [module.training for module in generator.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in generator.parameters())
    assert list(dict(generator.named_modules())) == ["", "mapping"]


def test_the_option_of_a_preset() -> None:
    assert shadow_preset("paper", latent_space="w+") == ShadowSettings(latent_space="w+", floor=0.0)
    assert shadow_preset("article").latent_space == "z"
    with pytest.raises(ConfigError, match="latent_space"):
        shadow_preset("paper", latent_space="s")
