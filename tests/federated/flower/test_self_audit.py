"""The audit before the upload: what gives an image away stays, and so does what could not be tried."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from tests.attacks.clients import lenet, normalisation, private, public
from tests.federated.flower.in_process_grid import InProcessGrid, start

from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.config import config_from
from shadow_defense.data.dataset import ClientData, ImageSet
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.flower_apps import client_app, server_app
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.self_audit import SelfAudit, SelfAuditSettings, is_asked_for, settings_of_site
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.before_upload_mod import BeforeUploadMod
from shadow_defense.federated.flower.refusal import WITHHELD
from shadow_defense.federated.flower.update_defense_mod import UpdateDefenseMod
from shadow_defense.federated.settings import TrainingSettings

LEAKY = {
    "data": {"source": "faces", "image_size": 16, "split": {"kind": "sizes", "sizes": [1, 3]}},
    "model": {"name": "lenet", "normalisation": "none"},
    "training": {"rounds": 2, "learning_rate": 0.1},
    "arms": {"plain": {"defense": "none"}, "noise": {"defense": "noise", "options": {"scale": 1.0}}},
    "attacks": {"ig": {"attack": "inverting-gradients"}},
    "metrics": {"lpips": None},
}
"""A smooth network without batch norm, and a client of one image."""

REASON = "update withheld: DefenseError; see the client's log"
"""All that the server gets to know."""


def made_run(folder: Path, sizes: tuple[int, ...] = (1, 3)) -> Run:
    values = copy.deepcopy(LEAKY)
    values["data"]["split"]["sizes"] = list(sizes)  # type: ignore[index]
    return Run.create(folder, config_from(values))


def train(run: Run, arm: str, audits: Mapping[int, object]) -> InProcessGrid:
    """A training in which the nodes of ``audits`` say ``self-audit``."""
    grid = InProcessGrid(client_app(run.folder, arm, simulated=True), len(run.dataset.clients))
    for partition, given in audits.items():
        grid.contexts[100 + partition].node_config["self-audit"] = given
    start(server_app(run.place(arm)), grid)
    return grid


def replies_of(grid: InProcessGrid, partition: int) -> list[Message]:
    return [reply for reply in grid.replies if reply.metadata.src_node_id == 100 + partition]


def states_of(run: Run, arm: str, client: str) -> ClientStateFolder:
    return ClientStateFolder(run.arm_folder(arm), "clients", client)


def withheld(replies: list[Message]) -> None:
    for reply in replies:
        assert reply.has_error() and not reply.has_content()
        assert (reply.error.code, reply.error.reason) == (WITHHELD, REASON)


@pytest.mark.slow
def test_an_update_that_gives_its_image_away_stays_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = made_run(tmp_path / "run")
    grid = train(run, "plain", {0: "ssim=0.4"})
    # Of the two the other client, whose site asks for no audit, trains alone.
    assert len(replies_of(grid, 0)) == 2
    withheld(replies_of(grid, 0))
    assert all(reply.has_content() for reply in replies_of(grid, 1))
    recorded = sorted(path.name for path in run.arm_folder("plain").glob("round-0000/update-*"))
    assert recorded == ["update-client-2.safetensors"]
    states = states_of(run, "plain", "client-1")
    (sample,) = run.client("client-1").train.sample_ids
    refusal = states.refusal()
    assert refusal is not None and "inverting-gradients rebuilt image" in refusal and "above 0.4" in refusal
    for word in (sample, "client 'client-1': update withheld: DefenseError: self-audit"):
        assert word in refusal and word in caplog.text
    assert states_of(run, "plain", "client-2").refusal() is None
    # The round counts for the client's own state: a defense that builds up over rounds gets on.
    assert states.last_round() == 1
    # Asked again it stays again.
    withheld([grid.answer(message) for message in grid.sent[-2:] if message.metadata.dst_node_id == 100])


@pytest.mark.slow
def test_a_step_of_adam_gives_its_image_away_as_well(tmp_path: Path) -> None:
    """All of its values are equally large: an audit that took it for SGD's would find nothing and let it leave."""
    values = copy.deepcopy(LEAKY)
    values["training"] = {"rounds": 1, "learning_rate": 0.001, "optimiser": "adam"}
    run = Run.create(tmp_path / "run", config_from(values))
    withheld(replies_of(train(run, "plain", {0: "ssim=0.4"}), 0))
    refusal = states_of(run, "plain", "client-1").refusal()
    assert refusal is not None and "inverting-gradients rebuilt image" in refusal


