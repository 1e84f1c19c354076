"""Pre-training apart from a run: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shadow_defense.errors import ConfigError, GeneratorError
from shadow_defense.experiment import pretraining
from shadow_defense.experiment.pretraining import PretrainSettings, pretrain_alone, pretrain_settings
from shadow_defense.generators.build import load_generator

SMALL = ("image_size=16", "limit=8", "generator.batch_size=4", "generator.z_dim=8", "generator.save_every=1")


def settings(*overrides: str, generator: str = "dcgan") -> PretrainSettings:
    return pretrain_settings("faces", generator, (*SMALL, *overrides))


def test_more_steps_go_on_and_end_as_if_never_stopped(tmp_path: Path) -> None:
    pretrain_alone(settings("generator.steps=1"), tmp_path / "parts")
    parts = load_generator(pretrain_alone(settings("generator.steps=2"), tmp_path / "parts"))
    whole = load_generator(pretrain_alone(settings("generator.steps=2"), tmp_path / "whole"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor), name
    assert {file.name for file in (tmp_path / "whole").iterdir()} == {
        "pretrain.yaml",
        "checkpoint.safetensors",
        "generator.safetensors",
        "grid-000001.png",
        "grid-000002.png",
    }


def test_other_settings_and_strange_folders_are_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pretrain_alone(settings("generator.steps=0"), tmp_path / "made")
    before = made.read_bytes()
    with pytest.raises(GeneratorError, match="holds a training with other settings"):
        pretrain_alone(settings("generator.steps=0", "seed=1"), tmp_path / "made")
    assert made.read_bytes() == before
    # Settings that never got as far as a checkpoint hold nobody to them.
    with monkeypatch.context() as patched, pytest.raises(GeneratorError, match="multiple of 4"):
        patched.setattr(pretraining, "pretrain", refuses)
        pretrain_alone(settings("generator.steps=1", "generator.batch_size=5"), tmp_path / "mended")
    pretrain_alone(settings("generator.steps=0"), tmp_path / "mended")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(GeneratorError, match="is no pre-training"):
        pretrain_alone(settings(), tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def refuses(*_: object, **__: object) -> None:
    raise GeneratorError("batches of 5: expected a multiple of 4")


@pytest.mark.parametrize(
    ("generator", "overrides", "error", "message"),
    [
        ("stylegan3", (), GeneratorError, "valid are: dcgan, stylegan3-r"),
        ("dcgan", ("generator.stepps=3",), ConfigError, "did you mean 'generator.steps'|did you mean 'steps'"),
        ("dcgan", ("generator.path=x.safetensors",), ConfigError, "give generator.begin_from"),
        ("dcgan", ("image_size=16", "generator.image_size=32"), ConfigError, "less than the generator's 32 px"),
    ],
)
def test_mistakes_are_said_before_anything_is_read(
    generator: str, overrides: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pretrain_settings("nowhere", generator, overrides)
