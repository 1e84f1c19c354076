"""A run's arm on Flower: its ClientApp, its ServerApp, and both in the simulation engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.kind import Site
from shadow_defense.errors import ConfigError, RunError
from shadow_defense.experiment.handed_over import protecting_once
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.self_audit import SELF_AUDIT, SelfAudit, is_asked_for, settings_of_site
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.experiment.tasks.training_place import PLACE, TrainingPlace
from shadow_defense.experiment.work import Workers
from shadow_defense.experiment.worst_case_gate import WorstCaseGate
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.evaluations import LEAST_EVALUATED
from shadow_defense.federated.flower.client_app import (
    BeforeUpload,
    ClientApp,
    Context,
    Participant,
    build_client_app,
    unchecked,
)
from shadow_defense.federated.flower.server_app import (
    ROUND_TIMEOUT,
    FlowerServer,
    ServerApp,
    build_server_app,
    no_measurements,
)
from shadow_defense.federated.flower.simulation import simulate
from shadow_defense.federated.flower.site_state import PARTITION, node_name, state_root
from shadow_defense.federated.rounds import MOST_EXPLAINED, TRAINING
from shadow_defense.federated.site_secret import secret_seed, site_seed
from shadow_defense.federated.training_folder import explanation_name, read_journal, round_folder, train_again
from shadow_defense.generators.build import load_generator
from shadow_defense.generators.interface import Generator
from shadow_defense.metrics.utility import evaluate
from shadow_defense.progress import Progress, Task
from shadow_defense.seeds import SECRET

STATES = "clients"
"""The folder below an arm's in which simulated clients keep their states; real ones keep them at home."""

LEAST_KEY = "least-evaluated"
"""The key of a node's own configuration with the least number of validation images that it evaluates a model on."""


@lru_cache(maxsize=2)
def opened(folder: Path, arm: str) -> tuple[TrainingPlace, Generator | None]:
    """A training or a run's arm with its data and generator, once for all messages that a process handles."""
    place = TrainingPlace.open(folder) if (folder / PLACE).exists() else Run.open(folder).place(arm)
    torch.set_num_threads(place.config.threads)
    return place, place.load_generator()


def participant(folder: Path, arm: str, context: Context, *, simulated: bool) -> Participant:
    """The client whose node ``context`` is of.

    A site whose configuration names its own images only has one client, whatever number its node has. Where the node's
    own configuration says ``self-audit``, no update leaves that does not withstand it; where it says
    ``least-evaluated``, no model is evaluated on fewer images.

    Args:
        folder: of the run, on this client's machine, or of one training.
        simulated: all clients share this machine: states and pictures are written into the training's folder.

    Raises:
        RunError: where the node was not told which client it is, or where to keep its state.
        ConfigError: for a self-audit that cannot be read: then nothing leaves.
    """
    place, generator = opened(folder, arm)
    partition = context.node_config.get(PARTITION)
    clients = place.dataset.clients
    alone = len(clients) == 1 and not simulated
    if not isinstance(partition, int) or partition < 0 or not (alone or partition < len(clients)):
        raise RunError(
            f"this node does not know which client it is ({PARTITION}={partition!r}): expected 0 to {len(clients) - 1} "
            f"in its --node-config"
        )
    client = clients[0 if alone else partition]
    root, name = (place.folder, STATES) if simulated else (state_root(context), f"{folder.name}-{arm}")
    # In a simulation the draws are the run's, so that it can be repeated.
    secret = None if simulated else secret_seed(root, name, node_name(context))
    site = None if simulated else Site(root, site_seed(root))
    defense = build_defense(place, arm, generator, client.name, secret_seed=secret, site=site)
    states = ClientStateFolder(root, name, client.name)
    # An attack draws by PyTorch's own generator, whose seeds are short.
    short = place.config.seed if secret is None else secret % SECRET
    return Participant(
        model=place.new_model(arm).to(place.device),
        dataset=place.dataset,
        client=client,
        defense=defense,
        settings=place.config.training,
        loss_fn=place.config.training.loss_function(),
        seed=place.config.seed,
        share_bn=place.defense.share_bn,
        partition=partition,
        states=states,
        explanations=_explanations(place, client) if simulated else {},
        exact=simulated,
        before_upload=_self_audit(place, client, context, short, defense, states.folder),
        least_evaluated=_least_evaluated(context),
    )


def _least_evaluated(context: Context) -> int:
    given = context.node_config.get(LEAST_KEY, LEAST_EVALUATED)
    if not isinstance(given, int) or given < 1:
        raise ConfigError(f"this node's {LEAST_KEY} is {given!r}: expected a whole number of images from 1 on")
    return given


def _self_audit(
    place: TrainingPlace, client: ClientData, context: Context, seed: int, defense: Defense, folder: Path
) -> BeforeUpload:
    if not is_asked_for(context.node_config):
        return unchecked
    settings = settings_of_site(context.node_config[SELF_AUDIT])
    once = protecting_once(defense)
    if once is not None:
        return WorstCaseGate(settings, once, client.train, place.mean_image, folder)
    return SelfAudit(
        settings,
        model=lambda: place.new_model(place.arm).to(place.device),
        client=client,
        training=place.config.training,
        normalisation=place.dataset.normalisation,
        classes=place.dataset.classes,
        template=place.mean_image,
        seed=seed,
        loss_fn=place.config.training.loss_function(),
        defense=place.defense,
        public=place.dataset.public,
        generator=partial(load_generator, place.generator_path) if place.generator_path.exists() else None,
    )


