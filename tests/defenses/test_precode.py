"""PRECODE: the divergence's numbers, the penalty in gradients of every order, and where the block goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from shadow_defense.attacks.label_recovery import last_linear_layer
from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.dp_sgd import per_sample_gradients
from shadow_defense.defenses.precode import PRECODE_PRESETS, PrecodeDefense, PrecodeSettings
from shadow_defense.defenses.soteria import feature_scores
from shadow_defense.errors import ConfigError, DefenseError, ModelError
from shadow_defense.models.build import build_model
from shadow_defense.models.class_activation import class_activation_maps, find_cam_layer
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.variational_bottleneck import (
    VariationalBottleneck,
    divergence_bits,
    insert_bottleneck,
)

WEIGHT = 0.3


def test_divergences_of_the_specification() -> None:
    means, deviations = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.5]])
    torch.testing.assert_close(divergence_bits(means, deviations), torch.tensor([0.7213475, 0.4589894]))
    mean, deviation = torch.randn(4, 7), torch.rand(4, 7) + 0.1
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, deviation), torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    )
    torch.testing.assert_close(divergence_bits(mean, deviation), expected.sum(1) / math.log(2))


@pytest.fixture
def model() -> nn.Module:
    """Four pixels, five features, three numbers in the code, three classes; in double precision."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return insert_bottleneck(plain, width=3, weight=WEIGHT, seed=0)


