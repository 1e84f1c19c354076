"""What of batch norm leaves the clients, from the configuration to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.config import config_from
from shadow_defense.errors import ConfigError, DataError, UpdateError
from shadow_defense.experiment.plans.run import evaluate_stage, report_stage, train_stage
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks.scoring import Foreground
from shadow_defense.federated.batch_norm_policy import public_statistics, withheld_names
from shadow_defense.federated.training_folder import round_folder, state_folder
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_tensors
from shadow_defense.metrics.utility import evaluate
from tests.experiment.in_process import train_arm


def run_of(tiny: dict[str, Any], folder: Path, **changes: Any) -> Run:
    arms = {"silo": {"share_bn": "parameters"}, "fedbn": {"share_bn": "none"}, "fedavg": {}}
    tiny["model"]["normalisation"] = "batch"
    tiny["attacks"]["ig"]["rounds"] = [1]
    return Run.create(folder, config_from({**tiny, "arms": arms, **changes}))


@pytest.mark.slow
def test_an_arm_keeps_batch_norm_on_its_clients(tiny: dict[str, Any], tmp_path: Path) -> None:
    run = run_of(tiny, tmp_path / "run")
    for arm in run.config.arms:
        train_arm(run, arm)
    kept = {arm: withheld_names(run.new_model(arm), settings.share_bn) for arm, settings in run.config.arms.items()}
    assert [len(kept[arm]) for arm in ("silo", "fedbn", "fedavg")] == [15, 25, 0]
    for job in run.jobs():
        seen = run.observation(job)
        assert seen.update.tensors.keys() == seen.global_state.keys() - kept[job.arm]
        assert seen.update.withheld == tuple(sorted(kept[job.arm]))
    # The model that is evaluated and looked through is the final one, with the statistics of public images.
    state, _ = read_tensors(state_folder(run.arm_folder("silo"), 3) / "global.safetensors")
    model, data = run.new_model("silo"), run.dataset
    assert torch.equal(state["features.norm0.running_mean"], model.state_dict()["features.norm0.running_mean"])
    final = {**state, **public_statistics(model, state, data.public.images, data.normalisation)}
    model.load_state_dict(final)
    shown = Foreground(run, run.arm_folder(run.reference))._model.state_dict()
    assert all(torch.equal(tensor, shown[name]) for name, tensor in final.items())
    run.config.attacks.clear()
    results = evaluate_stage(run)
    assert results.arms["silo"].test == evaluate(model, run.dataset)["test"]
    assert {arm: entry.share_bn for arm, entry in results.arms.items()} == {
        "silo": "parameters",
        "fedbn": "none",
        "fedavg": "all",
    }
    (statistics,) = (note for note in results.notes if note.startswith("Running statistics stay"))
    assert "in silo, fedbn:" in statistics and f"on {len(data.public)} public images" in statistics
    (parameters,) = (note for note in results.notes if note.startswith("Batch norm's scales and shifts"))
    assert "in fedbn:" in parameters
    report_stage(run)
    page = run.report_path.read_text()
    assert ">Batch norm sent<" in page
    assert all(f"<td>{words}</td>" in page for words in ("scales and shifts", "nothing", "all of it"))


def test_without_batch_norm_there_is_nothing_to_say(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["model"]["normalisation"] = "group"
    run = Run.create(tmp_path / "run", config_from({**tiny, "arms": {"fedavg": {}}, "attacks": {}}))
    train_arm(run, "fedavg")
    results = evaluate_stage(run)
    assert results.arms["fedavg"].share_bn is None
    assert not [note for note in results.notes if "stay with the clients" in note]
    report_stage(run)
    assert "Batch norm sent" not in run.report_path.read_text()


def test_what_cannot_be_evaluated_is_said_before_training(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"]["public_fraction"] = 0
    run = run_of(tiny, tmp_path / "run")
    with pytest.raises(DataError, match="share_bn=parameters keeps running statistics on the clients") as raised:
        train_stage(run)
    assert "\n" not in str(raised.value)
    assert not (run.folder / "arms").exists()


def test_an_unknown_policy_is_named(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="share_bn") as raised:
        config_from({**tiny, "arms": {"fedavg": {"share_bn": "some"}}})
    assert "\n" not in str(raised.value) and "'parameters'" in str(raised.value)


def test_an_update_of_another_policy_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A file that lacks what its arm shares, or holds what its arm keeps."""
    run = run_of(tiny, tmp_path / "run")
    for arm in ("fedbn", "fedavg"):
        train_arm(run, arm)
    job = {each.arm: each for each in run.jobs()}
    paths = {arm: round_folder(run.arm_folder(arm), 0) / f"update-{job[arm].client}.safetensors" for arm in job}
    whole, lacking = ModelUpdate.load(paths["fedavg"]), ModelUpdate.load(paths["fedbn"])
    whole.save(paths["fedbn"])
    lacking.save(paths["fedavg"])
    for arm, message in (("fedbn", "which stays with the client"), ("fedavg", "lacks tensor 'features.norm0")):
        with pytest.raises(UpdateError, match=message):
            run.observation(job[arm])
