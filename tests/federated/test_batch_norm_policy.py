"""What of batch norm stays with the clients: absent from updates, kept over rounds and kills, estimated anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.federated.stopping import killed_before
from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, FederatedDataset, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense, RoundContext
from shadow_defense.defenses.clipping import ClippingDefense, ClippingSettings, global_norm
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import DataError, RunError, UpdateError
from shadow_defense.federated.batch_norm_policy import (
    ESTIMATED_AT_ONCE,
    evaluable_state,
    lacks_statistics,
    public_statistics,
    withheld_names,
)
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.training_folder import round_folder, state_folder
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

NORMALISATION = Normalisation((0.5,), (0.25,))
SIZES = {"site-1": 4, "site-2": 6}
PARTLY: tuple[SharedBatchNorm, ...] = ("parameters", "stats", "none")
AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
KEPT = {"parameters": STATISTICS, "stats": AFFINE, "none": AFFINE + STATISTICS}


def images(count: int, prefix: str, seed: int, brightest: int = 256) -> ImageSet:
    draws = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, brightest, (count, 1, 16, 16), generator=draws, dtype=torch.uint8)
    return ImageSet(drawn, torch.arange(count) % 2, tuple(f"{prefix}/{index}" for index in range(count)))


def client(name: str, count: int, seed: int, brightest: int = 256) -> ClientData:
    train = images(count, name, seed, brightest)
    return ClientData(name, train, images(1, f"{name}/v", seed), images(1, f"{name}/t", seed), 2)


def dataset(public: int = 5) -> FederatedDataset:
    # The second site's images are darker: its statistics are other ones.
    sites = tuple(client(name, count, seed, 256 - 150 * seed) for seed, (name, count) in enumerate(SIZES.items()))
    everyone = images(max(public, 1), "public", 9).subset(range(public))
    return FederatedDataset("tiny", sites, everyone, images(2, "test", 8), ("a", "b"), NORMALISATION)


def build(name: str = "convnet", normalisation: str = "batch") -> nn.Module:
    chosen = ModelSettings(name=name, normalisation=normalisation, width=8)
    return build_model(chosen, channels=1, classes=2, image_size=(16, 16), seed=0)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def federation(folder: Path, share_bn: SharedBatchNorm, **changes: Any) -> Federation:
    settings = TrainingSettings(**{"rounds": 3, "learning_rate": 0.1, **changes.pop("training", {})})
    given: dict[str, Any] = {
        "model": build(),
        "dataset": dataset(),
        "defenses": {name: Defense() for name in SIZES},
        "settings": settings,
        "loss_fn": F.cross_entropy,
        "evaluate": lambda model: {"statistics": float(model.get_submodule("features.norm0").running_mean.sum())},
        "seed": 0,
        "folder": folder,
        "keep": {0: tuple(SIZES), 2: tuple(SIZES)},
        "share_bn": share_bn,
    }
    return Federation(**{**given, **changes})


@pytest.mark.parametrize(("name", "layers"), [("convnet", 5), ("resnet18", 20)])
@pytest.mark.parametrize("policy", PARTLY)
def test_names_of_every_policy(name: str, layers: int, policy: SharedBatchNorm) -> None:
    model = build(name)
    withheld = withheld_names(model, policy)
    # The layers by their own words: what has a running mean is batch norm.
    places = {key.removesuffix(".running_mean") for key in model.state_dict() if key.endswith(".running_mean")}
    assert len(places) == layers
    assert withheld == {f"{place}.{kind}" for place in places for kind in KEPT[policy]}
    assert withheld < model.state_dict().keys()


def test_nothing_is_withheld_where_all_is_shared_or_there_is_no_batch_norm() -> None:
    assert withheld_names(build(), "all") == frozenset()
    for policy in PARTLY:
        assert withheld_names(build(normalisation="group"), policy) == frozenset()


def test_layers_without_some_of_the_tensors() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm1d(3, affine=False), nn.InstanceNorm2d(3, affine=True)
    )
    assert withheld_names(model, "parameters") == {f"1.{kind}" for kind in STATISTICS}
    assert withheld_names(model, "stats") == {"0.weight", "0.bias"}
    assert withheld_names(nn.BatchNorm1d(2), "stats") == {"weight", "bias"}
    shared = nn.BatchNorm1d(2)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    assert withheld_names(twice, "none") == set(twice.state_dict())


@pytest.mark.parametrize("policy", PARTLY)
def test_what_stays_is_absent_and_the_server_keeps_its_own(policy: SharedBatchNorm, tmp_path: Path) -> None:
    made = federation(tmp_path, policy)
    before, withheld = dict(made.global_state), withheld_names(made.model, policy)
    made.run()
    for name in withheld:
        assert torch.equal(made.global_state[name], before[name]), name
    for name in before.keys() - withheld:
        assert not torch.equal(made.global_state[name], before[name]), name
    for site in SIZES:
        update = ModelUpdate.load(round_folder(tmp_path, 2) / f"update-{site}.safetensors")
        assert update.tensors.keys() == before.keys() - withheld
        assert update.withheld == tuple(sorted(withheld))
        assert made.own_state[site].keys() == withheld
        for name, tensor in made.own_state[site].items():
            assert not torch.equal(tensor, before[name]), name
    moved = [name for name in withheld if not name.endswith("num_batches_tracked")]
    assert not any(torch.equal(made.own_state["site-1"][name], made.own_state["site-2"][name]) for name in moved)


def test_a_client_goes_on_with_its_own_values(tmp_path: Path) -> None:
    """A round by hand: the global model with the client's own batch norm is trained; the rest's difference is sent."""
    made = federation(tmp_path, "none", keep={1: tuple(SIZES)})
    made.run_round(0)
    before, own, site = dict(made.global_state), made.own_state["site-2"], made.dataset.clients[1]
    made.run_round(1)
    twin = build()
    start = {**before, **own}
    result = train_locally(
        twin,
        start,
        site,
        Defense(),
        settings=made.settings,
        round=1,
        normalisation=NORMALISATION,
        loss_fn=F.cross_entropy,
        seed=0,
    )
    after = {name: tensor + result.update.tensors[name] for name, tensor in start.items()}
    for name, tensor in made.own_state["site-2"].items():
        torch.testing.assert_close(tensor, after[name])
        assert not torch.equal(tensor, own[name])
    sent = ModelUpdate.load(round_folder(tmp_path, 1) / "update-site-2.safetensors").tensors
    assert_same(sent, {name: result.update.tensors[name] for name in sent})


@pytest.mark.parametrize("stop_before", [1, 2])
@pytest.mark.parametrize("policy", PARTLY)
def test_stopped_and_resumed_equals_unbroken(policy: SharedBatchNorm, stop_before: int, tmp_path: Path) -> None:
    straight, stopped, resumed = (federation(tmp_path / name, policy) for name in ("straight", "stopped", "stopped"))
    straight.run()
    with pytest.raises(KeyboardInterrupt):
        killed_before(stopped, stop_before).run()
    resumed.run()
    assert_same(straight.global_state, resumed.global_state)
    for site, own in straight.own_state.items():
        assert_same(own, resumed.own_state[site])
    assert [entry["statistics"] for entry in straight.history] == [entry["statistics"] for entry in resumed.history]
    for site in SIZES:
        ours, theirs = (
            ModelUpdate.load(round_folder(tmp_path / name, 2) / f"update-{site}.safetensors")
            for name in ("straight", "stopped")
        )
        assert_same(ours.tensors, theirs.tensors)


def test_a_state_of_another_policy_is_named(tmp_path: Path) -> None:
    federation(tmp_path, "none").run()
    with pytest.raises(RunError, match=r"own-site-1\.safetensors is of another model or another share_bn") as raised:
        federation(tmp_path, "stats").run()
    assert "\n" not in str(raised.value)
    path = state_folder(tmp_path, 3) / "own-site-2.safetensors"
    tensors, _ = read_tensors(path)
    path.unlink()
    with pytest.raises(RunError, match=r"own-site-2\.safetensors"):
        federation(tmp_path, "none").run()
    write_tensors(path, tensors)
    federation(tmp_path, "none").run()


def test_only_what_the_policy_withholds_may_be_missing() -> None:
    state = state_of(build())
    absent = withheld_names(build(), "parameters")
    sent = {name: tensor for name, tensor in state.items() if name not in absent}
    ModelUpdate(sent, 1, 1, 0, "site-1").check_against(state, absent=absent)
    refused = (
        ({name: tensor for name, tensor in sent.items() if name != "features.norm0.weight"}, "lacks tensor"),
        (sent | {"features.norm0.running_mean": torch.zeros(8)}, "'features.norm0.running_mean', which stays"),
    )
    for tensors, message in refused:
        with pytest.raises(UpdateError, match=message) as raised:
            ModelUpdate(tensors, 1, 1, 0, "site-1").check_against(state, absent=absent)
        assert "\n" not in str(raised.value)
    with pytest.raises(UpdateError, match=r"lacks tensor 'features\.norm0\.running_mean'"):
        ModelUpdate(sent, 1, 1, 0, "site-1").check_against(state)


def test_a_reader_of_the_file_knows_what_was_withheld(tmp_path: Path) -> None:
    path = tmp_path / "update.safetensors"
    ModelUpdate({"w": torch.zeros(1)}, 1, 1, 0, "c", ("bn.bias", "bn.weight")).save(path)
    assert ModelUpdate.load(path).withheld == ("bn.bias", "bn.weight")
    # As updates were written before there was a choice.
    write_tensors(path, {"w": torch.zeros(1)}, {"kind": "update", "samples": 1, "steps": 1, "round": 0, "client": "c"})
    assert ModelUpdate.load(path).withheld == ()


class Restoring(Defense):
    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        return {**tensors, "features.norm0.running_mean": torch.zeros(8)}


def round_of(defense: Defense, kept: Mapping[str, Tensor] | None = None) -> Any:
    model = build()
    return train_locally(
        model,
        state_of(model),
        client("site-1", 4, 0),
        defense,
        settings=TrainingSettings(learning_rate=0.1),
        round=0,
        normalisation=NORMALISATION,
        loss_fn=F.cross_entropy,
        seed=0,
        kept=kept,
    )


def own(policy: SharedBatchNorm) -> dict[str, Tensor]:
    state = state_of(build())
    return {name: state[name] for name in withheld_names(build(), policy)}


def test_no_defense_can_send_what_stays() -> None:
    with pytest.raises(UpdateError, match="which stays with the client"):
        round_of(Restoring(), own("none"))


def test_norms_are_of_what_is_sent() -> None:
    """Clipping of the update: the norm that is measured, and kept to, is without the withheld tensors."""
    kept = own("none")
    plain = round_of(Defense(), kept).update.tensors
    trained = {name: plain[name] for name, _ in build().named_parameters() if name not in kept}
    everything = round_of(Defense()).update.tensors
    longer = global_norm({name: everything[name] for name, _ in build().named_parameters()})
    defense = ClippingDefense(ClippingSettings(clip=1e-3, place="update"))
    result = round_of(defense, kept)
    assert result.measurements["norm"] == pytest.approx(global_norm(trained)) != pytest.approx(longer)
    assert global_norm({name: result.update.tensors[name] for name in trained}) == pytest.approx(1e-3, rel=1e-3)
    # Batch norm trained as it would have without clipping.
    assert_same(result.kept, round_of(Defense(), kept).kept)


class Stem(nn.Module):
    """Batch norm right on the image, then on twice the image plus one, behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout, self.second = nn.BatchNorm2d(1, affine=False), nn.Dropout(0.9), nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        self.first(images)
        return self.second(self.dropout(2 * images + 1)).flatten(1)


