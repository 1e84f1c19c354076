"""The discriminator: official cases, the names of its tensors, and the mistakes that it names."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.adversarial import r1_penalty
from shadow_defense.generators.snapshots.importing import read_snapshot
from shadow_defense.generators.stylegan3.discriminator import (
    StyleGAN3Discriminator,
    check_batch_size,
)

ROOT = Path(__file__).resolve().parents[3]
CASES = Path(os.environ.get("SHADOW_DEFENSE_CONFORMANCE", ROOT.parent / "shared" / "conformance")) / "stylegan3"
STATE_DICTS = CASES.parents[1] / "spec" / "stylegan3_state_dicts.txt"

GRADIENT_TOLERANCE = 5e-3
LOGIT_TOLERANCE = 2e-4
"""Of the logits' standard deviation, as the images'."""

Case = dict[str, np.ndarray]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.fixture(
    scope="module",
    params=sorted(CASES.glob("D*.npz")) or [CASES / "D*.npz"],
    ids=lambda path: path.stem,
)
def case(request: pytest.FixtureRequest) -> Case:
    if not request.param.exists():
        pytest.skip(f"no {request.param}: set SHADOW_DEFENSE_CONFORMANCE")
    with np.load(request.param, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def official(case: Case) -> StyleGAN3Discriminator:
    discriminator = StyleGAN3Discriminator(**json.loads(str(case["meta"]))["kwargs"])
    state = {key.removeprefix("sd/"): torch.as_tensor(case[key]) for key in case if key.startswith("sd/")}
    assert list(discriminator.state_dict()) == list(state)
    discriminator.load_state_dict(state)
    return discriminator


class Conditioned(nn.Module):
    """A discriminator whose conditions stand, for functions that give it images only."""

    def __init__(self, discriminator: StyleGAN3Discriminator, c: Tensor) -> None:
        super().__init__()
        self.discriminator, self.c = discriminator, c

    def forward(self, images: Tensor) -> Tensor:
        return self.discriminator(images, self.c)


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(case["in/img"]), torch.as_tensor(case["in/c"])


def check_norms(network: StyleGAN3Discriminator, loss: Tensor, expected: dict[str, float]) -> None:
    parameters = dict(network.named_parameters())
    assert parameters.keys() == expected.keys()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    largest = max(expected.values())
    for name, gradient in zip(parameters, gradients, strict=True):
        norm = 0.0 if gradient is None else float(gradient.norm())
        # Some are zero but for rounding: a bias acts on the gradient by way of the minibatch deviation alone.
        assert norm == pytest.approx(expected[name], rel=GRADIENT_TOLERANCE, abs=1e-6 * largest), name


def test_conformance_stylegan3_discriminator_logits(case: Case, official: StyleGAN3Discriminator) -> None:
    expected = torch.as_tensor(case["out/logits"]).squeeze(1)
    with torch.no_grad():
        logits = official(*inputs(case))
    assert float((logits - expected).abs().max()) < LOGIT_TOLERANCE * float(expected.std())


def test_conformance_stylegan3_discriminator_image_gradient(case: Case, official: StyleGAN3Discriminator) -> None:
    images, c = inputs(case)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(official(images, c).sum(), images)
    assert relative_error(gradient, torch.as_tensor(case["grad/img"])) < GRADIENT_TOLERANCE
    penalties = gradient.square().sum(dim=(1, 2, 3))
    assert relative_error(penalties, torch.as_tensor(case["out/r1_penalty"])) < GRADIENT_TOLERANCE


def test_conformance_stylegan3_discriminator_parameter_gradients(case: Case, official: StyleGAN3Discriminator) -> None:
    loss = F.softplus(-official(*inputs(case))).mean()
    assert loss.item() == pytest.approx(float(case["out/loss_real"]), rel=1e-5)
    check_norms(official, loss, json.loads(str(case["grad/norms_real_json"])))


def test_conformance_stylegan3_discriminator_r1_gradients(case: Case, official: StyleGAN3Discriminator) -> None:
    images, c = inputs(case)
    penalty = r1_penalty(Conditioned(official, c), images)
    assert penalty.item() == pytest.approx(float(case["out/r1_penalty"].mean()), rel=GRADIENT_TOLERANCE)
    gamma = json.loads(str(case["meta"]))["gamma"]
    assert gamma == 2
    check_norms(official, penalty * gamma / 2, json.loads(str(case["grad/norms_r1_gamma2_json"])))


@pytest.mark.slow
def test_conformance_stylegan3_snapshot_discriminator() -> None:
    """The discriminator that official training wrote, at images of its generator's."""
    arrays_path, snapshot_path = CASES / "snapshot_tiny.npz", CASES / "snapshot_tiny.pkl"
    if not arrays_path.exists() or not snapshot_path.exists():
        pytest.skip(f"no {snapshot_path}: set SHADOW_DEFENSE_CONFORMANCE")
    with np.load(arrays_path, allow_pickle=False) as arrays:
        images = torch.as_tensor(arrays["G_ema/img_psi1"])
        expected = torch.as_tensor(arrays["D/logits_on_Gema_imgs_plus_last"]).flatten()
    record = read_snapshot(snapshot_path).networks["D"]
    wanted = ("img_resolution", "img_channels", "channel_base", "channel_max", "c_dim")
    discriminator = StyleGAN3Discriminator(**{name: record.arguments[name] for name in wanted})
    assert list(discriminator.state_dict()) == list(record.tensors)
    discriminator.load_state_dict(record.tensors)
    with torch.no_grad():
        logits = discriminator(torch.cat([images, images[-1:]]))
    assert float((logits - expected).abs().max()) < LOGIT_TOLERANCE * float(expected.std())


