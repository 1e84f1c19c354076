"""The audit of any module from Python: the command's numbers, in the shapes that programs hold."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import shadow_defense
from shadow_defense.errors import ConfigError, DataError, ModelError, RunError, ShadowDefenseError, UpdateError
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from tests.attacks.clients import lenet, normalisation, private, public
from tests.elsewhere import DEVICES
from tests.experiment.audit_command import DIFFERENCE, LOCAL, Audit, update_of

TOLD: dict[str, Any] = {
    "steps": 1,
    "batch_size": 1,
    "learning_rate": 0.1,
    "optimiser": "sgd",
    "loss": "ce",
    "attacks": ("r-gap",),
}


@pytest.fixture(scope="module")
def client() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state, update = update_of(private(), [1])
    return state, dict(update.tensors)


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data frames as what they are made of."""
    pandas: Any = ModuleType("pandas")
    pandas.DataFrame = dict
    monkeypatch.setitem(sys.modules, "pandas", pandas)


@pytest.mark.usefixtures("frames")
def test_five_arguments_are_an_audit(client: tuple[Any, Any], tmp_path: Path) -> None:
    model, (before, update) = lenet(), client
    own = copy.deepcopy(model.state_dict())
    found = shadow_defense.audit(model, before, update, images=private(), public=public(), **TOLD)
    assert (found.pictures.reconstructions["r-gap"] - private()).abs().max() < 1e-2
    assert found.status == "red"
    assert repr(found).startswith("Audit(red: This update gives image 1 away: r-gap")
    frame = found.to_frame()
    assert frame["attack"] == ["r-gap"] and frame["psnr"][0] > 40 and frame["verdict"] == ["rebuilt"]
    assert found.save_page(tmp_path / "page.html").read_text().count("data:image/png;base64,") == 3
    found.save(tmp_path / "out")
    opened = shadow_defense.open_results(tmp_path / "out")
    assert opened.record.title == "Audit of the update" and opened.to_frame() == frame and opened.page.exists()
    # The user's model was not touched.
    torch.testing.assert_close(dict(model.state_dict()), dict(own), rtol=0, atol=0)


def test_it_gives_the_commands_numbers(audit: Audit, client: tuple[Any, Any]) -> None:
    audit(*DIFFERENCE, *LOCAL, "--truth", "@truth", "--template", "@public", "--attack", "r-gap")
    norm, (before, update) = normalisation(), client
    found = shadow_defense.audit(
        lenet(), before, update, images=private(), public=public(), mean=norm.mean, std=norm.std, **TOLD
    )
    torch.testing.assert_close(found.pictures.reconstructions["r-gap"], audit.images("r-gap"), rtol=0, atol=1e-4)
    expected = shadow_defense.open_results(audit.out)
    assert found.record.verdict == expected.record.verdict  # type: ignore[attr-defined]


def test_states_may_be_modules_and_the_state_after_stands_for_the_update(client: tuple[Any, Any]) -> None:
    before, update = client
    model, after = lenet(), lenet()
    model.load_state_dict(before)
    after.load_state_dict({name: tensor + update[name] for name, tensor in before.items()})
    found = shadow_defense.audit(lenet(), model, after=after, images=private(), public=public(), **TOLD)
    assert (found.pictures.reconstructions["r-gap"] - private()).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("changes", "error", "line"),
    [
        ({"images": None}, ConfigError, r"shape .* is not known from nothing: give images"),
        ({"public": None}, ConfigError, r"give mean=\[0.5\], std=\[0.25\], or public images"),
        (
            {"images": torch.zeros(1, 8, 8), "public": None, "mean": (0.5,), "std": (1.0,)},
            ModelError,
            r"fails on images of shape \(1, 8, 8\)",
        ),
        ({"update": None}, UpdateError, "expected one of update= "),
        ({"learning_rate": None}, ConfigError, "give learning_rate= too"),
        ({"labels": [5]}, ConfigError, "labels= 5: expected 0 to 1"),
        ({"images": [1]}, DataError, "expected a NumPy array or a tensor"),
        ({"public_labels": [0]}, ConfigError, r"public_labels has shape \(1,\) for"),
    ],
)
def test_mistakes_are_told_in_pythons_words(
    client: tuple[Any, Any], changes: dict[str, Any], error: type[ShadowDefenseError], line: str
) -> None:
    before, update = client
    given = {"update": update, "images": private(), "public": public(), **TOLD, **changes}
    if "images" in changes and changes["images"] is None:
        given["public"] = None
    with pytest.raises(error, match=line) as caught:
        shadow_defense.audit(lenet(), before, **given)
    assert "--" not in str(caught.value)


@pytest.mark.usefixtures("frames")
def test_a_folder_without_results_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds none of results.json, comparison.json"):
        shadow_defense.open_results(tmp_path)