@pytest.mark.slow
def test_with_a_strong_defense_the_same_update_leaves_as_without_an_audit(tmp_path: Path) -> None:
    plain, audited = made_run(tmp_path / "plain"), made_run(tmp_path / "audited")
    expected = train(plain, "noise", {})
    settings = {"attack": {"threat_model": "adaptive server", "adaptive": {}, "options": {"iterations": 30}}}
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(settings))
    found = train(audited, "noise", {0: "ssim=0.4", 1: str(tmp_path / "audit.yaml")})
    # To the bit: the audit disturbs neither the draws nor the model.
    for partition in (0, 1):
        for with_audit, without in zip(replies_of(found, partition), replies_of(expected, partition), strict=True):
            assert with_audit.content["arrays"] == without.content["arrays"]
            assert set(with_audit.content["metrics"]) == {"num-examples", "steps", "partition-id"}
    measured = states_of(audited, "noise", "client-1").measurements()
    assert measured["self_audit_ssim"] <= 0.4 and "loss" in measured
    assert states_of(audited, "noise", "client-1").refusal() is None


SECRET = "image 17 of patient Miller"


def raising(self: InvertingGradients, observation: Observation, **given: Any) -> Reconstruction:
    raise ZeroDivisionError(SECRET)


def without_numbers(self: InvertingGradients, observation: Observation, **given: Any) -> Reconstruction:
    return Reconstruction(torch.full((1, *observation.image_shape), torch.nan), torch.tensor([0]), 0.0, 1, 0.0)


def without_images(self: InvertingGradients, observation: Observation, **given: Any) -> Reconstruction:
    return Reconstruction(torch.empty(0, *observation.image_shape), torch.empty(0).long(), 0.0, 1, 0.0)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (raising, f"the self-audit by inverting-gradients failed (ZeroDivisionError: {SECRET})"),
        (without_numbers, "the self-audit by inverting-gradients failed (DataError: "),
        (without_images, "has no ssim of its reconstructions"),
    ],
)
def test_what_could_not_be_tried_stays(
    attack: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(InvertingGradients, "reconstruct", attack)
    run = made_run(tmp_path / "run")
    grid = train(run, "noise", {0: "ssim=0.4"})
    withheld(replies_of(grid, 0))
    assert len(replies_of(grid, 0)) == 2
    refusal = states_of(run, "noise", "client-1").refusal()
    assert refusal is not None and said in refusal and said in caplog.text
    # Where it is nobody's mistake, where it happened is in the log too.
    assert ("in raising" in caplog.text) is (attack is raising)


def test_only_the_rounds_and_clients_that_a_site_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(InvertingGradients, "reconstruct", raising)
    (tmp_path / "audit.yml").write_text("every: 2\nmost_images: 2\n")
    grid = train(made_run(tmp_path / "run"), "plain", dict.fromkeys((0, 1), str(tmp_path / "audit.yml")))
    assert [reply.has_error() for reply in replies_of(grid, 0)] == [True, False]
    assert [reply.has_error() for reply in replies_of(grid, 1)] == [False, False]
    line = "round 1: client 'client-2' has 3 images and self-audits cover at most 2: the update leaves unaudited"
    assert line in caplog.messages


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ssim", "expected metric=value, such as ssim=0.4"),
        ("", "expected metric=value, such as ssim=0.4"),
        (0.4, "expected metric=value, such as ssim=0.4"),
        ("sim=0.4", "self-audit.metric = 'sim'"),
        ("ssim=low", "self-audit.threshold = 'low'"),
        ("ssim=nan", "self-audit.threshold = 'nan'"),
        ("nowhere.yaml", "cannot read the configuration nowhere.yaml"),
        ("@ssim=0.4", "expected keys and values"),
        ("@{", "is not valid YAML"),
        ("@evry: 2", "did you mean 'every'"),
        ("@attack: {attack: inverting-gradient}", "did you mean 'inverting-gradients'"),
        ("@attack: {longest_client: 2}", "use every and most_images"),
        ("@attack: {threat_model: adaptive server, adaptive: {rounds: 2}}", "keeps no earlier updates"),
        ("@attack: {threat_model: malicious server}", "a client cannot try the malicious server, who has own model"),
        ("@attack: {threat_model: server with the client's data distribution}", "who has data distribution"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(given: object, said: str, tmp_path: Path) -> None:
    if isinstance(given, str) and given.startswith("@"):
        (tmp_path / "audit.yaml").write_text(given[1:])
        given = str(tmp_path / "audit.yaml")
    with pytest.raises(Exception, match=r".") as raised:
        settings_of_site(given)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert isinstance(raised.value, ConfigError)


@pytest.mark.parametrize("key", ["self_audit", "selfaudit", "Self-Audit", "self-audits"])
def test_a_key_that_is_nearly_right_is_not_passed_over(key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' in --node-config: did you mean 'self-audit'"):
        is_asked_for({"partition-id": 0, "state-dir": "home", key: "ssim=0.4"})
    assert not is_asked_for({"partition-id": 0, "num-partitions": 3, "state-dir": "home"})


def test_with_settings_that_cannot_be_used_nothing_leaves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid = train(made_run(tmp_path / "run"), "plain", {0: "sim=0.4"})
    assert [reply.error.reason for reply in replies_of(grid, 0)] == [REASON.replace("Defense", "Config")] * 2
    assert "self-audit.metric = 'sim'" in caplog.text


def plain_app(*mods: Any) -> ClientApp:
    """Somebody else's client: one step of plain PyTorch on one image."""
    app = ClientApp()

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        model = lenet()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(normalisation().apply(private())), torch.tensor([1])).backward()
        optimiser.step()
        content = RecordDict(
            {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 1, "partition-id": 0})}
        )
        return Message(content, reply_to=message)

    return app