IMAGES = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])

Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def outputs_and_penalty(parameters: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """The model written out, with the same noise in every call."""
    torch.manual_seed(7)
    features = torch.tanh(F.linear(images.flatten(1), parameters["1.weight"], parameters["1.bias"]))
    block = "3.bottleneck"
    codes = F.linear(features, parameters[f"{block}.encoder.weight"], parameters[f"{block}.encoder.bias"])
    mean, deviation = codes[:, :3], F.softplus(codes[:, 3:])
    code = mean + deviation * torch.randn_like(mean)
    decoded = F.linear(code, parameters[f"{block}.decoder.weight"], parameters[f"{block}.decoder.bias"])
    logits = F.linear(decoded, parameters["3.classifier.weight"], parameters["3.classifier.bias"])
    return logits, divergence_bits(mean, deviation).mean()


def written_out(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    logits, penalty = outputs_and_penalty(parameters, images)
    return F.cross_entropy(logits, LABELS) + WEIGHT * penalty


def through(model: nn.Module) -> Loss:
    def loss(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        torch.manual_seed(7)
        return F.cross_entropy(functional_call(model, dict(parameters), (images,)), LABELS)

    return loss


def gradients(loss: Loss, parameters: Mapping[str, Tensor], images: Tensor, graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(parameters, images), list(parameters.values()), create_graph=graph)


def test_the_gradient_is_that_of_loss_and_penalty_by_finite_differences(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    found = dict(zip(parameters, gradients(through(model), parameters, IMAGES), strict=True))
    assert model(IMAGES).shape == (6, 3)
    step = 1e-6
    for name, parameter in parameters.items():
        for index in range(0, parameter.numel(), 3):
            sides = []
            for sign in (1, -1):
                moved = parameter.detach().clone()
                moved.view(-1)[index] += sign * step
                with torch.no_grad():
                    sides.append(written_out({**parameters, name: moved}, IMAGES).item())
            assert found[name].view(-1)[index].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-8)
    penalty = torch.autograd.grad(outputs_and_penalty(parameters, IMAGES)[1], parameters["1.weight"])[0]
    assert WEIGHT * penalty.norm() > 1e-3, "the penalty is a part that counts"


def matching_gradients(loss: Loss, parameters: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What a gradient inversion descends: the distance of the gradient to another, by the images (and parameters)."""
    images = IMAGES.clone().requires_grad_()
    found = gradients(loss, parameters, images, graph=True)
    distance = sum((tensor - 0.1).square().sum() for tensor in found)
    return torch.autograd.grad(distance, [images, *parameters.values()])


def test_the_gradient_of_the_gradient_holds_the_penalty_once(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for found, expected in zip(
        matching_gradients(through(model), parameters), matching_gradients(written_out, parameters), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_the_penalty_under_the_transforms_of_torch_func(model: nn.Module) -> None:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def distance(loss: Loss, images: Tensor) -> Tensor:
        return sum((tensor - 0.1).square().sum() for tensor in grad(loss)(parameters, images).values())

    mine = through(model)
    for name, tensor in grad(written_out)(parameters, IMAGES).items():
        torch.testing.assert_close(grad(mine)(parameters, IMAGES)[name], tensor)
    torch.testing.assert_close(
        grad(lambda images: distance(mine, images))(IMAGES), grad(lambda images: distance(written_out, images))(IMAGES)
    )
    forward = [
        jvp(lambda images, loss=loss: grad(loss)(parameters, images), (IMAGES,), (torch.ones_like(IMAGES),))[1]
        for loss in (mine, written_out)
    ]
    for name, tensor in forward[1].items():
        torch.testing.assert_close(forward[0][name], tensor)


def test_gradients_of_single_samples_average_to_those_of_the_batch(model: nn.Module) -> None:
    """With a decoder of zeros the noise, which each sample draws for itself, does not matter: the penalty stays."""
    with torch.no_grad():
        model.get_submodule("3.bottleneck.decoder").weight.zero_()
    parameters = dict(model.named_parameters())
    each = per_sample_gradients(model, parameters, IMAGES, LABELS, F.cross_entropy)
    whole = gradients(through(model), parameters, IMAGES)
    for (name, tensor), expected in zip(each.items(), whole, strict=True):
        torch.testing.assert_close(tensor.mean(0), expected) if "decoder.weight" not in name else None
    assert each["1.weight"].abs().max() > 1e-4


def test_a_graph_that_is_kept_gives_the_penalty_every_time(model: nn.Module) -> None:
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(IMAGES), LABELS)
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    for tensor, again in zip(first, torch.autograd.grad(loss, parameters), strict=True):
        assert torch.equal(tensor, again)


def test_two_steps_that_are_unrolled_hold_the_penalty_in_each(model: nn.Module) -> None:
    """As in an attack that simulates local training: the second step starts where the first one's gradient led."""

    def unrolled(loss: Loss) -> Tensor:
        images = IMAGES.clone().requires_grad_()
        start = current = dict(model.named_parameters())
        for _ in range(2):
            found = gradients(loss, current, images, graph=True)
            current = {name: current[name] - 0.1 * step for name, step in zip(current, found, strict=True)}
        moved = sum((current[name] - start[name]).square().sum() for name in current)
        return torch.autograd.grad(moved, images)[0]

    torch.testing.assert_close(unrolled(through(model)), unrolled(written_out))


def test_outside_training_nothing_is_added_and_every_call_draws_the_same(model: nn.Module) -> None:
    heavy = insert_bottleneck(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 3)).double(), width=3, weight=1e6, seed=0
    )
    state = torch.get_rng_state()
    for mode in (True, False):
        heavy.train(mode)
        with torch.no_grad():
            first = heavy(IMAGES)
            assert torch.equal(heavy(IMAGES), first)
    assert torch.equal(torch.get_rng_state(), state)
    # Random all the same: images that are equal get codes of their own.
    same = torch.ones(3, 1, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(heavy(same)[0], heavy(same)[1])
    frozen = {name: parameter.detach() for name, parameter in heavy.named_parameters()}
    images = IMAGES.clone().requires_grad_()
    (by_pixels,) = torch.autograd.grad(functional_call(heavy, frozen, (images,)).sum(), images)
    assert by_pixels.abs().max() < 100


@pytest.mark.parametrize("normalisation", ["group", "batch"])
def test_scores_and_maps_do_not_hold_the_penalty(build: Callable[..., nn.Module], normalisation: str) -> None:
    """Soteria's Jacobians and Grad-CAM++ differentiate the same model for something else than its loss."""
    images, found = torch.randn(2, 1, 16, 16), []
    for weight in (0.0, 1e6):
        adapted = insert_bottleneck(build(normalisation), width=4, weight=weight, seed=0)
        layer = find_cam_layer(adapted, images)
        maps = class_activation_maps(adapted, adapted, images, torch.tensor([0, 1]), layer)
        scores = feature_scores(adapted, adapted.state_dict(), images, "classifier.classifier", chunk=64)
        found.append((maps, scores))
    for light, heavy in zip(*found, strict=True):
        assert torch.equal(light, heavy) and light.abs().max() > 0


def test_training_with_more_weight_brings_codes_nearer_to_noise(build: Callable[..., nn.Module]) -> None:
    images, labels = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2

    def divergence(weight: float) -> float:
        torch.manual_seed(0)
        adapted = insert_bottleneck(build(), width=8, weight=weight, seed=0)
        optimiser = torch.optim.SGD(adapted.parameters(), lr=0.05)
        for _ in range(30):
            optimiser.zero_grad()
            F.cross_entropy(adapted(images), labels).backward()
            optimiser.step()
        with torch.no_grad():
            codes = adapted.classifier.bottleneck.encoder(adapted.features(images).flatten(1))
            return float(divergence_bits(codes[:, :8], F.softplus(codes[:, 8:])).mean())

    assert divergence(1.0) < 0.5 * divergence(0.0)


@pytest.mark.parametrize(
    ("settings", "name", "features"),
    [
        (ModelSettings(name="convnet", width=8, normalisation="group"), "classifier", 64),
        (ModelSettings(name="lenet", normalisation="none"), None, None),
        (ModelSettings(name="resnet18", normalisation="group"), "fc", 512),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_block_goes_before_the_last_layer(settings: ModelSettings, name: str | None, features: int | None) -> None:
    plain = build_model(settings, channels=1, classes=2, image_size=(16, 16), seed=0)
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    name = name or last_linear_layer(plain)
    settings_of_defense = DefenseSettings(defense="precode", options={"width": 16})
    adapted, again, other = (settings_of_defense.adapt_model(plain, seed) for seed in (0, 0, 1))
    assert list(plain.state_dict()) == list(before)
    assert last_linear_layer(adapted) == f"{name}.classifier"
    block = adapted.get_submodule(f"{name}.bottleneck")
    assert isinstance(block, VariationalBottleneck) and block.weight == 1e-3
    assert block.encoder.weight.shape[0] == 32 and block.decoder.weight.shape[1] == 16
    assert features in (None, block.encoder.in_features) and block.decoder.out_features == block.encoder.in_features
    assert adapted(torch.randn(2, 1, 16, 16)).shape == (2, 2)
    for key, tensor in before.items():
        changed = key.replace(f"{name}.", f"{name}.classifier.")
        assert torch.equal(adapted.state_dict()[changed], tensor)
        assert adapted.state_dict()[changed].data_ptr() != plain.state_dict()[key].data_ptr()
    for key, tensor in adapted.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    assert not torch.equal(other.get_submodule(f"{name}.bottleneck.encoder").weight, block.encoder.weight)


def test_inserting_leaves_the_global_random_state() -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    state = torch.get_rng_state()
    insert_bottleneck(plain, width=1, weight=0.0, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_are_found_by_name() -> None:
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    adapted = DefenseSettings(defense="precode", options={"layer": "0"}).adapt_model(plain, 0)
    assert isinstance(adapted.get_submodule("0.bottleneck"), VariationalBottleneck)
    with pytest.raises(ModelError, match=r"fully connected layer 'head'.*0, 2"):
        DefenseSettings(defense="precode", options={"layer": "head"}).adapt_model(plain, 0)
    with pytest.raises(ModelError, match=r"Sequential has none.*choose a model"):
        insert_bottleneck(nn.Sequential(nn.Conv2d(1, 1, 3)), width=1, weight=0.0, seed=0)


def test_a_model_without_the_block_is_refused() -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    made = PrecodeDefense()
    with pytest.raises(DefenseError, match="no variational bottleneck: train the model that") as raised:
        made.check_model(plain)
    assert "\n" not in str(raised.value)
    made.check_model(insert_bottleneck(plain, width=1, weight=0.0, seed=0))
    batch = Batch(torch.ones(1, 1, 2, 2), torch.tensor([0]), ("a",))
    assert made.protect_batch(batch, RoundContext(plain, {}, F.cross_entropy, 0, 1, 0.1)) is batch
    assert not made.acts_on


def test_settings_and_presets() -> None:
    assert PrecodeSettings() == PrecodeSettings(width=256, weight=1e-3)
    assert set(PRECODE_PRESETS) == {"weak", "paper", "strong"}
    weights = [PrecodeSettings(**values).weight for values in PRECODE_PRESETS.values()]
    assert weights == [1e-4, 1e-3, 1e-2]
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        DefenseSettings(defense="precode", options={"width": 0})
