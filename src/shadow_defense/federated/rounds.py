"""Federated rounds in one process: every client in turn, then FedAvg; resumable round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, FederatedDataset
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import RunError, ShadowDefenseError
from shadow_defense.federated.batch_norm_policy import evaluable_state, withheld_names
from shadow_defense.federated.client import LocalResult, prepare_defense, train_locally
from shadow_defense.federated.sampling import taking_part
from shadow_defense.federated.server import apply_update, average_updates
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.states import on_host
from shadow_defense.federated.training_folder import (
    explanation_name,
    read_journal,
    round_folder,
    state_folder,
    state_name,
    train_again,
    update_path,
    write_journal,
)
from shadow_defense.files import flatten_tensors, link_file, nest_tensors, read_tensors, write_tensors
from shadow_defense.models.functional import LossFunction
from shadow_defense.progress import Progress

Evaluate = Callable[[nn.Module], dict[str, Any]]

MOST_EXPLAINED = 16
"""Images of each kept client whose protection is written as pictures."""

TRAINING = "federated training, rounds"
"""The name under which progress is reported, one step a round."""


@dataclass
class Federation:
    """The state of a federated training: the global model, each client's defense, and what was measured.

    Attributes:
        model: the one module through which every client's state passes; where it lies is computed.
        share_bn: what of batch norm leaves the clients; the rest each keeps for itself from round to round.
        keep: for each round (0-based) to be attacked, the clients whose updates and explanations are written.
        folder: where rounds and checkpoints are written.
    """

    model: nn.Module
    dataset: FederatedDataset
    defenses: Mapping[str, Defense]
    settings: TrainingSettings
    loss_fn: LossFunction
    evaluate: Evaluate
    seed: int
    folder: Path
    keep: Mapping[int, Collection[str]] = field(default_factory=dict)
    share_bn: SharedBatchNorm = "all"
    rounds_done: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.global_state = {name: tensor.clone() for name, tensor in on_host(self.model.state_dict()).items()}
        own = {name: self.global_state[name] for name in sorted(withheld_names(self.model, self.share_bn))}
        self.own_state: dict[str, dict[str, Tensor]] = {client.name: dict(own) for client in self.dataset.clients}
        """For each client by name the tensors that it does not share, as its last round left them."""
        self._begun = set[str]()
        """The clients that have a state: those that took part in a round."""
        self._evaluable: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None

    def run(self, progress: Progress | None = None) -> None:
        """Go on from the last whole round to the end; first of all, every defense looks at the model."""
        for defense in self.defenses.values():
            defense.check_model(self.model)
        self._resume()
        progress = progress or Progress()
        task = progress.start(TRAINING, self.settings.rounds)
        task.advance(self.rounds_done)
        while self.rounds_done < self.settings.rounds:
            self._prepare(progress)
            entry = self.run_round(self.rounds_done)
            self.history.append(entry)
            self.rounds_done += 1
            self._save()
            task.advance(note=f"loss {entry['loss']:.3f}")
        self.model.load_state_dict(self.global_state)
        task.finish()

    def updates(self, round: int) -> list[LocalResult]:
        """Train the round's clients from the same global model, and write what is to be kept; nothing is averaged."""
        kept = self.keep.get(round, ())
        results: list[LocalResult] = [
            train_locally(
                self.model,
                self.evaluable_state(),
                client,
                self.defenses[client.name],
                settings=self.settings,
                round=round,
                normalisation=self.dataset.normalisation,
                loss_fn=self.loss_fn,
                seed=self.seed,
                explain=frozenset(client.train.sample_ids[:MOST_EXPLAINED] if client.name in kept else ()),
                kept=self.own_state[client.name],
            )
            for client in self.taking_part(round)
        ]
        if kept:
            self._keep(round, [result for result in results if result.update.client in kept])
        return results

    def run_round(self, round: int) -> dict[str, Any]:
        """Train the round's clients from the same global model, average, evaluate; returns the round's measurements."""
        started = time.perf_counter()
        results = self.updates(round)
        self.global_state = apply_update(self.global_state, average_updates([result.update for result in results]))
        self.own_state.update({result.update.client: dict(result.kept) for result in results})
        samples = sum(result.update.samples for result in results)
        entry: dict[str, Any] = {
            "round": round,
            "loss": sum(result.loss * result.update.samples for result in results) / samples,
            "clients": {result.update.client: {"loss": result.loss, **result.measurements} for result in results},
            "seconds": time.perf_counter() - started,
        }
        if self.settings.evaluates_after(round):
            self.model.load_state_dict(self.evaluable_state())
            entry.update(self.evaluate(self.model))
        return entry

    def taking_part(self, round: int) -> list[ClientData]:
        """The clients of a round (0-based): all, or those drawn for it (``clients_per_round``)."""
        clients = self.dataset.clients
        drawn = taking_part(len(clients), self.settings.clients_per_round, seed=self.seed, round=round)
        return [clients[number] for number in drawn]

    def evaluable_state(self) -> Mapping[str, Tensor]:
        """The global state as it can be run in eval mode, computed once a round.

        Where clients keep their running statistics (``share_bn``) with those of public images, else as it is.
        """
        if self._evaluable is None or self._evaluable[0] is not self.global_state:
            made = evaluable_state(self.model, self.global_state, self.share_bn, self.settings.batch_norm, self.dataset)
            self._evaluable = (self.global_state, made)
        return self._evaluable[1]

    def _prepare(self, progress: Progress) -> None:
        # Not all at the start: a client that never takes part costs nothing.
        for client in self.taking_part(self.rounds_done):
            if client.name not in self._begun:
                prepare_defense(self.defenses[client.name], client, self.dataset.normalisation, progress)
                self._begun.add(client.name)

    def _keep(self, round: int, results: Sequence[LocalResult]) -> None:
        place = round_folder(self.folder, round)
        write_tensors(place / "global.safetensors", self.global_state)
        for result in results:
            result.update.save(update_path(self.folder, round, result.update.client))
            if result.explanations:
                write_tensors(place / explanation_name(result.update.client), result.explanations)

    def _save(self) -> None:
        place = state_folder(self.folder, self.rounds_done)
        write_tensors(place / "global.safetensors", self.global_state)
        trained = {client.name for client in self.taking_part(self.rounds_done - 1)}
        for client in sorted(trained):
            write_tensors(place / state_name("defense", client), flatten_tensors(self.defenses[client].state_dict()))
            if self.own_state[client]:
                write_tensors(place / state_name("own", client), self.own_state[client])
        before = state_folder(self.folder, self.rounds_done - 1)
        for client in sorted(self._begun - trained):
            # As they are: the state of a client that rested is neither read nor copied.
            for name in (state_name("defense", client), state_name("own", client)):
                if (before / name).exists():
                    link_file(before / name, place / name)
        write_journal(self.folder, self.rounds_done, self.history)

    def _resume(self) -> None:
        if not (self.folder / "history.json").exists():
            return
        self.rounds_done, self.history = read_journal(self.folder)
        place, hint = state_folder(self.folder, self.rounds_done), train_again(self.folder)
        self.global_state, _ = read_tensors(place / "global.safetensors", hint)
        try:
            self.model.load_state_dict(self.global_state)
        except RuntimeError as error:
            raise RunError(f"{place / 'global.safetensors'} is of another model; {hint}") from error
        self._begun = {client.name for round in range(self.rounds_done) for client in self.taking_part(round)}
        for client, defense in self.defenses.items():
            if client not in self._begun:
                continue
            path = place / state_name("defense", client)
            tensors, _ = read_tensors(path, hint)
            try:
                defense.load_state_dict(nest_tensors(tensors))
            except ShadowDefenseError as error:
                raise RunError(f"{path} does not fit this run: {error}; {hint}") from error
            except KeyError as error:
                raise RunError(f"{path} is of another defense: it lacks {error}; {hint}") from error
        for client, own in self.own_state.items():
            if own and client in self._begun:
                path = place / state_name("own", client)
                tensors, _ = read_tensors(path, hint)
                if {name: tensor.shape for name, tensor in tensors.items()} != {n: t.shape for n, t in own.items()}:
                    raise RunError(f"{path} is of another model or another share_bn; {hint}")
                self.own_state[client] = tensors
