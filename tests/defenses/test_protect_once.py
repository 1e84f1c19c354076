"""Training on x': the same in every round, arm and restart, and nothing else of an image in what leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.protection.gaussian_images import SIDE, gaussian_images
from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, FederatedDataset, ImageSet, Normalisation
from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources, Site
from shadow_defense.defenses.protect_once import ProtectOnce
from shadow_defense.errors import DataError, DefenseError
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.files import flatten_tensors, nest_tensors
from shadow_defense.protection import before_model
from shadow_defense.protection.frozen import FrozenProtection
from shadow_defense.seeds import SECRET

NORMALISATION = Normalisation((0.5,), (0.25,))
OPTIONS: dict[str, dict[str, Any]] = {
    "white": {"texture": "white", "strength": 0.3},
    "covariance": {"texture": "covariance"},
    "task": {"texture": "task", "directions": 3},
    "features": {"texture": "features", "directions": 3},
    "decoy": {"texture": "decoy", "floor": 0.1},
}


def image_set(count: int, seed: int, name: str) -> ImageSet:
    labels = torch.arange(count) % 2
    pixels = gaussian_images(count, seed)
    pixels[labels == 1, :, 2:6, 2:6] += 0.15
    ids = tuple(f"{name}/{place}" for place in range(count))
    return ImageSet((pixels.clamp(0, 1) * 255).round().byte(), labels, ids)


PUBLIC, OWN, OTHERS = image_set(60, 0, "public"), image_set(6, 1, "own"), image_set(6, 2, "own")


def chosen(texture: str) -> DefenseSettings:
    return DefenseSettings(defense="protect-once", options=OPTIONS[texture])


def defense(texture: str, site: Site | None = None, seed: int = 0, public: ImageSet = PUBLIC) -> Any:
    return chosen(texture).build(Resources(None, NORMALISATION, public, 2, "site-1", seed, site))


def prepared(made: Any, images: ImageSet = OWN) -> Any:
    made.prepare(NORMALISATION.apply(images.unit_images()), images.sample_ids)
    return made


def model(texture: str, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    plain = nn.Sequential(nn.Conv2d(1, 4, 3, 2), norm, nn.GELU(), nn.Dropout(0.2), nn.Flatten(), nn.LazyLinear(2))
    plain.eval()(torch.zeros(1, 1, SIDE, SIDE))
    return chosen(texture).whole_model(plain, 0, PUBLIC, NORMALISATION)


def trained_on(made: ProtectOnce, texture: str, round: int, places: list[int]) -> Tensor:
    clean = OWN.subset(places)
    batch = Batch(NORMALISATION.apply(clean.unit_images()), clean.labels, clean.sample_ids)
    context = RoundContext(model(texture), {}, F.cross_entropy, round, 9, 0.1)
    made.begin_round(context)
    return made.protect_batch(batch, context).images


@pytest.mark.parametrize("texture", OPTIONS)
def test_the_same_in_every_round_and_after_a_restart(texture: str) -> None:
    made, again = prepared(defense(texture)), defense(texture)
    first = trained_on(made, texture, 0, [0, 1, 2])
    assert torch.equal(trained_on(made, texture, 7, [2, 1]), first[[2, 1]])
    again.load_state_dict(nest_tensors(flatten_tensors(made.state_dict())))
    assert torch.equal(trained_on(again, texture, 3, [0, 1, 2]), first)
    # Another run of the same seed draws the same, another seed does not, nor another setting.
    assert torch.equal(trained_on(prepared(defense(texture)), texture, 0, [0, 1, 2]), first)
    assert not torch.equal(trained_on(prepared(defense(texture, seed=1)), texture, 0, [0, 1, 2]), first)
    clean = NORMALISATION.apply(OWN.subset([0, 1, 2]).unit_images())
    assert (first - clean).square().mean() > 0.01


def test_at_a_site_all_runs_draw_the_same(tmp_path: Path) -> None:
    """Of another run's seed, and though the texture would be measured otherwise by then."""
    site = Site(tmp_path, SECRET + 5)
    first = trained_on(prepared(defense("task", site, seed=1)), "task", 0, [0])
    made = defense("task", site, seed=2)
    [kept] = (tmp_path / "protections").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shadow_defense.defenses.protect_once.measure_constants", None)
        assert torch.equal(trained_on(prepared(made), "task", 0, [0]), first)


def test_an_image_that_was_not_there_is_refused() -> None:
    made = prepared(defense("white"), OWN.subset([0, 1]))
    with pytest.raises(DefenseError, match="image 'own/2' was not protected"):
        trained_on(made, "white", 0, [0, 2])


