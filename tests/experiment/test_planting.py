"""A malicious server reads what nothing hides, and nothing under noise that hides everything."""

from __future__ import annotations

import pytest

from shadow_defense.experiment.plans.evidence.plan import Evidence, base_of, left_by
from shadow_defense.experiment.plans.evidence.reading import Study
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.tasks import planting
from shadow_defense.experiment.tasks.planting import Planting
from shadow_defense.report.records.evidence import Left

DEFENSES = {
    "none": {"defense": "none"},
    "sparse": {"defense": "gradient-sparsification", "preset": "strong"},
    "quiet": {"defense": "dp-sgd", "options": {"noise_multiplier": 0.2}},
    "loud": {"defense": "dp-sgd", "options": {"noise_multiplier": 1000.0}},
}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
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
            "defenses": DEFENSES,
            "attacks": {"ig": {"attack": "inverting-gradients", "options": {"iterations": 1}}},
            "audited": 20,
            "workers": 0,
        }
    )
    return Evidence(tmp_path_factory.mktemp("study"), study)


def read(evidence: Evidence, arm: str, looks: int) -> Left:
    task = Planting(base_of(evidence.trial("convnet", 0)), arm, 20, looks)
    carry_out([task], evidence.store, evidence.workers)
    found = left_by(task.load(evidence.store), 0, "malicious server", once=False)
    assert found is not None and found.gallery == 30
    return found


def test_it_reads_what_nothing_hides_and_averages_noise_away(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planting, "COUNTS", (6,))
    monkeypatch.setattr(planting, "LEARNED_FROM", 60)
    none, sparse, loud = (read(evidence, arm, 1) for arm in ("none", "sparse", "loud"))
    # Six principal components to the last digit, which no other image has.
    assert none.found.mean == sparse.found.mean == 1
    assert none.above.mean == pytest.approx(sparse.above.mean, abs=1e-3) and none.above.mean > 0.5
    assert loud.found.mean < 0.2 and loud.above.mean < 0.5
    once, twice = (read(evidence, "quiet", looks).above.mean for looks in (1, 2))
    assert loud.above.mean < once < twice < none.above.mean


def test_more_than_what_attacks_found_counts_and_bounds_nothing(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planting, "COUNTS", (6,))
    monkeypatch.setattr(planting, "LEARNED_FROM", 60)
    carry_out([evidence.bounds["convnet", arm] for arm in ("none", "sparse", "loud")], evidence.store, evidence.workers)
    left = evidence.worst_case("convnet", "sparse")
    assert left is not None and left.by == "malicious server, 2 rounds" and not left.bounded
    # The first arm is attacked whatever is read of it.
    assert evidence.worst_case("convnet", "none") is not None and "none" not in evidence.decided("convnet")
    assert "sparse" in evidence.decided("convnet") and "loud" not in evidence.decided("convnet")
