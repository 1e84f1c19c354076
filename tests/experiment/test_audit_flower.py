"""The question most asked of attack libraries: I trained with Flower and cannot reconstruct anything, why?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

# Flower reads its environment when it is imported: ours comes first (tests/federated/flower/conftest.py).
pytest.importorskip("shadow_defense.federated.flower")

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from shadow_defense.cli.app import app
from shadow_defense.config import config_from
from shadow_defense.errors import RunError
from shadow_defense.experiment.flower_apps import client_app, server_app
from shadow_defense.experiment.run import Run
from shadow_defense.federated.flower.recording_strategy import RecordingStrategy
from shadow_defense.files import read_json
from tests.attacks.clients import faces, lenet, normalisation, private, public
from tests.federated.flower.in_process_grid import InProcessGrid, start

BATCH, EPOCHS, RATE = 16, 2, 0.1


def images_of(partition: int) -> Tensor:
    """One image, and thirty-two."""
    return private() if partition == 0 else faces()[-32:]


def plain_client() -> ClientApp:
    """A client that knows nothing of this project: plain PyTorch, as in Flower's own quickstart."""
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        model, images = lenet(), normalisation().apply(images_of(partition))
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        labels = (torch.arange(len(images)) + 1) % 2
        optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
        for _ in range(1 if partition == 0 else EPOCHS):
            for batch in torch.arange(len(images)).split(BATCH):
                optimiser.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimiser.step()
        metrics = MetricRecord({"num-examples": len(images), "partition-id": partition})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return made


def write_images(folder: Path, images: Tensor) -> None:
    folder.mkdir()
    for index, image in enumerate((images * 255).round().byte()):
        Image.fromarray(image[0].numpy()).save(folder / f"{index:03}.png")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the auditor at the server of somebody else's training wrote, and what is known of it besides."""
    folder = tmp_path_factory.mktemp("flower")
    strategy = RecordingStrategy(FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2), folder)
    strategy.start(
        grid=InProcessGrid(plain_client(), 2), initial_arrays=ArrayRecord(lenet().state_dict()), num_rounds=1
    )
    norm = normalisation()
    data = {"image_size": 16, "mean": list(norm.mean), "std": list(norm.std)}
    written = {"model": {"name": "lenet", "normalisation": "none"}, "data": data, "metrics": {"lpips": None}}
    (folder / "model.yaml").write_text(yaml.safe_dump(written))
    write_images(folder / "public", public()[:40])
    for partition in (0, 1):
        write_images(folder / f"truth-{partition}", images_of(partition))
    return folder


def audit(out: Path, *arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["audit", *map(str, arguments), "--out", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    return {**read_json(out / "audit.json"), "output": result.output}


def audit_of(recorded: Path, partition: int, out: Path, *arguments: object) -> dict[str, Any]:
    place = recorded / "round-0000"
    files = ("--global", place / "global.safetensors", "--update", place / f"update-partition-{partition}.safetensors")
    scored = ("--truth", recorded / f"truth-{partition}", "--template", recorded / "public")
    return audit(out, "--model", recorded / "model.yaml", *files, *scored, *arguments)


def said(results: dict[str, Any], effect: str) -> str:
    return " ".join(reason["sentence"] for reason in results["diagnosis"] if reason["effect"] == effect)


@pytest.mark.slow
def test_a_client_of_one_image_is_shown_to_leak(recorded: Path, tmp_path: Path) -> None:
    local = ("--learning-rate", RATE, "--steps", 1, "--batch-size", 1)
    attacks = ("--attack", "r-gap,inverting-gradients", "--iterations", 100)
    results = audit_of(recorded, 0, tmp_path / "out", *local, *attacks)
    assert results["facts"]["samples"] == 1
    for name, above in (("r-gap", 0.3), ("inverting-gradients", 0.1)):
        (row,) = results["attacks"][name]["rows"]
        assert row["ssim"] > row["mean_image_ssim"] + above, name
        assert results["attacks"][name]["rebuilt"] is True
    assert "r-gap rebuilt image 1" in results["output"] and "the update gives it away" in results["output"]
    assert "One local step" in said(results, "gives away")


@pytest.mark.slow
def test_of_a_client_of_many_images_it_is_said_what_hides_them(recorded: Path, tmp_path: Path) -> None:
    local = ("--learning-rate", RATE, "--steps", 2 * EPOCHS, "--batch-size", BATCH)
    results = audit_of(recorded, 1, tmp_path / "out", *local, "--iterations", 2)
    # The reply said how many images, nobody had to.
    assert results["facts"]["samples"] == 32
    assert results["attacks"]["inverting-gradients"]["rebuilt"] is False
    for words in ("mean over a batch of 16 images", "4 local steps: each one's gradient is of another model"):
        assert words in said(results, "hides") and words in " ".join(results["output"].split())
    assert "a failed search is no protection" in " ".join(results["output"].split())
    # Who does not know how the client trained is told that this is what is missing.
    unknown = audit_of(recorded, 1, tmp_path / "unknown", "--iterations", 1)
    assert "The local training is not known" in said(unknown, "limits the attack")


def test_a_recorded_folder_in_place_of_a_run_is_answered_with_the_flags(recorded: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["audit", str(recorded), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, RunError)
    line, place = str(result.exception), recorded / "round-0000"
    for words in (
        "--model",
        f"--global {place}/global.safetensors",
        f"--update {place}/update-partition-0.safetensors",
    ):
        assert words in line
    assert "\n" not in line


def test_a_run_on_flower_answers_by_itself(tmp_path: Path) -> None:
    """Where our own configuration trained, nothing has to be told: model, local training and images are at hand."""
    values = {
        "data": {
            "source": "faces",
            "image_size": 16,
            "split": {"kind": "sizes", "sizes": [1, 24], "batch_sizes": [1, 12]},
        },
        "model": {"name": "lenet", "normalisation": "none"},
        "training": {"rounds": 1, "learning_rate": RATE, "local_epochs": 2},
        "arms": {"fedavg": {"defense": "none"}},
        "attacks": {"ig": {"attack": "inverting-gradients", "options": {"iterations": 2}}},
        "metrics": {"lpips": None},
    }
    run = Run.create(tmp_path / "run", config_from(values))
    start(server_app(run.place("fedavg")), InProcessGrid(client_app(run.folder, "fedavg", simulated=True), 2))
    results = audit(tmp_path / "out", run.folder, "--client", "client-2")
    assert results["attacks"]["ig"]["rebuilt"] is False
    for words in ("mean over a batch of 12 images", "4 local steps: each one's gradient is of another model"):
        assert words in said(results, "hides")
