"""GIAS, the paper's attack, GGL and GIFD: they find an image of a generator again from the update it gave."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.attacks.generator_prior import GeneratorPrior
from shadow_defense.attacks.ggl import GGL
from shadow_defense.attacks.gifd import GIFD
from shadow_defense.attacks.latent_then_weights import GIAS, ModelBased
from shadow_defense.attacks.observation import Observation, Reconstruction, observe, randomised
from shadow_defense.attacks.threat_model import ThreatModel, threat_model
from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.errors import ConfigError, GeneratorError, ThreatModelError
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.generators.build import load_generator, save_generator
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.generators.interface import AdaptedGenerator, Generator
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.progress import Task

SIDE = 16
CODE = 4
ATTACKS = [GIAS, ModelBased, GGL, GIFD]
FEW = {"iterations": 3}


@cache
def dcgan() -> DCGANGenerator:
    """Random weights of unit gain: images as different from each other as those of a trained generator."""
    draws = torch.Generator().manual_seed(1)
    generator = DCGANGenerator(SIDE, 1, CODE, 4)
    for module in generator.modules():
        if isinstance(module, nn.Linear | nn.ConvTranspose2d):
            # Each output of a transposed convolution of stride 2 reads 4 of its 16 taps.
            inputs = module.in_features if isinstance(module, nn.Linear) else 4 * module.in_channels
            nn.init.normal_(module.weight, 0, inputs**-0.5, generator=draws)
    generator.train()
    with torch.no_grad():
        for _ in range(30):
            generator(torch.randn(64, CODE, generator=draws))
    return generator.eval()


@cache
def stylegan3() -> StyleGAN3Generator:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return StyleGAN3Generator(32, 1, z_dim=8, w_dim=8, channel_base=512, channel_max=16).eval()


@cache
def images() -> Tensor:
    with torch.no_grad():
        return (dcgan()(torch.randn(64, CODE, generator=torch.Generator().manual_seed(9))) + 1) / 2


def inside() -> Tensor:
    """An image of the generator, from a code that no attack knows."""
    return images()[:1]


def outside() -> Tensor:
    """The same with waves across it that the generator does not make."""
    along = torch.arange(SIDE)
    waves = torch.sin(along / 2.5).view(1, -1) * torch.cos(along / 3.0).view(-1, 1)
    return (inside() + 0.15 * waves).clamp(0, 1)


def observation(
    truth: Tensor,
    *,
    threat: str | ThreatModel = "informed server",
    normalisation: str = "none",
    generator: Generator | None = None,
    name: str = "lenet",
) -> Observation:
    data = ImageSet((truth * 255).round().byte(), torch.arange(len(truth)) % 2, tuple(map(str, range(len(truth)))))
    chosen = ModelSettings(name=name, normalisation=normalisation, width=8, activation="gelu")
    model = build_model(chosen, channels=1, classes=2, image_size=(SIDE, SIDE), seed=0)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    units = Normalisation((0.5,), (0.25,))
    result = train_locally(
        model,
        state,
        ClientData("site-1", data, data, data, len(truth)),
        Defense(),
        settings=TrainingSettings(learning_rate=0.01),
        round=0,
        normalisation=units,
        loss_fn=F.cross_entropy,
        seed=0,
    )
    return observe(
        threat_model(threat) if isinstance(threat, str) else threat,
        model=model,
        loss_fn=F.cross_entropy,
        global_state=state,
        update=result.update,
        image_shape=(1, SIDE, SIDE),
        classes=2,
        normalisation=units,
        labels=data.labels,
        local_training=LocalTraining(0.01, len(truth), result.update.steps),
        template=images().mean(0),
        generator=lambda: generator or dcgan(),
    )


def baseline(truth: Tensor) -> float:
    return psnr(images().mean(0, keepdim=True).expand_as(truth), truth).mean().item()


def quality(found: Reconstruction, truth: Tensor) -> float:
    return psnr(found.images, truth).mean().item()


def start_of(attack: Any, seen: Observation) -> Reconstruction:
    """The best start of all restarts: what the attack returns when it goes nowhere."""
    nowhere = {"iterations": 1, "learning_rate": 1e-9}
    if "weight_iterations" in type(attack).model_fields:
        nowhere["weight_iterations"] = 0
    return attack.model_copy(update=nowhere).reconstruct(seen, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        GIAS(iterations=80, weight_iterations=0, restarts=2),
        ModelBased(iterations=80, weight_iterations=0, restarts=2, learning_rate=0.1, total_variation=1e-6),
        GGL(iterations=60, restarts=3, divergence=0.0),
        GIFD(iterations=30, restarts=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_finds_an_image_of_the_generator_again(attack: Any) -> None:
    seen, truth = observation(inside()), inside()
    found = attack.reconstruct(seen, seed=0)
    assert quality(found, truth) > 25
    assert quality(found, truth) > baseline(truth) + 10
    assert quality(found, truth) > quality(start_of(attack, seen), truth) + 10
    assert found.matching_loss < 0.1 * found.history[0]
    assert len(found.history) <= 100
    assert found.labels.tolist() == [0]


@pytest.mark.slow
def test_evolution_finds_it_without_a_gradient() -> None:
    pytest.importorskip("cma")
    attack = GGL(optimiser="cma-es", iterations=40, population=10, divergence=0.0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the package must leave this state alone
    found = attack.reconstruct(observation(inside()), seed=0)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert quality(found, inside()) > max(25, baseline(inside()) + 10)
    few = attack.model_copy(update={"iterations": 4})
    again = [few.reconstruct(observation(inside()), seed=0).images for _ in range(2)]
    assert torch.equal(*again)


def test_evolution_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    GGL(optimiser="adam")
    with pytest.raises(ConfigError, match=r"needs the package cma: pip install 'shadow-defense\[ggl\]'"):
        GGL(optimiser="cma-es")


@pytest.mark.slow
@pytest.mark.parametrize("attack", [GIAS(iterations=60, weight_iterations=0, restarts=2), GIFD(iterations=20)])
def test_the_control_shows_what_the_prior_draws_from_nothing(attack: Any) -> None:
    """From noise of the update's energy comes an image of the generator, but not the client's."""
    seen = observation(inside())
    control = randomised(seen, seed=0)
    for name, _ in seen.model.named_parameters():
        noise, update = control.update.tensors[name], seen.update.tensors[name]
        torch.testing.assert_close(noise.norm(), update.norm())
        assert F.cosine_similarity(noise.flatten(), update.flatten(), dim=0).abs() < 0.9 or update.numel() < 8
    found = attack.reconstruct(control, seed=0)
    assert quality(found, inside()) < baseline(inside())
    assert found.images.std() > 0.5 * inside().std()


@pytest.mark.slow
def test_weights_leave_the_range_that_codes_cannot() -> None:
    """The second search goes on where the first ends."""
    seen, truth = observation(outside()), outside()
    attack = GIAS(iterations=80, weight_iterations=0, restarts=1)
    codes = attack.reconstruct(seen, seed=0)
    both = attack.model_copy(update={"weight_iterations": 80}).reconstruct(seen, seed=0)
    assert both.matching_loss < 0.2 * codes.matching_loss
    assert quality(both, truth) > quality(codes, truth) + 3


def test_each_image_has_weights_of_its_own() -> None:
    """Two copies for two images: a change of the second is seen in the second alone; one copy serves both."""
    prior = GeneratorPrior(observation(inside()), "z")
    codes = torch.randn(2, CODE, generator=torch.Generator().manual_seed(0))
    weights = prior.weights()
    assert weights.keys() == dcgan().synthesis_parameters().keys()
    copies = [weight.repeat(2, *[1] * weight.dim()) for weight in weights.values()]
    own = prior.images(codes[None])
    torch.testing.assert_close(prior.images_of_weights(list(weights), copies, codes), own)
    torch.testing.assert_close(prior.images_of_weights(list(weights), [each[:1] for each in copies], codes), own)
    copies[list(weights).index("synthesis.3.bias")][1] += 0.5
    changed = prior.images_of_weights(list(weights), copies, codes)[0]
    torch.testing.assert_close(changed[0], own[0, 0])
    assert (changed[1] - own[0, 1]).min() > 1e-3


@pytest.mark.slow
def test_features_leave_the_range_that_codes_cannot() -> None:
    seen, truth = observation(outside()), outside()
    codes = GIAS(iterations=100, weight_iterations=0, restarts=2).reconstruct(seen, seed=0)
    features = GIFD(iterations=40, restarts=2).reconstruct(seen, seed=0)
    assert features.matching_loss < 0.2 * codes.matching_loss
    assert quality(features, truth) > quality(codes, truth) + 5
    assert "feature layers 0, 1; the best match came from layer" in features.notes[-1]


@pytest.mark.slow
def test_a_small_ball_keeps_the_features_where_they_were() -> None:
    seen = observation(outside())
    losses = [
        GIFD(iterations=15, restarts=1, radius=radius).reconstruct(seen, seed=0).matching_loss
        for radius in (1e-6, 1e-2, 1e-1)
    ]
    codes_alone = GIFD(iterations=15, restarts=1, radius=1e-9).reconstruct(seen, seed=0).matching_loss
    assert losses[0] == pytest.approx(codes_alone, rel=1e-3)
    assert losses[2] < losses[1] < losses[0]


def test_batch_norm_statistics_help_the_papers_attack() -> None:
    """The term is in the loss: it vanishes at the truth and is missing where the client leaves no statistics."""
    seen = observation(inside(), name="convnet", normalisation="batch")
    attack = ModelBased(**FEW, weight_iterations=0, total_variation=0.0, norm=0.0)
    with_term, without = (
        attack.model_copy(update={"batch_norm": weight}).reconstruct(seen, seed=0) for weight in (1.0, 0.0)
    )
    assert with_term.history[0] > without.history[0] + 0.1
    assert with_term.notes == ()
    assert any("no batch-norm statistics" in note for note in attack.reconstruct(observation(inside()), seed=0).notes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTACKS)
def test_restarts_are_batched_and_chosen_by_the_matching_loss(kind: Any) -> None:
    """More restarts never match worse, and the first goes the way that it goes alone."""
    seen = observation(inside())
    attack = kind(**FEW)
    found = [attack.model_copy(update={"restarts": count}).reconstruct(seen, seed=0) for count in (1, 2, 6)]
    assert found[0].matching_loss >= found[1].matching_loss * (1 - 1e-2) >= found[2].matching_loss * (1 - 2e-2)
    assert found[2].matching_loss < 0.99 * found[0].matching_loss


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTACKS)
def test_generator_and_observation_are_left_alone(kind: Any) -> None:
    """Weights, mode, buffers, gradients and hooks; the generator is even given in train mode."""
    generator = copy.deepcopy(dcgan()).train()
    seen = observation(inside(), generator=generator, name="convnet", normalisation="batch")
    before = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in (generator, seen.model)]
    first = kind(**FEW).reconstruct(seen, seed=0)
    for each, tensors in zip((generator, seen.model), before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in each.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in each.parameters())
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in each.modules())
    assert all(module.training for module in generator.modules())
    assert torch.equal(kind(**FEW).reconstruct(seen, seed=0).images, first.images)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["w", "w+"])
@pytest.mark.parametrize(
    "attack", [GIAS(**FEW), GIFD(**FEW, stages=2), GGL(**FEW), GGL(**FEW, optimiser="cma-es", population=4)]
)
def test_stylegan3_in_the_spaces_of_its_styles(attack: Any, space: str) -> None:
    """A batch of two, from a generator larger than the images; cma-es is given thousands of entries."""
    if getattr(attack, "optimiser", "") == "cma-es":
        pytest.importorskip("cma")
    generator = stylegan3()
    tensors = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    found = attack.model_copy(update={"latent_space": space, "restarts": 2}).reconstruct(
        observation(images()[:2], generator=generator), seed=0
    )
    assert found.images.shape == (2, 1, SIDE, SIDE)
    assert found.matching_loss < 1
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in generator.state_dict().items())


def test_what_a_generator_lacks_is_said() -> None:
    seen = observation(inside())
    with pytest.raises(GeneratorError, match=r"latent space 'w\+' was asked for but DCGANGenerator has z"):
        GIAS(**FEW, latent_space="w+").reconstruct(seen, seed=0)
    plain = AdaptedGenerator(copy.deepcopy(dcgan()), CODE)
    with pytest.raises(GeneratorError, match="AdaptedGenerator shows no features between its layers"):
        GIFD(**FEW).reconstruct(observation(inside(), generator=plain), seed=0)
    GIAS(**FEW).reconstruct(observation(inside(), generator=plain), seed=0)


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attacker_without_a_generator_is_refused(kind: Any) -> None:
    with pytest.raises(ThreatModelError, match=r"reads .*generator.*'eavesdropper' does not grant"):
        kind(**FEW).reconstruct(observation(inside(), threat="eavesdropper"), seed=0)
    seen = observation(inside(), threat=ThreatModel("some", "somewhere", kind.needs))
    assert kind(**FEW).reconstruct(seen, seed=0).images.shape == (1, 1, SIDE, SIDE)


def test_a_generator_that_is_granted_but_not_there(tmp_path: Path) -> None:
    seen = replace(observation(inside()), _generator=None)
    with pytest.raises(GeneratorError, match="none was given: run `shadow-defense pretrain`"):
        _ = seen.generator
    path = tmp_path / "generator.safetensors"
    save_generator(path, dcgan(), "dcgan", {})
    # To a process that attacks travels the way to load it.
    loads = pickle.loads(pickle.dumps(partial(load_generator, path)))
    assert torch.equal(loads()(torch.ones(1, CODE)), dcgan()(torch.ones(1, CODE)))


class Counting(Task):
    done = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps


@pytest.mark.parametrize("attack", [*(kind(**FEW) for kind in ATTACKS), GIFD(**FEW, stages=1)])
def test_every_announced_step_is_reported(attack: Any) -> None:
    task = Counting()
    attack.reconstruct(observation(inside()), seed=0, task=task)
    assert task.done == attack.steps()


def test_gradients_pass_where_the_image_is_clamped() -> None:
    """A pixel beyond white is white, and can come back."""

    class Bright(Generator):
        z_dim, image_size, channels = 1, SIDE, 1

        def forward(self, z: Tensor) -> Tensor:
            return z.view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)

    prior = GeneratorPrior(observation(inside(), generator=Bright()), "z")
    code = torch.full((1, 1, 1), 3.0, requires_grad=True)
    made = prior.images(code)
    torch.testing.assert_close(made, torch.full((1, 1, 1, SIDE, SIDE), 2.0))
    made.mean().backward()
    assert code.grad is not None and code.grad.item() == pytest.approx(2.0)