def test_few_public_images_are_refused() -> None:
    with pytest.raises(DataError, match="expected at least 50"):
        prepared(defense("white", public=PUBLIC.subset(range(10))))


@pytest.mark.parametrize("texture", ["task", "features"])
def test_a_model_without_the_map_is_refused(texture: str) -> None:
    made = defense(texture)
    with pytest.raises(DefenseError, match=f"{texture} is trained on mapped images, .* has no map before it"):
        made.check_model(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)))
    made.check_model(model(texture))
    defense("white").check_model(nn.Linear(1, 1))


@pytest.mark.parametrize("texture", ["task", "features"])
def test_the_map_before_the_model_leaves_what_is_trained_on_as_it_is(texture: str) -> None:
    whole = model(texture)
    before = next(each for each in whole.modules() if isinstance(each, before_model.BeforeModel))
    protected = trained_on(prepared(defense(texture)), texture, 0, [0, 1, 2, 3])
    # Up to the rounding to 8 bits, a 250th of the range.
    assert torch.allclose(before(protected), protected, atol=2 / 255 / 0.25)
    assert torch.allclose(before.train()(protected), protected, atol=2 / 255 / 0.25)
    before.eval()
    clean = NORMALISATION.apply(OWN.unit_images())
    assert (before(clean) - clean).abs().max() > 0.1
    assert torch.allclose(before(before(clean)), before(clean), atol=1e-4)
    names = {"task": {"mean", "reads", "writes"}, "features": {"mean", "plane", "writes", "reader.centre"}}[texture]
    assert {name for name, _ in whole.named_buffers()} >= {f"before.map.{name}" for name in names}
    assert not list(before.parameters())


class Spied:
    """A federation of one client, and everything of it that leaves: bytes of the update, its counts, its name."""

    def __init__(self, texture: str, own: ImageSet, folder: Path, batch_norm: bool = False) -> None:
        site = ClientData("site-1", own, PUBLIC, PUBLIC, 2)
        data = FederatedDataset("tiny", (site,), PUBLIC, PUBLIC, ("a", "b"), NORMALISATION)
        self.federation = Federation(
            model(texture, batch_norm),
            data,
            {"site-1": defense(texture)},
            TrainingSettings(rounds=3, learning_rate=0.1, local_epochs=2),
            F.cross_entropy,
            lambda trained: {},
            seed=0,
            folder=folder,
            keep=dict.fromkeys(range(3), ("site-1",)),
        )

    def left(self) -> dict[str, bytes]:
        self.federation.run()
        return {
            path.relative_to(self.federation.folder).as_posix(): path.read_bytes()
            for path in sorted(self.federation.folder.glob("round-*/*"))
            # Pictures of the protection are kept for the run's report and leave no client.
            if not path.name.startswith("explanation")
        }


@pytest.fixture
def same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets of clean images with the same x': what is drawn takes no notice of them."""
    monkeypatch.setattr(
        FrozenProtection, "trained_on", lambda self, images: gaussian_images(len(images), 99).to(torch.float32)
    )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("texture", ["white", "task", "features"])
def test_nothing_that_leaves_tells_two_sets_with_the_same_protected_images_apart(
    texture: str, batch_norm: bool, tmp_path: Path, same_pictures: None
) -> None:
    assert not torch.equal(OWN.images, OTHERS.images)
    left = [Spied(texture, own, tmp_path / str(place), batch_norm).left() for place, own in enumerate((OWN, OTHERS))]
    assert len(left[0]) == 6
    assert left[0] == left[1]


def test_the_spy_sees_what_a_leak_would_be(tmp_path: Path, same_pictures: None, monkeypatch: Any) -> None:
    """A planted one: the batch that is trained on has a millionth of the clean images in it."""
    protect: Callable[..., Batch] = ProtectOnce.protect_batch

    def leaking(self: ProtectOnce, batch: Batch, context: RoundContext) -> Batch:
        made = protect(self, batch, context)
        return Batch(made.images + 1e-6 * batch.images, made.labels, made.sample_ids)

    monkeypatch.setattr(ProtectOnce, "protect_batch", leaking)
    left = [Spied("white", own, tmp_path / str(place)).left() for place, own in enumerate((OWN, OTHERS))]
    assert left[0] != left[1]


def test_stopped_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    straight, stopped, resumed = (Spied("white", OWN, tmp_path / name) for name in ("straight", "other", "other"))
    wanted = straight.left()
    whole = stopped.federation.run_round

    def killed(round: int) -> dict[str, Any]:
        if round == 2:
            raise KeyboardInterrupt
        return whole(round)

    stopped.federation.run_round = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.left()
    assert resumed.left() == wanted
