"""Batch norm that stays with the client: attacks match what was sent, and its statistics leak only where they leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.clients import (
    SHAPE,
    SHORT,
    SIDE,
    baseline,
    normalisation,
    private,
    public,
    simulated,
    some_images,
)
from torch import Tensor, nn

from shadow_defense.attacks.build import ATTACKS
from shadow_defense.attacks.deep_leakage import IDLG
from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.attacks.kind import ANY_MODEL
from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.objectives import MATCHINGS
from shadow_defense.attacks.observation import Observation, observe, randomised
from shadow_defense.attacks.observed_statistics import NOTHING_IN_THE_BUFFERS, observed_statistics, proxy_statistics
from shadow_defense.attacks.target import PARAMETERS_WITHHELD, matching_target
from shadow_defense.attacks.threat_model import ThreatModel, threat_model
from shadow_defense.data.dataset import ClientData, ImageSet
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.noise import NoiseDefense, NoiseSettings, cosine
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import ConfigError, ThreatModelError
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.batchnorm import BatchStatisticsRecorder, recover_batch_statistics
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

POLICIES: tuple[SharedBatchNorm, ...] = ("all", "parameters", "stats", "none")
RATE = 0.1


def build(width: int = 8) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation="batch", width=width, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(SIDE, SIDE), seed=0)


def observation(
    policy: SharedBatchNorm,
    *,
    labels: tuple[int, ...] = (1,),
    defense: Defense | None = None,
    mode: str = "train",
    epochs: int = 1,
    threat: str = "informed server",
    width: int = 8,
) -> Observation:
    """One client's first round under ``policy``, with all of its images in every batch."""
    model, count = build(width), len(labels)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = ImageSet((private(count) * 255).round().byte(), torch.tensor(labels), tuple(map(str, range(count))))
    result = train_locally(
        model,
        state,
        ClientData("site-1", data, data, data, count),
        defense or Defense(),
        settings=TrainingSettings(learning_rate=RATE, local_epochs=epochs, batch_norm=mode),
        round=0,
        normalisation=normalisation(),
        loss_fn=F.cross_entropy,
        seed=0,
        kept={name: state[name] for name in withheld_names(model, policy)},
    )
    return observe(
        threat_model(threat),
        model=model,
        loss_fn=F.cross_entropy,
        global_state=state,
        update=result.update,
        image_shape=SHAPE,
        classes=2,
        normalisation=normalisation(),
        labels=data.labels,
        local_training=LocalTraining(RATE, count, epochs, mode),
        template=public().mean(0),
        generator=lambda: DCGANGenerator(16, 1, 4, 4).eval(),
        public=some_images("public", SIDE),
    )


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_true_images_explain_what_was_sent(policy: SharedBatchNorm, epochs: int) -> None:
    seen = observation(policy, epochs=epochs)
    target, found = simulated(seen, normalisation().apply(private()))
    assert target.sent == tuple(name for name in target.parameters if name in seen.update.tensors)
    assert len(found.update) == len(target.observed) == len(target.sent)
    assert (PARAMETERS_WITHHELD in target.notes) == (policy in ("stats", "none"))
    _, other = simulated(seen, normalisation().apply(public()[:1]))
    for matching in MATCHINGS.values():
        assert matching(found.update, target.observed).item() < 1e-4
        assert matching(other.update, target.observed).item() > 1e-2


def test_withheld_parameters_still_move_what_is_sent() -> None:
    """Over several steps the client's scales and shifts train: frozen ones would explain less."""
    seen = observation("none", epochs=3)
    target, found = simulated(seen, normalisation().apply(private()))
    frozen = {name: target.parameters[name] for name in target.sent}
    rest = {**target.buffers, **{n: t.detach() for n, t in target.parameters.items() if n not in frozen}}
    with BatchStatisticsRecorder(seen.model) as recorder:
        stuck = simulate_training(
            seen.model,
            frozen,
            rest,
            normalisation().apply(private()),
            target.labels,
            seen.loss_fn,
            target.local,
            recorder,
        )
    squared = MATCHINGS["squares"]
    assert squared(stuck.update, target.observed) > 100 * squared(found.update, target.observed)


def first_batch_mean() -> Tensor:
    """Of what enters the client's first batch norm, from its images and the global model alone."""
    with torch.no_grad():
        return build().get_submodule("features.conv0")(normalisation().apply(private(2))).mean(dim=(0, 2, 3))


def drowned(place: str) -> NoiseDefense:
    return NoiseDefense(NoiseSettings(scale=1e4 if place == "gradients" else 1e3, place=place), seed=0)


