"""A client's state on its own disk: whole or absent, its own, and never advanced twice by one round."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from shadow_defense.errors import RunError
from shadow_defense.federated.client_state import ClientState, ClientStateFolder
from shadow_defense.federated.flower.site_state import state_root
from shadow_defense.federated.states import digest
from shadow_defense.files import flatten_tensors, nest_tensors


def state(round: int, value: float = 0.0, model: str = "g") -> ClientState:
    return ClientState(
        round,
        f"{model}{round}",
        {"maps": {"site/1": torch.full((2, 3), value)}, "spent": torch.tensor(round)},
        {"norm.running_mean": torch.tensor([value])},
    )


def trained(folder: Path, rounds: int) -> ClientStateFolder:
    made = ClientStateFolder(folder, "run", "site")
    made.save(ClientState.prepared({"spent": torch.tensor(-1)}, {}))
    for round in range(rounds):
        made.save(state(round, float(round)))
    return made


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    made = ClientStateFolder(tmp_path, "run", "site")
    assert made.last() is None and made.resume(0, "any") is None
    made.save(state(2, 0.5))
    made.note({"loss": 0.5})
    back = ClientStateFolder(tmp_path, "run", "site").last()
    assert back is not None and back.round == 2
    assert made.measurements() == {"loss": 0.5} and made.last_round() == 2
    expected = flatten_tensors(state(2, 0.5).defense)
    found = flatten_tensors(back.defense)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert nest_tensors(found).keys() == back.defense.keys()
    assert torch.equal(back.own["norm.running_mean"], torch.tensor([0.5]))


def test_a_new_round_starts_from_the_last_and_one_asked_again_from_the_one_before(tmp_path: Path) -> None:
    made = trained(tmp_path, 3)
    for round in (3, 7):
        # A client need not be asked in every round.
        following = made.resume(round, "any")
        assert following is not None and following.round == 2
    again = made.resume(2, "g2")
    assert again is not None and again.round == 1
    # Trained again it is written again, and nothing has moved.
    made.save(state(2, 2.0))
    again = made.resume(2, "g2")
    assert again is not None and again.round == 1
    first = trained(tmp_path / "first", 1).resume(0, "g0")
    assert first is not None and first.round == -1


@pytest.mark.parametrize(("round", "model"), [(2, "another"), (1, "g1"), (0, "g0")])
def test_a_round_that_is_over_is_refused(tmp_path: Path, round: int, model: str) -> None:
    with pytest.raises(RunError, match=rf"has trained round 3 of run 'run' already .* round {round + 1}") as raised:
        trained(tmp_path, 3).resume(round, model)
    assert "\n" not in str(raised.value)


def test_two_files_are_kept(tmp_path: Path) -> None:
    made = trained(tmp_path, 5)
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "round-000003.safetensors",
        "round-000004.safetensors",
    ]


@pytest.mark.parametrize("damage", ["cut", "empty", "of another client", "no file of ours"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    made = trained(tmp_path, 2)
    path = made.folder / "round-000001.safetensors"
    content = path.read_bytes()
    if damage == "of another client":
        other = ClientStateFolder(tmp_path, "run", "other")
        other.save(state(1))
        content = (other.folder / path.name).read_bytes()
    path.write_bytes({"cut": content[:-3], "empty": b"", "no file of ours": b"x" * 100}.get(damage, content))
    with pytest.raises(RunError, match=r"round-000001\.safetensors.*(restore it|delete)") as raised:
        made.resume(2, "any")
    assert "\n" not in str(raised.value)


def test_a_kill_while_writing_leaves_the_round_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained(tmp_path, 2)

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", killed)
        made.save(state(2))
    last = made.last()
    assert last is not None and last.round == 1
    assert all(path.suffix == ".safetensors" for path in made.folder.iterdir())


def test_runs_and_clients_do_not_meet(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    assert ClientStateFolder(tmp_path, "run", "other").last() is None
    assert ClientStateFolder(tmp_path, "another", "site").last() is None


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", "", "a\\b", "a\nb"])
def test_a_name_cannot_lead_out_of_the_sites_folder(tmp_path: Path, name: str) -> None:
    for run, client in ((name, "site"), ("run", name)):
        made = ClientStateFolder(tmp_path / "states", run, client)
        made.save(state(0))
        assert made.folder.resolve().parent.parent == tmp_path / "states"
        last = made.last()
        assert last is not None and last.round == 0


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    made = ClientStateFolder(tmp_path / "states", "run", "site")
    made.save(state(0))
    for folder in (tmp_path / "states", made.folder.parent, made.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def context(**node_config: str | int) -> Context:
    return Context(
        run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={"state-dir": "/server"}
    )


def test_the_site_chooses_the_folder_and_not_the_server(tmp_path: Path) -> None:
    assert state_root(context(**{"state-dir": str(tmp_path)})) == tmp_path
    with pytest.raises(RunError, match="--node-config 'state-dir="):
        state_root(context())


def test_a_digest_is_of_names_types_shapes_and_bits() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
    assert digest(tensors) == digest(dict(reversed(tensors.items())))
    others = [
        {**tensors, "a": torch.zeros(3, 2)},
        {**tensors, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**tensors, "a": -torch.zeros(2, 3)},
        {**tensors, "b": torch.tensor(2)},
        {"a": tensors["a"]},
        {"c": tensors["a"], "b": tensors["b"]},
    ]
    assert len({digest(each) for each in [tensors, *others]}) == 7