class Flipped:
    """Augmentation of one's own, in the order of the batch: a worker's."""

    def __call__(self, batch: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        images, labels, ids = (torch.stack(each) for each in zip(*batch, strict=True))
        return images.flip(3), labels, ids


@pytest.mark.slow
def test_a_resnet_with_adam_mixed_precision_workers_and_augmentation_is_guarded_and_audited() -> None:
    """As Opacus trains one: group norm in place of batch norm."""
    model = build_model(ModelSettings(name="resnet18"), channels=1, classes=2, image_size=(16, 16), seed=0)
    before = copy.deepcopy(model.state_dict())
    norm = normalisation()
    images, labels = norm.apply(private()), torch.tensor([1])
    generator = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))
    guard = shadow_defense.ShadowGuard(
        generator,
        shadow_defense.ShadowSettings(latent_iterations=2, attack_iterations=1, strength=1.0),
        mean=list(norm.mean),
        std=list(norm.std),
        z_dim=8,
    )
    loss_fn, optimiser = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(images, labels, torch.tensor([0])), num_workers=1, collate_fn=Flipped())
    for batch, target, ids in loader:
        names, where = [f"face-{i}" for i in ids.tolist()], {"round": 0, "rounds": 1}
        protected = guard.protect(batch, target, names, model=model, global_model=before, loss_fn=loss_fn, **where)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_fn(model(protected), target)
        loss.backward()
        optimiser.step()
    assert 0.01 < (protected - images.flip(3)).square().mean().sqrt() < 10
    update = {name: tensor - before[name] for name, tensor in model.state_dict().items()}
    found = shadow_defense.audit(
        model,
        before,
        update,
        images=private(),
        labels=labels,
        public=public(),
        **{**TOLD, "optimiser": "adam", "learning_rate": 1e-3, "attacks": ("inverting-gradients",), "iterations": 2},
    )
    # Adam's first step is -learning rate x sign(gradient), whatever the precision.
    assert found.record.facts.like_signs
    assert found.record.attacks["inverting-gradients"].verdict == "not rebuilt"


@pytest.fixture
def torchvision() -> Iterator[Any]:
    try:
        yield importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported here: {error}")


@pytest.mark.slow
def test_torchvisions_resnet_is_audited_from_its_state_dict(torchvision: Any, tmp_path: Path) -> None:
    model = torchvision.resnet18(num_classes=2)
    torch.save(model.state_dict(), tmp_path / "before.pt")
    moved = {
        name: tensor + 1e-3 * torch.sign(tensor) if tensor.is_floating_point() else tensor + 1
        for name, tensor in model.state_dict().items()
    }
    found = shadow_defense.audit(
        model,
        tmp_path / "before.pt",
        after=moved,
        image_shape=(3, 64, 64),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        samples=1,
        labels=[1],
        iterations=1,
    )
    assert found.record.attacks["inverting-gradients"].labels == (1,)


@DEVICES
def test_an_audit_computes_where_the_model_lies(
    client: tuple[Any, Any], device: Callable[[], Any], tolerance: float
) -> None:
    before, update = client
    told = {**TOLD, "attacks": ("r-gap", "inverting-gradients"), "iterations": 2, "labels": [1]}
    with device() as place:
        found = shadow_defense.audit(lenet().to(place), before, update, images=private(), public=public(), **told)
    expected = shadow_defense.audit(lenet(), before, update, images=private(), public=public(), **told)
    for name, images in expected.pictures.reconstructions.items():
        ours = found.pictures.reconstructions[name]
        assert type(ours) is Tensor and ours.device.type == "cpu"
        # An attack that steps by signs goes a step the other way where a gradient is zero but for its last bits.
        apart = tolerance if name == "r-gap" else max(tolerance, 0.05)
        torch.testing.assert_close(ours, images, atol=apart, rtol=tolerance)
        assert ((ours - images).abs() <= tolerance + tolerance * images.abs()).float().mean() > 0.99
        assert found.record.attacks[name].distance == pytest.approx(expected.record.attacks[name].distance, abs=1e-4)
    assert found.record.facts == expected.record.facts


def test_a_network_that_asks_how_its_feature_maps_lie_is_audited() -> None:
    """``x.view(-1, n)``, as in torch's own tutorial, refuses maps whose channels lie last."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 16 * 16, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(images).view(-1, 4 * 16 * 16))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = Viewing(), torch.rand(1, 1, 16, 16)
    loss = nn.functional.cross_entropy(model(images), torch.tensor([1]))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    update = {name: -0.1 * gradient for name, gradient in zip(names, gradients, strict=True)}
    found = shadow_defense.audit(
        model,
        model.state_dict(),
        update,
        images=images,
        labels=[1],
        mean=[0.5],
        std=[0.25],
        learning_rate=0.1,
        optimiser="sgd",
        loss="ce",
        steps=1,
        iterations=2,
    )
    assert "PSNR" in str(found)
