"""Models of one's own: a factory, an exported program and TorchScript are differentiated as their source is."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.config import config_from, load_config
from shadow_defense.errors import ModelError
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import loss_gradients, split_state
from shadow_defense.models.naming import NAMED, name_model
from shadow_defense.models.opaque import load_opaque

SIDE, CLASSES = 8, 3

SOURCE = """
from torch import nn

def net(classes, width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, classes))

def failing():
    raise RuntimeError("no weights")

def number():
    return 1

made = net(3)
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, CLASSES)
    )


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    model = network()
    torch.jit.save(torch.jit.script(model), folder / "net.pt")
    many = torch.export.Dim("many", min=1, max=64)
    images = torch.zeros(2, 1, SIDE, SIDE)
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=({0: many},)), folder / "net.pt2")
    torch.save(model.state_dict(), folder / "state.pt")
    return folder


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, which is not where modules are looked for."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])
    monkeypatch.delenv(NAMED, raising=False)
    return name


def _gradients(model: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """The gradient by the parameters, the derivative of its square by the images, and the buffers afterwards."""
    parameters, buffers = split_state(model, model)
    images = images.clone().requires_grad_()
    labels = torch.tensor([1, 2])
    found = loss_gradients(model, parameters, buffers, images, labels, F.cross_entropy, create_graph=True)
    (slope,) = torch.autograd.grad(sum(each.square().sum() for each in found.values()), images)
    return found, slope, buffers


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_a_program_is_differentiated_twice_as_its_source(programs: Path, name: str) -> None:
    """Of other tensors than those in its file, on a copy of it."""
    model, program = network().train(), copy.deepcopy(load_opaque(programs / name)).train()
    state = {key: tensor * 1.5 for key, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    program.load_state_dict(state)
    images = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected, found = _gradients(model, images), _gradients(program, images)
    assert list(found[0]) == list(expected[0])
    for key, gradient in expected[0].items():
        torch.testing.assert_close(found[0][key], gradient)
    torch.testing.assert_close(found[1], expected[1])
    # The buffers that were given were written to, and the program's own were not.
    torch.testing.assert_close(found[2]["1.running_mean"], expected[2]["1.running_mean"])
    torch.testing.assert_close(program.state_dict()["1.running_mean"], state["1.running_mean"])


def test_torchscript_has_both_modes(programs: Path) -> None:
    model, program, images = network().eval(), load_opaque(programs / "net.pt").eval(), torch.rand(2, 1, SIDE, SIDE)
    model.load_state_dict(program.state_dict())
    torch.testing.assert_close(program(images), model(images))
    assert not torch.allclose(program.train()(images), model(images))


def test_a_state_dict_and_a_missing_file_are_no_program(programs: Path) -> None:
    with pytest.raises(ModelError, match=r"state.pt is not a TorchScript file.*state dict goes in as --global"):
        load_opaque(programs / "state.pt")
    with pytest.raises(ModelError, match="there is no model at"):
        load_opaque(programs / "none.pt2")


class _Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def test_what_is_pickled_beside_a_program_is_not_unpickled(programs: Path, tmp_path: Path) -> None:
    """Its constants may say that they are pickles: torch.export.load would run them."""
    import json
    import zipfile

    planted = tmp_path / "planted.pt2"
    with zipfile.ZipFile(programs / "net.pt2") as source, zipfile.ZipFile(planted, "w") as target:
        for entry in source.namelist():
            content = source.read(entry)
            if entry.endswith("_weights_config.json"):
                config = json.loads(content)
                for each in config["config"].values():
                    each["use_pickle"] = True
                content = json.dumps(config).encode()
            elif "/weights/" in entry and not entry.endswith(".json"):
                content = pickle.dumps(_Planted())
            target.writestr(entry, content)
    with pytest.raises(ModelError, match="is not an exported program"):
        load_opaque(planted)


def test_a_factory_in_the_working_directory_is_called_with_what_it_names(module: str) -> None:
    config = load_config(f"{module}:net", ["model.options.width=8"])
    model = build_model(config.model, channels=1, classes=5, image_size=(SIDE, SIDE), seed=3)
    assert [tuple(each.shape) for each in model.parameters()][-2:] == [(5, 512), (5,)]
    again = build_model(config.model, channels=1, classes=5, image_size=(SIDE, SIDE), seed=3)
    torch.testing.assert_close(model.state_dict(), again.state_dict(), rtol=0, atol=0)


def test_a_model_that_a_file_alone_names_is_not_run(module: str, tmp_path: Path) -> None:
    values = {"model": {"name": f"{module}:net"}}
    (tmp_path / "given.yaml").write_text(f"model: {{name: 'os:system', options: {{command: touch {tmp_path}/run}}}}")
    with pytest.raises(ModelError, match=f"name it in the command too, as --model os:system, or .*{NAMED}=os:system"):
        load_config(str(tmp_path / "given.yaml"))
    assert not (tmp_path / "run").exists()
    name_model(f"{module}:net")
    assert config_from(values).model.name == f"{module}:net"


def test_a_name_in_the_environment_is_enough_and_without_it_that_is_what_is_asked_for(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model": {"name": f"{module}:net"}}
    with pytest.raises(ModelError, match=f"name it in the command too, as --model {module}:net"):
        config_from(values)
    monkeypatch.setenv(NAMED, f"{module}:net")
    assert build_model(config_from(values).model, channels=1, classes=3, image_size=(SIDE, SIDE), seed=0).training


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("failing", r"failing\(\) fails \(RuntimeError: no weights\)"),
        ("number", "the model is a int: expected a torch.nn.Module"),
        ("made", r"gives shape \(2, 3\) for two of them: expected logits of shape \(2, 5\)"),
        ("absent", "cannot be loaded: AttributeError"),
    ],
)
def test_what_is_no_model_is_said_in_one_line(module: str, name: str, line: str) -> None:
    with pytest.raises(ModelError, match=line):
        settings = load_config(f"{module}:{name}").model
        build_model(settings, channels=1, classes=5, image_size=(SIDE, SIDE), seed=0)