def check(context: Context) -> SelfAudit:
    images = ImageSet((private() * 255).round().byte(), torch.tensor([1]), ("face",))
    return SelfAudit(
        SelfAuditSettings(),
        model=lenet,
        client=ClientData("site", images, images, images, 1),
        training=TrainingSettings(learning_rate=0.1, rounds=1),
        normalisation=normalisation(),
        classes=2,
        template=public().mean(0),
        seed=0,
        loss_fn=F.cross_entropy,
    )


def run_plain_app(*mods: Any, **node_config: Any) -> Message:
    grid = InProcessGrid(plain_app(*mods), 1, node_config)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(lenet().state_dict()), num_rounds=1)
    (reply,) = grid.replies
    return reply


@pytest.mark.slow
def test_the_audit_as_a_mod_around_any_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit = BeforeUploadMod(check, run="mine", rounds=1)
    withheld([run_plain_app(audit)])
    assert "rebuilt image 'face' with ssim" in caplog.text
    assert not list(tmp_path.iterdir())
    withheld([run_plain_app(audit, **{"state-dir": str(tmp_path)})])
    states = ClientStateFolder(tmp_path, "mine", "partition-0")
    assert states.refusal() is not None
    # It sees what the mods after it made of the update.
    noise = DefenseSettings(defense="noise", options={"place": "update", "scale": 1.0})
    defense = UpdateDefenseMod(noise, lenet, run="defended", rounds=1)
    with caplog.at_level(logging.INFO, "shadow_defense.self_audit"):
        reply = run_plain_app(audit, defense, **{"state-dir": str(tmp_path)})
    assert reply.has_content() and states.refusal() is None
    assert "self-audit passed: ssim" in caplog.text
    shutil.rmtree(tmp_path / "defended")
    undefended = run_plain_app()
    assert reply.content["arrays"] != undefended.content["arrays"]


def test_a_training_that_fails_inside_the_mod_sends_nothing() -> None:
    def fail(message: Message, context: Context, call_next: Any) -> Message:
        raise ZeroDivisionError(SECRET)

    reply = run_plain_app(BeforeUploadMod(check, run="mine", rounds=1), fail)
    assert reply.error.reason == REASON.replace("DefenseError", "ZeroDivisionError")