@pytest.mark.parametrize("place", ["gradients", "update"])
def test_noise_on_gradients_leaves_the_buffers_open(place: str) -> None:
    """Nothing is left of the gradient, and the batch's statistics are there to be read all the same."""
    clean = observation("all", labels=(0, 1)).update.tensors
    seen = observation("all", labels=(0, 1), defense=drowned(place))
    parameters = [name for name, _ in build().named_parameters()]
    noisy = seen.update.tensors
    assert abs(cosine({name: clean[name] for name in parameters}, {name: noisy[name] for name in parameters})) < 0.05
    assert all((noisy[name] - clean[name]).abs().max() > 100 * clean[name].abs().max() for name in parameters)
    after = {name: tensor + noisy[name] for name, tensor in seen.global_state.items()}
    sizes = {f"features.norm{index}": 2 * SIDE**2 for index in range(5)}
    found = recover_batch_statistics(seen.model, seen.global_state, after, sizes, steps=1)
    torch.testing.assert_close(found["features.norm0"].mean, first_batch_mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("policy", ["parameters", "none"])
@pytest.mark.parametrize("place", ["gradients", "update"])
def test_buffers_that_do_not_leave_are_closed(place: str, policy: SharedBatchNorm) -> None:
    seen = observation(policy, labels=(0, 1), defense=drowned(place))
    assert not [name for name in seen.update.tensors if "running" in name or "num_batches" in name]
    _, found = simulated(seen, normalisation().apply(private(2)))
    assert observed_statistics(seen, found.statistics[0]) == {}


@pytest.mark.parametrize("policy", ["all", "stats"])
def test_statistics_that_are_sent_are_read(policy: SharedBatchNorm) -> None:
    seen = observation(policy, labels=(0, 1))
    _, found = simulated(seen, normalisation().apply(private(2)))
    statistics = observed_statistics(seen, found.statistics[0])
    torch.testing.assert_close(statistics["features.norm0"].mean, first_batch_mean(), rtol=0, atol=1e-4)


def test_statistics_that_are_not_granted_are_no_statistics_that_are_kept() -> None:
    """An attack that forgot to ask for them is stopped, whatever the client shares."""
    seen = observation("all", labels=(0, 1), threat="eavesdropper")
    seen = replace(seen, _local_training=LocalTraining(RATE, 2, 1))
    _, found = simulated(seen, normalisation().apply(private(2)))
    with pytest.raises(KeyError):
        observed_statistics(seen, found.statistics[0])


@pytest.mark.parametrize("name", sorted(name for name, kind in ATTACKS.items() if kind.model == ANY_MODEL))
@pytest.mark.parametrize("policy", ["parameters", "stats", "none"])
def test_every_attack_goes_without_what_stays(name: str, policy: SharedBatchNorm) -> None:
    kind = ATTACKS[name].attack
    once = {"restarts": 1} if "restarts" in kind.model_fields else {}
    found = kind(**SHORT.get(name, {"iterations": 2}), **once).reconstruct(seen := observation(policy), seed=0)
    assert found.images.shape == (1, *SHAPE)
    assert (PARAMETERS_WITHHELD in found.notes) == (policy != "parameters")
    # Only these read the buffers.
    reads = name in ("gradinversion", "gradinversion-group", "model-based")
    assert (NOTHING_IN_THE_BUFFERS in found.notes) == (reads and policy != "stats")
    control = randomised(seen, seed=0)
    assert control.update.tensors.keys() == seen.update.tensors.keys()
    assert control.update.withheld == seen.update.withheld


def test_statistics_of_public_images_are_those_of_a_pass_in_train_mode() -> None:
    """As the model's own running statistics take them in."""
    seen = observation("none")
    found = proxy_statistics(seen)
    model = build()
    model.load_state_dict(dict(seen.global_state))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()(normalisation().apply(some_images("public", SIDE).unit_images()))
    sizes = {name: statistics.size for name, statistics in found.items()}
    expected = recover_batch_statistics(model, before, model.state_dict(), sizes, 1)
    assert found.keys() == expected.keys()
    assert found
    for name, statistics in found.items():
        torch.testing.assert_close(statistics.mean, expected[name].mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(statistics.variance, expected[name].variance, atol=1e-4, rtol=1e-3)


def test_public_statistics_stand_in_for_those_that_stay() -> None:
    threat = ThreatModel("some", "somewhere", frozenset({"local training", "template", "public images"}))
    attack = GradInversion(iterations=2, statistics="proxy")
    seen = replace(observation("none"), threat_model=threat)
    found = attack.reconstruct(seen, seed=0)
    assert NOTHING_IN_THE_BUFFERS not in found.notes
    assert any("public images stand in" in note for note in found.notes)
    other = GradInversion(iterations=2, statistics="none").reconstruct(seen, seed=0)
    # At the same start, the distance from those statistics is added.
    assert found.history[0] > other.history[0]
    assert attack.needs == threat.granted
    with pytest.raises(ThreatModelError, match="public images"):
        threat_model("honest-but-curious server").require(attack.needs, "gradinversion")
    with pytest.raises(ConfigError, match="released matches the statistics in the buffers"):
        GradInversion(mode="released", statistics="proxy")


def test_a_tensor_that_is_missing_for_no_reason_is_not_passed_over() -> None:
    seen = observation("none")
    tensors = {name: tensor for name, tensor in seen.update.tensors.items() if name != "features.conv0.weight"}
    with pytest.raises(KeyError, match=r"features\.conv0\.weight"):
        matching_target(replace(seen, update=replace(seen.update, tensors=tensors)), longest_unroll=1)


def quality(attack: Any, policy: SharedBatchNorm, **changes: Any) -> float:
    return psnr(attack.reconstruct(observation(policy, **changes), seed=0).images, private()).item()


@pytest.mark.slow
def test_an_image_is_rebuilt_without_scales_and_shifts() -> None:
    """The other layers say all of it."""
    attack = IDLG(iterations=13, restarts=1)
    with_them, without = (quality(attack, policy, mode="eval") for policy in ("all", "none"))
    assert without > 60 > baseline() + 30
    assert without > with_them - 10


@pytest.mark.slow
def test_what_the_statistics_are_worth_to_the_attack_that_reads_them() -> None:
    """In train mode, where they say most; what else is sent still beats the mean image."""
    attack = GradInversion(iterations=300)
    with_them, without = (quality(attack, policy, width=16) for policy in ("stats", "none"))
    assert with_them > without + 5
    assert without > baseline() + 4
