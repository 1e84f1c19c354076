"""Models compute where they are put, whatever lies elsewhere; on a planted second device, and on CUDA where it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings, reconstruct
from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.data.dataset import ClientData, Normalisation
from shadow_defense.defenses.build import DefenseSettings, Resources
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.devices import resolved_device
from shadow_defense.errors import ConfigError
from shadow_defense.federated.client import prepare_defense, train_locally
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.states import on_host
from shadow_defense.generators.build import build_networks
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.training import GanTraining
from shadow_defense.metrics.utility import predict
from shadow_defense.models.imprint import ImprintedModel, brightness_edges
from shadow_defense.progress import Task
from tests.attacks.clients import SHAPE, SHORT, SIDE, lenet, observation, some_images
from tests.defenses.conftest import image_set, small_model
from tests.elsewhere import DEVICES, cuda, elsewhere

pytestmark = pytest.mark.usefixtures("one_layout")

NORMALISATION = Normalisation((0.5,), (0.25,))


def some(names: Iterable[str]) -> list[Any]:
    """In order; those that take seconds, as every operation on the planted device goes through Python, are slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in sorted(names)]


SLOW = {"dcs", "dp-sgd", "grad-defense", "shadow", "soteria", "dlg", "gias", "gifd", "idlg", "model-based"}


@pytest.fixture(scope="module")
def generator() -> Generator:
    settings = GeneratorSettings(name="dcgan", width=8)
    return build_networks(settings, image_size=16, channels=1, seed=0)[0].eval()


QUICK: Mapping[str, dict[str, Any]] = {
    "censor": {"trials": 2},
    "dcs": {"steps": 1},
    "protect-once": {"texture": "white"},
    "shadow": {"latent_iterations": 2, "latent_examples": 2},
}
"""Options of defenses that take long, or want another model."""


def updates(defense: str, generator: Generator, device: torch.device) -> Mapping[str, Tensor]:
    """What a client sends in its second round."""
    client = ClientData("site-1", image_set(4), image_set(1), image_set(1), 2)
    settings, training = (
        DefenseSettings(defense=defense, options=QUICK.get(defense, {})),
        TrainingSettings(rounds=2, learning_rate=0.1, momentum=0.9),
    )
    model = settings.adapt_model(small_model(), seed=0).to(device)
    public = image_set(50) if defense == "protect-once" else client.train
    made = settings.build(Resources(generator, NORMALISATION, public, 2, client.name, seed=0))
    made.check_model(model)
    prepare_defense(made, client, NORMALISATION)
    sent = dict[str, Tensor]()
    state = {name: tensor.clone() for name, tensor in on_host(model.state_dict()).items()}
    for round in range(2):
        result = train_locally(
            model,
            state,
            client,
            made,
            settings=training,
            round=round,
            normalisation=NORMALISATION,
            loss_fn=F.cross_entropy,
            seed=0,
        )
        made.load_state_dict(made.state_dict())
        sent = dict(result.update.tensors)
    return sent


@DEVICES
@pytest.mark.parametrize("defense", some(DEFENSES.own))
def test_a_defended_client_trains_where_its_model_lies(
    defense: str,
    device: Callable[[], Any],
    tolerance: float,
    generator: Generator,
) -> None:
    if defense == "optimal-noise" and device is elsewhere:
        pytest.skip("forward-mode differentiation sees through the planted device")
    with device() as place:
        found = updates(defense, generator, place)
    for name, tensor in updates(defense, generator, torch.device("cpu")).items():
        # A plain tensor of the processor: what leaves is in the host's memory.
        assert type(found[name]) is Tensor and found[name].device.type == "cpu"
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=tolerance)


def perceptron() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.GELU(), nn.Linear(8, 2))


ATTACKED: Mapping[str, Callable[[], nn.Module]] = {
    "fully-connected-leak": perceptron,
    "robbing-the-fed": lambda: ImprintedModel(perceptron(), SHAPE, brightness_edges(0.0, 1.0, 16)),
}
"""Models of attacks that want another one than a LeNet."""


def rebuilt(attack: str, generator: Generator, device: torch.device) -> Reconstruction:
    iterates = "iterations" in ATTACKS[attack].attack.model_fields
    options = {"iterations": 2} if iterates else SHORT.get(attack, {})
    # Their line searches go through Python at every operation.
    options |= {"restarts": 2} if attack in ("dlg", "idlg") else {}
    threat = "malicious server" if attack == "robbing-the-fed" else "adaptive server"
    seen, _ = observation(ATTACKED.get(attack, lenet)().to(device), threat=threat, generator=generator)
    seen = replace(seen, _auxiliary=some_images("public", SIDE))
    return reconstruct(AttackSettings(attack=attack, options=options, threat_model=threat), seen, 0, Task())


@DEVICES
@pytest.mark.parametrize("attack", some(ATTACKS.own))
def test_an_attack_computes_where_the_model_lies(
    attack: str, device: Callable[[], Any], tolerance: float, generator: Generator
) -> None:
    if attack == "ggl" and importlib.util.find_spec("cma") is None:
        pytest.skip("no evolution strategy: pip install 'shadow-defense[ggl]'")
    with device() as place:
        found = rebuilt(attack, generator, place)
    expected = rebuilt(attack, generator, torch.device("cpu"))
    assert type(found.images) is Tensor and found.images.device.type == "cpu"
    # Several starts are one batch on a device and single ones on a processor: rounding, of which signs make more.
    apart = max(tolerance, 0.05 if attack == "gradinversion-group" else 0.0)
    torch.testing.assert_close(found.images, expected.images, atol=apart, rtol=apart)
    assert torch.equal(found.labels, expected.labels)


@DEVICES
def test_a_model_answers_where_it_lies(device: Callable[[], Any], tolerance: float) -> None:
    images = some_images("test", 16)
    with device() as place:
        found = predict(lenet().to(place), images, NORMALISATION)
    torch.testing.assert_close(found, predict(lenet(), images, NORMALISATION), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("device", [elsewhere, cuda], ids=["planted", "cuda"])
def test_a_generator_is_trained_where_it_is_put(device: Callable[[], Any]) -> None:
    settings = GeneratorSettings(name="dcgan", width=8, batch_size=4, augmentation="fixed", r1_gamma=1.0)
    public = some_images("public", 16).images

    def losses(place: torch.device) -> list[dict[str, float]]:
        training = GanTraining(settings, image_size=16, channels=1, seed=0, device=place)
        training.load_state_dict(training.state_dict())
        return [training.step(public) for _ in range(2)]

    with device() as place:
        found = losses(place)
    for ours, theirs in zip(found, losses(torch.device("cpu")), strict=True):
        # The processor's own kernels for channels that lie last are others.
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def test_a_tensor_left_on_the_processor_is_found() -> None:
    """The planted break: what the planted device is there for."""
    with elsewhere() as place, pytest.raises(RuntimeError, match="two devices"):
        lenet().to(place)(torch.zeros(1, 1, 16, 16))


def test_the_setting_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolved_device("auto") == resolved_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch finds no CUDA device here; set device=auto or cpu"):
        resolved_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolved_device("auto") == torch.device("cuda")
