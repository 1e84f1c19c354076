"""Three lines in a Flower app: its training gets protected batches, and its model leaves only then."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from tests.federated.flower.in_process_grid import InProcessGrid
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shadow_defense.errors import DataError, DefenseError, RunError
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower import site_state
from shadow_defense.federated.flower.refusal import WITHHELD
from shadow_defense.federated.flower.shadow_guard_mod import ShadowGuardMod, guarded
from shadow_defense.shadow.settings import ShadowSettings

TEMPLATE = Path(__file__).resolve().parents[3] / "examples" / "flower-template"
QUICK = ShadowSettings(latent_iterations=2, strength=1.0)


def generator() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 576), nn.Tanh(), nn.Unflatten(1, (1, 24, 24)))


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's client, with a guard that is quick."""
    monkeypatch.syspath_prepend(str(TEMPLATE))
    made = importlib.import_module("template.client_app")
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "template"]:
        del sys.modules[name]


def app_of(template: ModuleType, mod: ShadowGuardMod) -> ClientApp:
    """The template's training behind another mod: the function that its decorator registered has none around it."""
    app = ClientApp(mods=[mod])
    app.train()(template.train)
    return app


def trained(app: ClientApp, states: Path, rounds: int = 1, fraction_evaluate: float = 0.0) -> InProcessGrid:
    net = importlib.import_module("template.task").Net
    grid = InProcessGrid(app, 2, {"state-dir": str(states)})
    for context in grid.contexts.values():
        context.run_config.update({"local-epochs": 1, "num-server-rounds": 2})
    torch.manual_seed(0)
    strategy = FedAvg(fraction_evaluate=fraction_evaluate)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(net().state_dict()), num_rounds=rounds)
    return grid


def mod(**changes: Any) -> ShadowGuardMod:
    return ShadowGuardMod(
        **{"generator": generator(), "settings": QUICK, "metrics": ["train_loss"], "z_dim": 8, **changes}
    )


def test_the_template_trains_on_protected_batches(template: ModuleType, tmp_path: Path) -> None:
    guarding = trained(app_of(template, mod()), tmp_path, rounds=2)
    assert [reply.has_error() for reply in guarding.replies] == [False] * 4
    assert set(guarding.replies[0].content["metrics"]) == {"train_loss", "num-examples"}
    states = ClientStateFolder(tmp_path, "run-1", "partition-0")
    assert states.last_round() == 1 and states.measurements()["noise_rms"] > 0.01
    # Codes of the first round are the second's: an image is known again, whatever the order of the batches.
    assert states.last().defense["latents"]["values"].shape == (4, 8)  # type: ignore[union-attr]
    # Without noise it is the template's own training.
    none = trained(app_of(template, mod(settings=QUICK.model_copy(update={"strength": 1e-9}))), tmp_path / "none")
    protected, plain = (each.replies[0].content["arrays"].to_torch_state_dict() for each in (guarding, none))
    assert any(not torch.allclose(protected[name], tensor, atol=1e-4) for name, tensor in plain.items())


@pytest.mark.parametrize(("images", "leaves"), [(12, True), (4, False)])
def test_an_apps_evaluations_pass_it_too(template: ModuleType, tmp_path: Path, images: int, leaves: bool) -> None:
    app = app_of(template, mod(metrics=["train_loss", "eval_loss"]))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"eval_loss": 0.123456, "num-examples": images})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid = trained(app, tmp_path, fraction_evaluate=1.0)
    evaluated = [reply for reply in grid.replies if reply.metadata.message_type == "evaluate"]
    assert [reply.has_error() for reply in evaluated] == [not leaves] * 2
    assert not leaves or dict(evaluated[0].content["metrics"]) == {"eval_loss": 0.123, "num-examples": 12}


def test_a_round_asked_again_is_answered_by_what_left(template: ModuleType, tmp_path: Path) -> None:
    grid = trained(app_of(template, mod()), tmp_path)
    again = grid.answer(grid.sent[0]).content["arrays"].to_torch_state_dict()
    left = next(
        reply.content["arrays"].to_torch_state_dict()
        for reply in grid.replies
        if reply.metadata.src_node_id == grid.sent[0].metadata.dst_node_id
    )
    torch.testing.assert_close(dict(again), dict(left), rtol=0, atol=0)


def test_a_training_that_draws_no_guarded_batch_sends_nothing(
    template: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "guarded", lambda loader, model: loader)
    grid = trained(app_of(template, mod()), tmp_path)
    assert {reply.error.code for reply in grid.replies} == {WITHHELD}
    assert "no guarded batch" in (tmp_path / "run-1" / "partition-0" / "withheld.txt").read_text()


def test_a_metric_that_nobody_named_does_not_leave(template: ModuleType, tmp_path: Path) -> None:
    grid = trained(app_of(template, mod(metrics=())), tmp_path)
    assert {reply.error.code for reply in grid.replies} == {WITHHELD}


def test_a_guard_without_a_generator_sends_nothing(
    template: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        grid = trained(app_of(template, mod(generator=None)), tmp_path)
    assert {reply.error.code for reply in grid.replies} == {WITHHELD}
    assert "--node-config 'shadow-generator=\"FILE\"'" in caplog.text


def test_a_deployment_without_a_folder_sends_nothing_and_a_simulation_has_one(
    template: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHADOW_DEFENSE_STATE", str(tmp_path))
    grid = InProcessGrid(app_of(template, mod()), 1)
    [context] = grid.contexts.values()
    with pytest.raises(RunError, match="start the SuperNode with --node-config 'state-dir"):
        site_state.state_root(context)
    monkeypatch.setattr(site_state, "is_simulated", lambda: True)
    assert site_state.state_root(context) == tmp_path / "simulations" / "run-1"


def test_outside_of_a_mod_nothing_is_guarded() -> None:
    with pytest.raises(DefenseError, match=r"ClientApp\(mods=\[ShadowGuardMod"):
        guarded([], nn.Identity())


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2)),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), torch.zeros(2).long()),
        {"image": torch.zeros(2, 3), "label": torch.zeros(2).long()},
    ],
)
def test_a_batch_of_another_form_is_refused(batch: Any) -> None:
    from shadow_defense.defenses.base import Defense, RoundContext
    from shadow_defense.federated.guarded import guarding

    now = RoundContext(nn.Identity(), {}, nn.functional.cross_entropy, 0, 1, 1.0)
    with guarding(Defense(), now), pytest.raises(DataError, match="expected one of each"):
        list(guarded([batch], nn.Identity()))
    with guarding(Defense(), now) as seen:
        loader = DataLoader(TensorDataset(torch.zeros(3, 1, 4, 4), torch.arange(3)), batch_size=2)
        found = guarded(loader, nn.Identity())
        assert [len(images) for images, _ in found] == [2, 1] and len(found) == 2 and len(found.dataset) == 3
    assert seen.batches == 2