def _explanations(place: TrainingPlace, client: ClientData) -> dict[int, tuple[Path, frozenset[str]]]:
    samples = frozenset(client.train.sample_ids[:MOST_EXPLAINED])
    return {
        round: (round_folder(place.folder, round) / explanation_name(client.name), samples)
        for round, names in place.keep.items()
        if client.name in names
    }


def _participant(folder: Path, arm: str, simulated: bool, context: Context) -> Participant:
    return participant(folder, arm, context, simulated=simulated)


def client_app(folder: Path, arm: str, *, simulated: bool = False, secure: bool = False) -> ClientApp:
    """The ClientApp of a run's arm, for an engine of any kind.

    Args:
        secure: updates leave through SecAgg+ only; the server's side must be ``secure`` too.
    """
    build = build_client_app
    if secure:
        # Here, as below: a deployment starts a process for every message, and most need none of the protocol.
        from shadow_defense.federated.flower.secure_aggregation.client_app import build_secure_client_app as build
    return build(partial(_participant, folder, arm, simulated))


def server_app(
    place: TrainingPlace,
    *,
    at_least: int = 1,
    timeout: float | None = ROUND_TIMEOUT,
    measured: Callable[[int], dict[str, Any]] = no_measurements,
    task: Task | None = None,
    secure: bool = False,
    most_images: int | None = None,
) -> ServerApp:
    """The ServerApp of a run's arm, which records what the run's attacks and `shadow-defense audit` need.

    Args:
        place: :meth:`Run.place` of the arm.
        at_least: clients without whose updates a round stops the training.
        timeout: seconds to wait for the clients of a round (:class:`FlowerServer`): longer than the slowest takes.
        secure: the server gets averages only, by SecAgg+; the clients' side must be ``secure`` too.
        most_images: the most that any client has, for ``secure``; None: as in the run's own data, which real hospitals'
            may exceed: those are refused.
    """
    kind: Callable[..., FlowerServer] = FlowerServer
    if secure:
        from shadow_defense.federated.flower.secure_aggregation.server_app import SecureServer

        largest = max(len(client.train) for client in place.dataset.clients)
        kind = partial(SecureServer, most_images=most_images or largest)

    def server(context: Context) -> FlowerServer:
        return kind(
            model=place.new_model(place.arm).to(place.device),
            dataset=place.dataset,
            settings=place.config.training,
            evaluate=lambda model: evaluate(model, place.dataset),
            folder=place.folder,
            keep=place.keep,
            share_bn=place.defense.share_bn,
            at_least=at_least,
            timeout=timeout,
            seed=place.config.seed,
            measured=measured,
            task=task or Task(),
        )

    return build_server_app(server)


def train_arm_in_simulation(place: TrainingPlace, progress: Progress | None = None, *, secure: bool = False) -> None:
    """Train one arm, or go on with it, with every client simulated on Flower's engine.

    The same numbers as in one process, since simulated clients send double precision (:class:`Participant`).

    Args:
        secure: by SecAgg+, where the average is the same up to its fixed point.

    Raises:
        RunError: where a client withheld its update: with all of them on one machine nobody is to be spared.
    """
    folder = place.folder
    images = {client.name: len(client.train) for client in place.dataset.clients}
    states = {name: ClientStateFolder(folder, STATES, name) for name in images}
    rounds_done = read_journal(folder)[0]
    if rounds_done and any(states[name].last_round() is None for name in place.taking_part(rounds_done - 1)):
        raise RunError(f"{folder} was begun with another engine: go on with that one, or {train_again(folder)}")
    for state in states.values():
        last = state.last_round()
        if last is not None and last > rounds_done:
            # The journal was deleted, so that the training begins again.
            shutil.rmtree(state.folder)
        state.forget_refusal()

    def measured(round: int) -> dict[str, Any]:
        drawn = place.taking_part(round)
        own = {name: states[name].measurements() for name in images if name in drawn}
        total = sum(images[name] for name in own)
        return {
            "loss": sum(numbers["loss"] * images[name] for name, numbers in own.items()) / total,
            "clients": own,
        }

    task = (progress or Progress()).start(TRAINING, place.config.training.rounds)
    try:
        simulate(
            # On this machine no answer gets lost: a client's process that dies is an error at once.
            server_app(
                place,
                at_least=place.config.training.clients_per_round or len(images),
                timeout=None,
                measured=measured,
                task=task,
                secure=secure,
            ),
            # Processes of the engine may have another working directory.
            client_app(folder.resolve(), place.arm, simulated=True, secure=secure),
            clients=len(images),
            at_once=Workers(place.config.workers).at_once(len(images)),
        )
    except RunError as error:
        refusals = [line for state in states.values() if (line := state.refusal())]
        if refusals:
            raise RunError(refusals[0]) from error
        raise
    task.finish()