def test_statistics_of_one_batch_by_hand() -> None:
    public = images(6, "public", 3)
    model, normalised = Stem(), (public.images.double() / 255 - 0.5) / 0.25
    found = public_statistics(model, model.state_dict(), public.images, NORMALISATION)
    assert found.keys() == {f"{layer}.{kind}" for layer in ("first", "second") for kind in STATISTICS[:2]}
    mean, variance = normalised.mean().item(), normalised.var().item()
    assert found["first.running_mean"].item() == pytest.approx(mean, abs=1e-5)
    assert found["first.running_var"].item() == pytest.approx(variance, rel=1e-5)
    assert found["second.running_mean"].item() == pytest.approx(2 * mean + 1, abs=1e-5)
    assert found["second.running_var"].item() == pytest.approx(4 * variance, rel=1e-5)


def test_statistics_of_many_images_weigh_each_alike() -> None:
    """129 images in three batches of 43: the mean over batches is the mean over all, and nothing else is touched."""
    public = images(2 * ESTIMATED_AT_ONCE + 1, "public", 3)
    model = Stem().eval()
    before, state = torch.random.get_rng_state(), state_of(model)
    found = public_statistics(model, model.state_dict(), public.images, NORMALISATION)
    normalised = (public.images.double() / 255 - 0.5) / 0.25
    assert found["first.running_mean"].item() == pytest.approx(normalised.mean().item(), abs=1e-5)
    assert found["first.running_var"].item() == pytest.approx(normalised.var().item(), rel=1e-3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(model.state_dict(), state)
    assert not any(module.training for module in model.modules()) and model.first.momentum == 0.1


@pytest.mark.parametrize(("policy", "estimated"), [("parameters", True), ("none", True), ("stats", False)])
def test_the_global_model_is_evaluated_with_public_statistics(
    policy: SharedBatchNorm, estimated: bool, tmp_path: Path
) -> None:
    made = federation(tmp_path, policy)
    made.run()
    public = public_statistics(made.model, made.global_state, made.dataset.public.images, NORMALISATION)
    state = {**made.global_state, **public} if estimated else made.global_state
    mean = float(state["features.norm0.running_mean"].sum())
    assert made.history[-1]["statistics"] == mean != 0
    assert_same(made.evaluable_state(), state)
    # What the server holds stays as it was.
    assert_same(made.model.state_dict(), made.global_state)


class Noting(Defense):
    def begin_round(self, context: RoundContext) -> None:
        self.seen, self.own = context.global_state, state_of(context.model)


def test_a_defense_sees_a_global_model_that_runs_in_eval_mode(tmp_path: Path) -> None:
    """And the client's own model is not touched by the public statistics."""
    noting = Noting()
    made = federation(tmp_path, "none", defenses={"site-1": noting, "site-2": Defense()})
    made.run_round(0)
    own, expected = made.own_state["site-1"], made.evaluable_state()
    made.run_round(1)
    assert_same(noting.seen, expected)
    for name, tensor in own.items():
        assert torch.equal(noting.own[name], tensor)


def test_frozen_statistics_are_everyones() -> None:
    """Clients that train in eval mode do not move them: the global model is run with those it was trained with."""
    model, data = build(), dataset(public=0)
    assert not lacks_statistics(model, "none", "eval")
    state = model.state_dict()
    assert evaluable_state(model, state, "none", "eval", data) is state
    assert not lacks_statistics(build(normalisation="group"), "none", "train")
    assert not lacks_statistics(model, "stats", "train")


def test_without_public_images(tmp_path: Path) -> None:
    for policy in ("parameters", "none"):
        with pytest.raises(DataError, match=f"share_bn={policy} .* 0 public images are too few") as raised:
            federation(tmp_path / policy, policy, dataset=dataset(public=0)).run()
        assert "\n" not in str(raised.value)
        assert not (tmp_path / policy).exists()
    federation(tmp_path / "stats", "stats", dataset=dataset(public=0)).run()
    federation(tmp_path / "eval", "none", dataset=dataset(public=0), training={"batch_norm": "eval"}).run()


def test_sharing_all_is_as_before(tmp_path: Path) -> None:
    """Also for a model without batch norm, whatever is asked for: nothing is written beside it."""
    federation(tmp_path / "all", "all").run()
    assert not list((tmp_path / "all").rglob("own-*"))
    ways: list[Callable[[], Federation]] = [
        lambda: federation(tmp_path / "group-none", "none", model=build(normalisation="group"), evaluate=lambda _: {}),
        lambda: federation(tmp_path / "group-all", "all", model=build(normalisation="group"), evaluate=lambda _: {}),
    ]
    first, second = (way() for way in ways)
    first.run()
    second.run()
    assert_same(first.global_state, second.global_state)
    assert not list(tmp_path.rglob("own-*"))
    update = ModelUpdate.load(round_folder(tmp_path / "group-none", 0) / "update-site-1.safetensors")
    assert update.withheld == ()
