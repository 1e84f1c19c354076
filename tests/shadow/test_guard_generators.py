"""The generator that the guard is given never changes, whatever its modules share and however they are made."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from shadow_defense.errors import GeneratorError
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

Z, SIDE = 6, 8


class Twice(nn.Module):
    """A submodule with two names, as in a wrapper that holds a network and one of its parts."""

    z_dim = Z

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(Z, SIDE * SIDE)
        self.main = nn.Sequential(self.fc, nn.Tanh(), nn.Unflatten(1, (1, SIDE, SIDE)))

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


class Tied(Twice):
    """One parameter of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(Z, SIDE * SIDE)
        self.again.weight = self.fc.weight

    def forward(self, z: Tensor) -> Tensor:
        return (self.main(z) + self.again(z).view(-1, 1, SIDE, SIDE)) / 2


class Weighted(Twice):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.fc)


class Spectral(Twice):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.fc)


class Normalised(Twice):
    """Buffers, a frozen parameter, and a type that the images don't have."""

    def __init__(self) -> None:
        super().__init__()
        self.main.append(nn.BatchNorm2d(1))
        self.main[-1].bias.requires_grad_(False)
        self.double()

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z.to(self.fc.weight))


def protect(guard: ShadowGuard) -> Tensor:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(72, 2))
    images = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = {"model": model, "global_model": model, "loss_fn": F.cross_entropy, "round": 0, "rounds": 3}
    return guard.protect(images, torch.tensor([0, 1]), ["a", "b"], **given)


def fingerprint(module: nn.Module) -> dict[str, tuple[int, torch.dtype, bool, Tensor]]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: (id(each), each.dtype, each.requires_grad, each.detach().clone()) for name, each in named}


@pytest.mark.parametrize("kind", [Twice, Tied, Weighted, Spectral, Normalised])
@pytest.mark.parametrize("training", [True, False])
def test_the_generator_stays_as_it_was_given(kind: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    generator = kind().train(training)
    before = fingerprint(generator)
    guard = ShadowGuard(generator, ShadowSettings(latent_iterations=5, attack_iterations=2, attack_learning_rate=0.1))
    started = copy.deepcopy(guard.synthesis)
    for _ in range(2):
        protect(guard)
    after = fingerprint(generator)
    assert after.keys() == before.keys()
    for name, (place, dtype, trained, values) in before.items():
        assert after[name][:3] == (place, dtype, trained)
        assert torch.equal(after[name][3], values)
    assert all(module.training == training for module in generator.modules())
    # The copy that plays the attacker has moved, and what codes are sought with has not.
    assert any(not torch.equal(guard.synthesis[name], tensor) for name, tensor in started.items())
    own = dict(guard.generator.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in started.items())


def test_training_the_generator_on_does_not_reach_the_guard() -> None:
    torch.manual_seed(0)
    generator = Twice()
    guard, untouched = (
        ShadowGuard(each, ShadowSettings(latent_iterations=5)) for each in (generator, copy.deepcopy(generator))
    )
    with torch.no_grad():
        generator.fc.weight.zero_()
    torch.manual_seed(1)
    first = protect(guard)
    torch.manual_seed(1)
    assert torch.equal(protect(untouched), first)
    assert guard.synthesis["module.fc.weight"].abs().max() > 0


def test_generators_that_cannot_be_used_are_refused_in_words() -> None:
    broken = Twice()
    with torch.no_grad():
        broken.fc.bias[3] = float("nan")
    with pytest.raises(GeneratorError, match=r"'fc\.bias' holds NaN or infinity: give a trained network"):
        ShadowGuard(broken)
    with pytest.raises(GeneratorError, match="the generator is wrapped by TorchScript"):
        ShadowGuard(torch.jit.trace(Twice(), torch.zeros(1, Z)), z_dim=Z)
