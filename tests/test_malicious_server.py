"""The benchmark of a malicious server: it reads what nothing hides, and nothing under noise that hides everything."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from shadow_defense.data.dataset import concatenated
from shadow_defense.experiment.plans.evidence.plan import Evidence, base_of
from shadow_defense.experiment.plans.evidence.reading import Study
from shadow_defense.experiment.scene import Scene

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("malicious_server")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    study = Study.model_validate(
        {
            "title": "tiny",
            "seeds": [0],
            "data": {
                "source": "faces",
                "image_size": 16,
                "public_fraction": 0.6,
                "split": {"kind": "sizes", "sizes": [10, 20], "batch_sizes": [1, 1]},
            },
            "training": {"rounds": 2, "learning_rate": 0.05},
            "metrics": {"lpips": None},
            "models": {"convnet": {"model": {"name": "convnet", "normalisation": "group", "width": 8}}},
            "defenses": {
                "none": {"defense": "none"},
                "sparse": {"defense": "gradient-sparsification", "preset": "strong"},
                "clipped": {"defense": "gradient-clipping", "preset": "strong"},
                "quiet": {"defense": "dp-sgd", "options": {"noise_multiplier": 0.03}},
                "loud": {"defense": "dp-sgd", "options": {"noise_multiplier": 1000.0}},
            },
            "attacks": {"ig": {"attack": "inverting-gradients", "options": {"iterations": 1}}},
            "workers": 0,
        }
    )
    return base_of(Evidence(tmp_path_factory.mktemp("study"), study).trial("convnet", 0))


def test_the_planted_layer_reads_what_nothing_hides_and_averages_noise_away(script: ModuleType, scene: Scene) -> None:
    places = torch.tensor([3, 11, 20])
    victims = concatenated([client.train for client in scene.dataset.clients]).subset(places.tolist())
    public = scene.dataset.public.subset(list(range(40)))
    found = {arm: script.read_arm(scene, arm, public, victims, places, 2, [6]) for arm in scene.config.arms}
    once = {arm: rows[1] for arm, rows in found.items()}
    for arm in ("none", "sparse"):
        # Six principal components to the last digit, which no other image has.
        assert once[arm]["found"]["mean"] == 1 and once[arm]["above"]["mean"] > 0.5, arm
    # Of a clipped gradient the length is lost, and no more.
    assert once["clipped"]["found"]["mean"] > 0.6
    assert once["loud"]["found"]["mean"] < 0.5 and once["loud"]["above"]["mean"] < 0.1
    one, two = (found["quiet"][looks]["above"]["mean"] for looks in (1, 2))
    assert once["loud"]["above"]["mean"] < one < two <= once["none"]["above"]["mean"]
    assert once["quiet"]["measured"]["epsilon_spent"] > 100