def listed_state_dicts() -> dict[tuple[int, int], dict[str, list[int]]]:
    """(side, channels) to the names and shapes of D's tensors, in the order of the list."""
    if not STATE_DICTS.exists():
        pytest.skip(f"no {STATE_DICTS}")
    found: dict[tuple[int, int], dict[str, list[int]]] = {}
    tensors: dict[str, list[int]] = {}
    for line in STATE_DICTS.read_text().splitlines():
        if line.startswith("#"):
            tensors = {}
            if line.startswith("### D res="):
                side, channels = (int(word.split("=")[1]) for word in line.split()[2:4])
                found[side, channels] = tensors
        elif line:
            name, _, shape = line.partition(" ")
            tensors[name] = ast.literal_eval(shape) if shape.startswith("[") else []
    return found


def shapes(discriminator: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in discriminator.state_dict().items()}


def listed_network(side: int, channels: int, c_dim: int = 0) -> StyleGAN3Discriminator:
    with torch.device("meta"):
        return StyleGAN3Discriminator(
            img_resolution=side, img_channels=channels, channel_base=32768, channel_max=512, c_dim=c_dim
        )


def test_conformance_stylegan3_discriminator_state_dicts() -> None:
    listed = listed_state_dicts()
    assert len(listed) == 4
    for (side, channels), expected in listed.items():
        base = expected[f"b{side}.fromrgb.bias"][0] * side
        with torch.device("meta"):
            discriminator = StyleGAN3Discriminator(
                img_resolution=side, img_channels=channels, channel_base=base, channel_max=512
            )
        assert list(shapes(discriminator).items()) == list(expected.items())


def test_conformance_stylegan3_conditional_state_dict() -> None:
    listed = listed_state_dicts()
    (line,) = (line for line in STATE_DICTS.read_text().splitlines() if line.startswith("### cond D extras"))
    extras = dict(ast.literal_eval(line[line.index("[") :]))
    with_condition, without = shapes(listed_network(64, 3, c_dim=10)), listed[64, 3]
    added = {name: shape for name, shape in with_condition.items() if without.get(name) != shape}
    assert list(added.items()) == list(extras.items())
    names = list(with_condition)
    assert names.index("b8.skip.weight") < names.index("mapping.embed.weight") < names.index("b4.conv.weight")


def test_numbers_of_parameters() -> None:
    """As the specification counts them: 26.49 million at 64 px."""
    parameters = listed_network(64, 1).parameters()
    assert sum(parameter.numel() for parameter in parameters) == 26_487_809


def network(c_dim: int = 0) -> StyleGAN3Discriminator:
    return StyleGAN3Discriminator(img_resolution=8, img_channels=1, channel_base=64, channel_max=6, c_dim=c_dim)


def test_batches_that_do_not_fall_into_groups() -> None:
    discriminator = network()
    for count in (0, 5, 6, 7, 10):
        with pytest.raises(
            GeneratorError, match=f"batch of {count} images: expected fewer than 4 or a multiple of 4"
        ) as raised:
            discriminator(torch.zeros(count, 1, 8, 8))
        assert "\n" not in str(raised.value)
    with pytest.raises(GeneratorError, match=r"set generator\.batch_size to 8 or 12"):
        check_batch_size(10)
    with pytest.raises(GeneratorError, match=r"set generator\.batch_size to 4$"):
        check_batch_size(0)


def test_inputs_that_do_not_fit() -> None:
    discriminator, conditional = network(), network(c_dim=3)
    with pytest.raises(GeneratorError, match=r"images of shape \(1, 16, 16\): expected \(1, 8, 8\)"):
        discriminator(torch.zeros(1, 1, 16, 16))
    with pytest.raises(GeneratorError, match="condition of length 0: expected 3, one-hot labels"):
        conditional(torch.zeros(1, 1, 8, 8))
    with pytest.raises(GeneratorError, match="condition of length 2: expected 0; give none"):
        discriminator(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2))


@pytest.mark.parametrize("side", [0, 4, 24, 100])
def test_sides_that_no_discriminator_has(side: int) -> None:
    with pytest.raises(GeneratorError, match=f"of {side} px was asked for: expected a power of two"):
        StyleGAN3Discriminator(img_resolution=side, img_channels=1, channel_base=512, channel_max=8)


def test_a_base_too_small_for_the_side() -> None:
    with pytest.raises(GeneratorError, match="channel_base 16 leaves no channel at 32 px"):
        StyleGAN3Discriminator(img_resolution=32, img_channels=1, channel_base=16, channel_max=8)
