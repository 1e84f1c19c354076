"""Models of every make: carried to the same protection as the plain one, or refused before anything is drawn."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.shadow.little_guard import guard, images, net, step
from torch import Tensor, nn

from shadow_defense.errors import DefenseError, ModelError


class Shared(nn.Module):
    """A convolution with two names, a batch norm, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)
        self.features = nn.Sequential(self.conv, nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.norm = self.features[1]
        self.fc = nn.Linear(256, 2)
        self.fc.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


class Alone(Shared):
    """The same network without second names."""

    def __init__(self) -> None:
        super().__init__()
        del self.conv, self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Deep(nn.Module):
    """Two convolutions, since of one grey channel every layout is the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.MaxPool2d(2))
        self.fc = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


class Viewed(Deep):
    """The same network with its feature maps flattened as Flower's template does it, which asks how they lie."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).view(-1, 64))


def protected(model: nn.Module, **changes: Any) -> Tensor:
    return guard().protect(**step(model=model, **changes))


def test_shared_modules_and_frozen_layers() -> None:
    shared = Shared()
    before = copy.deepcopy(shared.state_dict())
    objects = {name: id(each) for name, each in shared.named_parameters(remove_duplicate=False)}
    assert torch.equal(protected(shared), protected(Alone()))
    assert torch.equal(protected(shared, global_model=shared.state_dict()), protected(Alone()))
    assert {name: id(each) for name, each in shared.named_parameters(remove_duplicate=False)} == objects
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared.state_dict().items())
    assert shared.conv.weight.grad is None and not any(each._forward_hooks for each in shared.modules())


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda model: torch.compile(model, backend="eager"), lambda m: nn.DataParallel(torch.compile(m))],
    ids=["DataParallel", "compile", "both"],
)
def test_wrapped_models_are_what_they_wrap(wrap: Any) -> None:
    expected, wrapped = protected(net()), wrap(net())
    assert torch.equal(protected(wrapped), expected)
    assert torch.equal(protected(net(), global_model=wrapped.state_dict()), expected)
    assert torch.equal(protected(wrapped, global_model=net().state_dict()), expected)


def test_transformers_have_a_pseudo_attack() -> None:
    chosen = guard()
    before = copy.deepcopy(chosen.synthesis)
    protection = chosen.protect_with_details(**step(model=Transformer()))
    assert protection.cam is not None and (protection.noise.flatten(1).amax(1) > 0).all()
    assert any(not torch.equal(chosen.synthesis[name], each) for name, each in before.items())


def test_global_models_in_every_form() -> None:
    local, received = net(), net(seed=9)
    expected = protected(local, global_model=received)
    state = received.state_dict()
    arrays = [tensor.numpy() for tensor in state.values()]
    for array in arrays:
        array.flags.writeable = False
    for given in (state, dict(zip(state, arrays, strict=True)), arrays, tuple(arrays), received.double()):
        assert torch.equal(protected(local, global_model=given), expected)
    assert not torch.equal(protected(local, global_model=local), expected)


def opacus() -> nn.Module:
    return pytest.importorskip("opacus").GradSampleModule(net())


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (lambda: torch.jit.trace(net(), images()), {}, "wrapped by TorchScript"),
        (opacus, {}, "wrapped by Opacus"),
        (lambda: nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(2)), {}, "holds no values yet"),
        (lambda: net().requires_grad_(False), {}, "no trainable parameter"),
        (net, {"global_model": net(5)}, r"tensor '3\.weight' has shape \(5, 256\) in the state but \(2, 256\) in the"),
        (net, {"global_model": [np.zeros(3)]}, "a list of 1 arrays but the model's state dict has 4 tensors"),
        (net, {"global_model": {**net().state_dict(), "extra": torch.zeros(1)}}, "holds tensor 'extra'"),
        (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 2)), {}, "can't be run with other par"),
    ],
    ids=["TorchScript", "Opacus", "lazy", "frozen", "classes", "short list", "extra tensor", "channels"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_carried_is_refused_before_anything_is_drawn(model: Any, changes: Any, message: str) -> None:
    chosen = guard()
    draws = chosen.draws.get_state()
    with pytest.raises(ModelError, match=message) as raised:
        chosen.protect(**step(model=model(), **changes))
    assert "\n" not in str(raised.value)
    assert chosen.latents == {} and chosen.noise_maps == {} and torch.equal(chosen.draws.get_state(), draws)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shadow_rounds", [0, 5])
@pytest.mark.parametrize("foreground", [True, False])
@pytest.mark.parametrize("which", ["model", "global_model"])
def test_nan_in_a_model_is_named_on_every_path(value: float, shadow_rounds: int, foreground: bool, which: str) -> None:
    chosen = guard(shadow_rounds=shadow_rounds, foreground=foreground)
    chosen.protect(**step())
    maps, synthesis = dict(chosen.noise_maps), dict(chosen.synthesis)
    broken = net()
    with torch.no_grad():
        broken[3].bias[1] = value
    named = "the model" if which == "model" else "the global model"
    with pytest.raises(DefenseError, match=rf"^{named} holds NaN or infinity in '3\.bias'"):
        chosen.protect(**step(round=1, **{which: broken, **({"global_model": net()} if which == "model" else {})}))
    assert chosen.noise_maps == maps and chosen.synthesis == synthesis and chosen.batches_protected == 1


def test_nan_in_the_loss_is_named() -> None:
    with pytest.raises(DefenseError, match="the loss of the clean batch is nan"):
        guard().protect(**step(loss_fn=lambda logits, labels: F.cross_entropy(logits, labels) * float("nan")))
    with pytest.raises(DefenseError, match=r"the clean batch's gradient of '0\.weight' holds NaN"):
        # The square root's slope at zero.
        guard().protect(**step(loss_fn=lambda logits, labels: (logits - logits).pow(2).sum().sqrt()))


def test_nan_in_the_model_s_work_is_named() -> None:
    """Finite tensors whose product is not: in eval mode the Grad-CAM++ pass meets it first."""

    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            logits = self.net(x)
            return logits if self.training else logits * 1e38 * 1e38 * 0.0

    for settings in ({}, {"shadow_rounds": 0}):
        chosen = guard(**settings)
        with pytest.raises(DefenseError, match=r"Grad-CAM\+\+ holds NaN or infinity in 'i0'"):
            chosen.protect(**step(model=Overflowing()))
        assert chosen.noise_maps == {}


def test_a_network_that_asks_how_its_feature_maps_lie_is_guarded_alike() -> None:
    torch.testing.assert_close(protected(Viewed()), protected(Deep()), rtol=0, atol=1e-5)
