"""What is not granted is not there: neither as an attribute nor inside the update."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.clients import SHORT, some_images
from torch import nn

from shadow_defense.attacks.build import ATTACKS, AttackSettings
from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.kind import ANY_MODEL
from shadow_defense.attacks.local_steps import as_single_step
from shadow_defense.attacks.observation import Attack, Observation, Reconstruction, observe
from shadow_defense.attacks.target import matching_target
from shadow_defense.attacks.threat_model import THREAT_MODELS, Knowledge, ThreatModel, threat_model
from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import ConfigError, ThreatModelError
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

LOCAL = LocalTraining(0.1, 2, 3, "eval")
LABELS = torch.tensor([1, 0, 1, 1, 0])


def build() -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation="batch", width=8)
    return build_model(chosen, channels=1, classes=2, image_size=(8, 8), seed=0)


def observation(threat: ThreatModel, model: nn.Module | None = None, **changes: Any) -> Observation:
    model = model or build()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draws = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=draws) if tensor.is_floating_point() else torch.tensor(3)
        for name, tensor in state.items()
    }
    given: dict[str, Any] = {
        "model": model,
        "loss_fn": F.cross_entropy,
        "global_state": state,
        "update": ModelUpdate(tensors, 5, LOCAL.steps, 7, "site-1"),
        "image_shape": (1, 8, 8),
        "classes": 2,
        "normalisation": Normalisation((0.5,), (0.25,)),
        "labels": LABELS,
        "local_training": LOCAL,
        "template": torch.full((1, 8, 8), 0.5),
        "generator": lambda: DCGANGenerator(16, 1, 4, 4).eval(),
        "public": some_images("public", 8),
        "distribution": some_images("other", 8),
    }
    return observe(threat, **{**given, **changes})


def threats() -> list[ThreatModel]:
    items = get_args(Knowledge)
    return [
        ThreatModel("some", "somewhere", frozenset(chosen))
        for size in (0, 1, 2, len(items) - 1, len(items))
        for chosen in combinations(items, size)
    ]


@pytest.mark.parametrize("threat", threats(), ids=lambda threat: "+".join(sorted(threat.granted)) or "nothing")
def test_every_grant_is_there_and_nothing_else(threat: ThreatModel) -> None:
    seen = observation(threat)
    for knowledge, attribute in (
        ("labels", "labels"),
        ("local training", "local_training"),
        ("template", "template"),
        ("generator", "generator"),
        ("defense", "defense"),
        ("earlier rounds", "earlier"),
    ):
        assert seen.grants(knowledge) == (knowledge in threat.granted)
        if knowledge in threat.granted:
            assert getattr(seen, attribute) is not None
        else:
            with pytest.raises(ThreatModelError, match=f"'{knowledge}' was read but threat model 'some'"):
                getattr(seen, attribute)
    if "data distribution" in threat.granted:
        assert seen.auxiliary.sample_ids[0] == "other 0"
    elif "public images" in threat.granted:
        assert seen.auxiliary.sample_ids[0] == "public 0"
    else:
        with pytest.raises(ThreatModelError, match="'public images' was read"):
            _ = seen.auxiliary
    parameters = set(dict(build().named_parameters()))
    buffers = set(dict(build().named_buffers()))
    assert seen.update.tensors.keys() == (parameters | buffers if "buffers" in threat.granted else parameters)
    # The number of steps is part of the local training; the number of samples is for every attacker to see.
    assert seen.update.steps == (LOCAL.steps if "local training" in threat.granted else 0)
    assert (seen.update.samples, seen.update.round, seen.update.client) == (5, 7, "site-1")


def test_labels_come_sorted() -> None:
    seen = observation(THREAT_MODELS["informed server"])
    assert seen.labels.tolist() == [0, 0, 1, 1, 1]
    assert LABELS.tolist() == [1, 0, 1, 1, 0]


def test_the_mode_is_the_clients_only_where_it_is_known() -> None:
    """And each observation has a mode of its own, whatever others are made of the same model."""
    model = build()
    informed, eavesdropping = (observation(THREAT_MODELS[name], model) for name in ("informed server", "eavesdropper"))
    assert not informed.model.training
    assert eavesdropping.model.training
    assert model.training


def test_named_threat_models() -> None:
    assert not threat_model("eavesdropper").granted
    assert "labels" not in threat_model("honest-but-curious server").granted
    # The strongest that keeps to the protocol and has no accomplice.
    everything = set(get_args(Knowledge))
    assert threat_model("adaptive server").granted == everything - {"own model", "data distribution"}
    assert threat_model("informed server").granted == everything - {
        "own model",
        "data distribution",
        "defense",
        "earlier rounds",
    }
    with pytest.raises(ThreatModelError, match="did you mean 'eavesdropper'"):
        threat_model("eavesdroper")


def test_requirements_are_checked_before_the_attack_starts() -> None:
    eavesdropper = threat_model("eavesdropper")
    eavesdropper.require(frozenset(), "a")
    with pytest.raises(ThreatModelError, match="attack 'a' reads buffers, template, which threat model 'eavesdropper'"):
        eavesdropper.require(frozenset({"template", "buffers"}), "a")
    with pytest.raises(ThreatModelError, match="'gradinversion' reads buffers, local training, template"):
        AttackSettings(attack="gradinversion", threat_model="eavesdropper")
    with pytest.raises(ConfigError, match="did you mean 'gradinversion'"):
        AttackSettings(attack="gradinversoin")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, kind in ATTACKS.items() if kind.model == ANY_MODEL))
def test_every_attack_gets_by_with_what_it_needs(name: str) -> None:
    """Run under a threat model that grants exactly that; reading more raises."""
    attack = ATTACKS[name].attack(**SHORT.get(name, {"iterations": 2}))
    assert isinstance(attack, Attack)

    def grant(granted: frozenset[Knowledge]) -> Observation:
        # In train mode, since in eval mode the buffers say nothing and are not read.
        return observation(ThreatModel("some", "somewhere", granted), local_training=LocalTraining(0.1, 5, 1))

    found = attack.reconstruct(grant(attack.needs), seed=0)
    assert found.images.shape == (5, 1, 8, 8)
    assert found.images.min() >= 0 and found.images.max() <= 1
    for missing in attack.needs:
        with pytest.raises((ThreatModelError, KeyError)):
            attack.reconstruct(grant(attack.needs - {missing}), seed=0)


def test_target_of_few_steps_is_all_of_the_images() -> None:
    target = matching_target(observation(THREAT_MODELS["informed server"]), longest_unroll=3)
    assert target.labels.tolist() == [0, 0, 1, 1, 1]
    assert target.local == LOCAL
    assert target.notes == ()


def test_target_of_many_steps_is_one_average_batch() -> None:
    seen = observation(THREAT_MODELS["informed server"])
    target = matching_target(seen, longest_unroll=2)
    # Two of five images, from both classes.
    assert target.labels.tolist() == [0, 1]
    assert target.local == as_single_step(LOCAL)
    assert "3 local steps taken as one average step; 2 of 5 images sought" in target.notes
    assert list(target.parameters) == [name for name, _ in build().named_parameters()]
    for name, observed in zip(target.parameters, target.observed, strict=True):
        assert torch.equal(observed, seen.update.tensors[name])


def test_target_of_many_steps_that_are_all_simulated() -> None:
    target = matching_target(observation(THREAT_MODELS["informed server"]), longest_unroll=2, beyond="truncated")
    assert target.labels.tolist() == [0, 0, 1, 1, 1]
    assert (target.local, target.last) == (LOCAL, 2)
    assert "gradients through the last 2 of 3 local steps alone" in target.notes
    assert matching_target(observation(THREAT_MODELS["informed server"]), 3, "truncated").last is None


def test_target_of_an_eavesdropper() -> None:
    target = matching_target(observation(THREAT_MODELS["eavesdropper"]), longest_unroll=16)
    assert len(target.labels) == 5
    assert (target.local.steps, target.local.batch_size) == (1, 5)
    assert len(target.notes) == 2
    assert "labels recovered" in target.notes[1]


def test_reconstruction_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "reconstruction.safetensors"
    images = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    saved = Reconstruction(images, torch.tensor([0, 1]), 0.25, 10, 1.5, (3.0, 2.0), ("a note",))
    saved.save(path)
    loaded = Reconstruction.load(path)
    assert torch.equal(loaded.images, images) and torch.equal(loaded.labels, saved.labels)
    for field in ("matching_loss", "iterations", "seconds", "history", "notes"):
        assert getattr(loaded, field) == getattr(saved, field)


def test_an_attack_that_went_astray_can_be_saved(tmp_path: Path) -> None:
    """A loss that is not a number is no JSON."""
    path = tmp_path / "reconstruction.safetensors"
    history = (1.0, math.nan, math.inf)
    Reconstruction(torch.zeros(1, 1, 2, 2), torch.tensor([0]), math.inf, 3, 1.0, history).save(path)
    loaded = Reconstruction.load(path)
    assert loaded.matching_loss == math.inf
    assert loaded.history == (1.0, math.inf, math.inf)


def test_steps_for_progress() -> None:
    assert InvertingGradients(iterations=7, restarts=3, restarts_at_once=1).steps() == 21
    assert InvertingGradients(iterations=7, restarts=3, restarts_at_once=2).steps() == 14
    assert GradInversion(iterations=7).steps() == 7
