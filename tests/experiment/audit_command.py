"""The audit command in a folder of its own, and the files that it is tried on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from shadow_defense.cli.app import app
from shadow_defense.data.dataset import ClientData, ImageSet
from shadow_defense.defenses.base import Defense
from shadow_defense.errors import ShadowDefenseError
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_json
from tests.attacks.clients import lenet, normalisation, private, public


def write_images(folder: Path, images: Tensor) -> Path:
    folder.mkdir()
    for index, image in enumerate((images * 255).round().byte()):
        Image.fromarray(image[0].numpy()).save(folder / f"{index:03}.png")
    return folder


LABELLED = {"a": public()[:4], "b": public()[4:10]}
"""Public images by the sub-folder of their class."""


def write_classes(folder: Path, images: dict[str, Tensor]) -> Path:
    folder.mkdir()
    for name, each in images.items():
        write_images(folder / name, each)
    return folder


def update_of(
    images: Tensor, labels: list[int], classes: int = 2, **local: Any
) -> tuple[dict[str, Tensor], ModelUpdate]:
    """The state before, and the update, of a LeNet's local training on ``images``."""
    model = lenet(classes)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = ImageSet((images * 255).round().byte(), torch.tensor(labels), tuple(map(str, range(len(images)))))
    training = TrainingSettings(
        learning_rate=local.get("learning_rate", 0.1),
        local_epochs=local.get("epochs", 1),
        optimiser=local.get("optimiser", "sgd"),
        loss=local.get("loss", "ce"),
    )
    result = train_locally(
        model,
        state,
        ClientData("site-1", data, data, data, local.get("batch_size", len(images))),
        Defense(),
        settings=training,
        round=0,
        normalisation=normalisation(),
        loss_fn=training.loss_function(),
        seed=0,
    )
    return state, result.update


def write_files(folder: Path) -> Path:
    """A client of one image: every form of its update, the images around it, and the model in YAML."""
    state, update = update_of(private(), [1])
    save_file(state, folder / "global.safetensors")
    save_file(dict(update.tensors), folder / "difference.safetensors")
    update.save(folder / "ours.safetensors")
    after = {name: tensor + update.tensors[name] for name, tensor in state.items()}
    torch.save(after, folder / "after.pt")
    # The difference of the rounded states is the update that this client's server computes.
    torch.save({name: after[name] - tensor for name, tensor in state.items()}, folder / "difference.pt")
    np.savez(folder / "after.npz", *(tensor.numpy() for tensor in after.values()))
    write_images(folder / "truth", private())
    write_images(folder / "public", public())
    for name, labelled in (("labelled", LABELLED), ("three", {**LABELLED, "c": public()[:1]})):
        write_classes(folder / name, labelled)
    write_classes(folder / "own", {"a": private(), "b": private()})
    norm = normalisation()
    data = {"image_size": 16, "mean": list(norm.mean), "std": list(norm.std)}
    written = {"model": {"name": "lenet", "normalisation": "none"}, "data": data, "metrics": {"lpips": None}}
    (folder / "model.yaml").write_text(yaml.safe_dump(written))
    return folder


class Audit:
    """The command, run in a folder of its own."""

    def __init__(self, files: Path, out: Path) -> None:
        self.files, self.out = files, out

    def invoke(self, *arguments: str) -> Any:
        arguments = tuple(re.sub(r"@(\S*)", lambda found: str(self.files / found[1]), each) for each in arguments)
        return CliRunner().invoke(app, ["audit", *arguments, "--out", str(self.out)])

    def __call__(self, *arguments: str, exit_code: int = 0) -> dict[str, Any]:
        result = self.invoke(*arguments)
        assert result.exit_code == exit_code, (result.output, result.exception)
        return {**read_json(self.out / "audit.json"), "output": result.output}

    def refused(self, *arguments: str) -> ShadowDefenseError:
        result = self.invoke(*arguments)
        assert isinstance(result.exception, ShadowDefenseError), (result.output, result.exception)
        assert "\n" not in str(result.exception)
        assert not (self.out / "audit.json").exists()
        return result.exception

    def images(self, attack: str) -> Tensor:
        return load_file(self.out / f"reconstructions-{attack}.safetensors")["images"]


MODEL = ("--model", "@model.yaml", "--global", "@global.safetensors")
DIFFERENCE = (*MODEL, "--update", "@difference.safetensors", "--samples", "1")
LOCAL = ("--learning-rate", "0.1", "--steps", "1", "--batch-size", "1", "--optimiser", "sgd", "--loss", "ce")
QUICK = ("--attack", "inverting-gradients", "--iterations", "2")
