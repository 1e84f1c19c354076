"""What a client keeps from round to round, in files on its own disk that neither crash nor replay can spoil."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from shadow_defense.defenses.base import Defense
from shadow_defense.errors import RunError, ShadowDefenseError
from shadow_defense.files import (
    flatten_tensors,
    make_private_folder,
    nest_tensors,
    path_name,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)

PREPARED = -1
"""The round of a state that has seen none yet."""

KEPT = 2
"""Files kept for each client: as the last round left it, and as it stood before, for that round asked again."""


@dataclass(frozen=True)
class ClientState:
    """A client as a round left it.

    Attributes:
        round: 0-based; :data:`PREPARED` before the first.
        global_digest: of the global state that the round began with.
        defense: what :meth:`Defense.state_dict` gave.
        own: the tensors that the client does not share (``share_bn``), by state-dict name.
        control: the client's control variate c_i (SCAFFOLD), by state-dict name.
        sent, said: the tensors, by set and name, and the numbers that left, where the caller answers a round that is
            asked again by them: a training of somebody else's need not come to the same update twice.
    """

    round: int
    global_digest: str
    defense: Mapping[str, Any]
    own: Mapping[str, Tensor]
    control: Mapping[str, Tensor] = field(default_factory=dict)
    sent: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    said: Mapping[str, int | float] = field(default_factory=dict)

    @classmethod
    def prepared(cls, defense: Mapping[str, Any], own: Mapping[str, Tensor]) -> ClientState:
        """A client before its first round."""
        return cls(PREPARED, "", defense, own)


class ClientStateFolder:
    """The states of one client in one run, below a folder that the client's site chose.

    A round's state is on disk before its update leaves, and the one before it stays. A round that is asked again with
    the same global model (the reply was lost, the server was restarted) therefore starts from the same state and gives
    the same update, which tells nobody anything new. Asked again with another global model it is refused: two updates
    under the same draws would cancel a defense's noise, and only one would be counted.

    Args:
        root: the site's folder, readable for its owner only, since the states hold codes of private images.
        run, client: a folder each below it, by :func:`path_name`: the run's name may be the server's.
    """

    def __init__(self, root: Path, run: str, client: str) -> None:
        self.folder = root / path_name(run) / path_name(client)
        self.run, self.client = run, client

    def resume(self, round: int, global_digest: str) -> ClientState | None:
        """The state to begin a round (0-based) with; None where nothing was saved yet.

        Raises:
            RunError: when the state's file is damaged, or the round is over and asked with another global model.
        """
        rounds = self._rounds()
        if not rounds:
            return None
        last = self._read(rounds[-1])
        if last.round < round:
            return last
        if last.round > round or last.global_digest != global_digest:
            raise RunError(
                f"client '{self.client}' has trained round {last.round + 1} of run '{self.run}' already and was asked "
                f"for round {round + 1} with another global model: nothing is sent twice; begin a run of another name"
            )
        if len(rounds) == 1:
            raise RunError(f"{self.folder} lacks the state before round {round + 1}: {self._mend()}")
        return self._read(rounds[-2])

    def answered(self, round: int, global_digest: str) -> ClientState | None:
        """What left in a round (0-based) that is asked again; None where it is new, or was not kept."""
        last = self.last()
        if last is None or (last.round, last.global_digest) != (round, global_digest) or not last.sent:
            return None
        return last

    def before(self, round: int) -> ClientState | None:
        """The newest state from before a round (0-based); errors as in :meth:`resume`."""
        rounds = [each for each in self._rounds() if each < round]
        return self._read(rounds[-1]) if rounds else None

    def last(self) -> ClientState | None:
        """The newest state; errors as in :meth:`resume`."""
        round = self.last_round()
        return None if round is None else self._read(round)

    def last_round(self) -> int | None:
        """The round (0-based, or :data:`PREPARED`) of the newest state."""
        rounds = self._rounds()
        return rounds[-1] if rounds else None

    def save(self, state: ClientState) -> None:
        """Write a round's state whole or not at all; then forget what no replay can ask for."""
        self.make()
        tensors = {
            **flatten_tensors({"defense": state.defense}),
            **{f"own::{name}": tensor for name, tensor in state.own.items()},
            **{f"control::{name}": tensor for name, tensor in state.control.items()},
            **flatten_tensors({"sent": state.sent}),
        }
        metadata = {"kind": "client state", "run": self.run, "client": self.client, "round": state.round}
        metadata |= {"global_digest": state.global_digest, "said": dict(state.said)}
        write_tensors(self._path(state.round), tensors, metadata)
        for round in self._rounds()[:-KEPT]:
            self._path(round).unlink(missing_ok=True)

    def make(self) -> None:
        """The folder, for its owner only."""
        make_private_folder(self.folder)

    def note(self, measurements: Mapping[str, float]) -> None:
        """Keep numbers about the last round, which stay here: some, such as norms before noise, are private."""
        write_json(self.folder / "measurements.json", dict(measurements))

    def measurements(self) -> dict[str, float]:
        """The numbers of the last round."""
        return dict(read_json(self.folder / "measurements.json", self._mend()))

    def refuse(self, line: str) -> None:
        """Note for the site why the last round's update was withheld."""
        self.make()
        write_text(self.folder / "withheld.txt", line + "\n")

    def refusal(self) -> str | None:
        """The line of :meth:`refuse`, where the last round asked for was refused."""
        path = self.folder / "withheld.txt"
        return path.read_text(encoding="utf-8").strip() if path.exists() else None

    def forget_refusal(self) -> None:
        """An earlier refusal is history."""
        (self.folder / "withheld.txt").unlink(missing_ok=True)

    def path(self, state: ClientState) -> Path:
        """Where a state lies, for errors."""
        return self._path(state.round)

    def _path(self, round: int) -> Path:
        name = "prepared" if round == PREPARED else f"round-{round:06d}"
        return self.folder / f"{name}.safetensors"

    def _rounds(self) -> list[int]:
        rounds = [
            int(matched[1])
            for path in self.folder.glob("round-*.safetensors")
            if (matched := re.fullmatch(r"round-(\d+)", path.stem))
        ]
        return sorted([PREPARED, *rounds] if self._path(PREPARED).exists() else rounds)

    def _read(self, round: int) -> ClientState:
        path = self._path(round)
        tensors, metadata = read_tensors(path, self._mend())
        expected = {"kind": "client state", "run": self.run, "client": self.client, "round": round}
        for key, value in expected.items():
            if metadata.get(key) != value:
                raise RunError(f"{path} is no state of client '{self.client}' ({key} is not {value}): {self._mend()}")
        nested = nest_tensors(
            {name: tensor for name, tensor in tensors.items() if name.startswith(("defense::", "sent::"))}
        )
        own, control = (
            {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
            for kind in ("own::", "control::")
        )
        asked, said = str(metadata.get("global_digest", "")), dict(metadata.get("said", {}))
        return ClientState(round, asked, nested.get("defense", {}), own, control, nested.get("sent", {}), said)

    def _mend(self) -> str:
        return f"restore it from a copy, or delete {self.folder} and begin a run of another name"


def restore_defense(defense: Defense, state: ClientState, path: Path) -> None:
    """Give a fresh defense its state back. Raises :class:`RunError`, naming ``path``, where it is another's."""
    try:
        defense.load_state_dict(state.defense)
    except ShadowDefenseError as error:
        raise RunError(f"{path} does not fit this run: {error}") from error
    except KeyError as error:
        raise RunError(f"{path} is of another defense: it lacks {error}") from error
