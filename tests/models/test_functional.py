"""Models as functions of their parameters, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.errors import ModelError
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import functional_call, loss_gradients, split_state, training_mode
from shadow_defense.models.settings import ModelSettings


def build(seed: int = 0) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation="batch", width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(8, 8), seed=seed)


def batch(count: int = 3) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([0, 1, 1])[:count]


def test_every_module_gets_its_own_mode_back() -> None:
    model = build()
    model.features.norm1.eval()
    modes = [module.training for module in model.modules()]
    for wanted in (True, False):
        with pytest.raises(KeyError), training_mode(model, wanted):
            assert all(module.training == wanted for module in model.modules())
            raise KeyError
        assert [module.training for module in model.modules()] == modes


def test_state_is_split_into_leaves_and_clones() -> None:
    model = build()
    model.classifier.bias.requires_grad_(False)
    parameters, rest = split_state(model, model)
    assert parameters.keys() | rest.keys() == model.state_dict().keys()
    assert "classifier.bias" in rest and "features.norm0.running_mean" in rest
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in parameters.values())
    own = model.state_dict()
    for name, tensor in {**parameters, **rest}.items():
        assert torch.equal(tensor, own[name])
        assert tensor.data_ptr() != own[name].data_ptr()


def test_a_state_that_does_not_fit_is_named() -> None:
    state = build().state_dict()
    state.pop("features.norm3.running_var")
    with pytest.raises(ModelError, match=r"'features\.norm3\.running_var'"):
        split_state(build(), state)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_at_another_state(training: bool) -> None:
    """Computed through one model at another's parameters: equal to the other's own backward pass."""
    model, other, (images, labels) = build(0).train(training), build(1).train(training), batch()
    state = copy.deepcopy(model.state_dict())
    parameters, buffers = split_state(model, other.state_dict())
    gradients = loss_gradients(model, parameters, buffers, images, labels, F.cross_entropy)
    F.cross_entropy(other(images), labels).backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
        # Buffers, too, are moved as the other's own forward pass moves them, in train mode only.
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_parameter_out_of_reach_has_a_gradient_of_zeros() -> None:
    model = build()
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    parameters, buffers = split_state(model, model)
    gradients = loss_gradients(model, parameters, buffers, *batch(), F.cross_entropy)
    assert torch.equal(gradients["unused"], torch.zeros(2))


def test_the_graph_is_kept_only_when_asked() -> None:
    model, (images, labels) = build(), batch()
    parameters, buffers = split_state(model, model)
    images.requires_grad_()
    for create_graph in (False, True):
        gradients = loss_gradients(
            model, parameters, buffers, images, labels, F.cross_entropy, create_graph=create_graph
        )
        assert all(gradient.requires_grad == create_graph for gradient in gradients.values())
    assert images.grad is None


class Tied(nn.Module):
    """A module with two names, a parameter of two modules, a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.layers = nn.Sequential(self.first, nn.BatchNorm1d(3), nn.Linear(3, 3))
        self.layers[2].weight = self.first.weight
        self.norm = self.layers[1]
        self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.scale


@pytest.mark.parametrize("training", [True, False])
def test_shared_modules_and_tied_weights(training: bool) -> None:
    """Called through one model at another's tensors: the other's result, and the model has its own back."""
    torch.manual_seed(0)
    model, other, x = Tied().train(training), Tied().train(training), torch.randn(4, 3)
    other.scale.fill_(3.0)
    objects = {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}
    before = copy.deepcopy(model.state_dict())
    parameters, rest = split_state(model, other)
    assert list(parameters) == [name for name, _ in model.named_parameters()]
    found = functional_call(model, {**parameters, **rest}, (x,))
    torch.testing.assert_close(found, other(x))
    torch.testing.assert_close(rest["layers.1.running_mean"], other.norm.running_mean)
    gradients = torch.autograd.grad(found.square().sum(), list(parameters.values()))
    other.norm.reset_running_stats()
    if not training:
        other.norm.running_mean.copy_(rest["layers.1.running_mean"])
        other.norm.running_var.copy_(rest["layers.1.running_var"])
    other(x).square().sum().backward()
    for gradient, parameter in zip(gradients, other.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)} == objects
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # Another name of the same tensor does as well.
    twice = functional_call(model.eval(), {"layers.0.weight": torch.zeros(3, 3), "norm.bias": torch.ones(3)}, (x,))
    torch.testing.assert_close(twice, 2 * model.layers[2].bias.expand(4, 3))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 4, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_attention_has_a_second_derivative() -> None:
    model, (images, labels) = Transformer(), batch()
    images.requires_grad_()
    parameters, buffers = split_state(model, model)
    gradients = loss_gradients(model, parameters, buffers, images, labels, F.cross_entropy, create_graph=True)
    (derivative,) = torch.autograd.grad(sum(each.square().sum() for each in gradients.values()), images)
    assert torch.isfinite(derivative).all() and derivative.abs().max() > 0
