"""A ClientApp that does what a client does in one process: the same function trains, under the same defense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, FederatedDataset
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import RunError, UpdateError
from shadow_defense.federated.batch_norm_policy import evaluable_state, withheld_names
from shadow_defense.federated.client import LocalResult, prepare_defense, train_locally
from shadow_defense.federated.client_state import ClientState, ClientStateFolder, restore_defense
from shadow_defense.federated.evaluations import LEAST_EVALUATED, admit_evaluation, rounded
from shadow_defense.federated.flower.records import ARRAYS, METRICS, SAMPLES, STEPS, from_record, to_record
from shadow_defense.federated.flower.refusal import refuse
from shadow_defense.federated.flower.site_state import PARTITION
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.states import digest, in_types_of, on_host
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import write_tensors
from shadow_defense.folder_lock import holding
from shadow_defense.models.functional import LossFunction, training_mode
from shadow_defense.placement import device_of

EVALUATED_AT_ONCE = 256
"""Validation images in one forward pass."""

FIRST_ROUND = "first-round"
"""The key of a message's configuration with the number of rounds before this Flower run, which counts from 1 again."""

BeforeUpload = Callable[[ModelUpdate, Mapping[str, Tensor]], Mapping[str, float]]
"""Looks at an update, and the whole global state that it is added to, before it leaves the client.

Raises to withhold it, and returns numbers for the client's own notes.
"""


def unchecked(update: ModelUpdate, global_state: Mapping[str, Tensor]) -> Mapping[str, float]:
    """Nobody looks: every update may leave."""
    return {}


@dataclass(frozen=True)
class Participant:
    """What a client brings to a round.

    Attributes:
        model: as every client and the server start it: the same architecture and weights.
        dataset: the normalisation and the public images; other clients' images in it are not looked at.
        defense: a fresh one, which gets its state from ``states``.
        partition: the number of the client, as its node was told.
        explanations: for each round (0-based) of which pictures of the protection are wanted, the file on this
            client's disk to write them to, and of which samples. They never leave.
        exact: send double precision, in which a model plus a small update loses nothing: the rounds are then the same
            as in one process, at twice the size. In single precision they differ by rounding, which training amplifies.
        before_upload: sees every update after the defense, and withholds it by raising; the site's own audit.
        least_evaluated: validation images without which the client does not say how well the global model does.
    """

    model: nn.Module
    dataset: FederatedDataset
    client: ClientData
    defense: Defense
    settings: TrainingSettings
    loss_fn: LossFunction
    seed: int
    share_bn: SharedBatchNorm
    partition: int
    states: ClientStateFolder
    explanations: Mapping[int, tuple[Path, frozenset[str]]] = field(default_factory=dict)
    exact: bool = False
    before_upload: BeforeUpload = unchecked
    least_evaluated: int = LEAST_EVALUATED


def build_client_app(participant: Callable[[Context], Participant]) -> ClientApp:
    """The ClientApp that trains as ``participant`` says, and measures the global model on its validation images.

    Whatever goes wrong, nothing is uploaded: the reply is an error that names the kind of error only.

    Args:
        participant: called for every message, in whatever process handles it; picklable for the simulation.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def answer(taking_part: Participant) -> Message:
            reply = Message(train_round(taking_part, message.content), reply_to=message)
            taking_part.states.forget_refusal()
            return reply

        return answer_or_refuse(message, context, participant, answer)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def answer(taking_part: Participant) -> Message:
            return Message(evaluate_round(taking_part, message.content), reply_to=message)

        return answer_or_refuse(message, context, participant, answer)

    @app.query()
    def which(message: Message, context: Context) -> Message:
        """Which of the clients this is: for a server that draws some of them for each round."""
        try:
            told = MetricRecord({PARTITION: int(str(context.node_config[PARTITION]))})
        except (KeyError, ValueError) as error:
            return refuse(message, error, None)
        return Message(RecordDict({METRICS: told}), reply_to=message)

    return app


def answer_or_refuse(
    message: Message,
    context: Context,
    participant: Callable[[Context], Participant],
    answer: Callable[[Participant], Message],
) -> Message:
    """What ``answer`` replies for the client whose node ``context`` is of, or, whatever it raises, a refusal.

    One process at a time: two that trained as one client would draw the same noise for two updates.
    """
    states: ClientStateFolder | None = None
    try:
        taking_part = participant(context)
        states = taking_part.states
        with holding(states.folder):
            return answer(taking_part)
    except Exception as error:
        # Not ours to know what a defense may raise: whatever it is, nothing leaves.
        return refuse(message, error, states)


def train_round(taking_part: Participant, content: RecordDict) -> RecordDict:
    """One round of one client: from the message's content to the reply's.

    The reply holds the received tensors plus the protected update, as Flower's strategies expect, without those that
    stay with the client (``share_bn``). The client's state is on disk before this returns.

    Raises:
        ShadowDefenseError: for a message that does not fit, a damaged state, or a round that is over.
        Whatever the defense or the look before the upload raises.
    """
    model, states = taking_part.model, taking_part.states
    round = round_of(content, taking_part.settings.rounds)
    initial = {name: tensor.clone() for name, tensor in on_host(model.state_dict()).items()}
    withheld = withheld_names(model, taking_part.share_bn)
    received = _received(content, initial, withheld)
    global_state = {name: received.get(name, tensor) for name, tensor in initial.items()}
    # Another client that took this one's place would draw the same noise for other images.
    asked = digest(global_state, *taking_part.client.train.sample_ids)
    taking_part.defense.check_model(model)
    before = states.resume(round, asked)
    if before is None:
        prepare_defense(taking_part.defense, taking_part.client, taking_part.dataset.normalisation)
        own = {name: initial[name] for name in sorted(withheld)}
        # Preparing may take hours, and must not be lost with a round that fails.
        states.save(ClientState.prepared(taking_part.defense.state_dict(), own))
    else:
        own = dict(before.own)
        restore_defense(taking_part.defense, before, states.path(before))
        _check_own(own, initial, withheld, states.path(before))
    file, explained = taking_part.explanations.get(round, (None, frozenset[str]()))
    evaluable = evaluable_state(
        model, global_state, taking_part.share_bn, taking_part.settings.batch_norm, taking_part.dataset
    )
    result = train_locally(
        model,
        evaluable,
        taking_part.client,
        taking_part.defense,
        settings=taking_part.settings,
        round=round,
        normalisation=taking_part.dataset.normalisation,
        loss_fn=taking_part.loss_fn,
        seed=taking_part.seed,
        explain=explained,
        kept=own,
    )
    if file is not None and result.explanations:
        write_tensors(file, result.explanations)
    # On disk before anything leaves: what the defense has spent is counted even if the reply is lost.
    states.save(ClientState(round, asked, taking_part.defense.state_dict(), result.kept))
    # After that, so that a defense which builds up from round to round gets on even where its first updates stay.
    seen = taking_part.before_upload(result.update, global_state)
    states.note({"loss": result.loss, **result.measurements, **seen})
    return _reply(received, result, taking_part)


def evaluate_round(taking_part: Participant, content: RecordDict) -> RecordDict:
    """Mean loss and accuracy of the global model on the client's own validation images, rounded, once a round.

    What of batch norm the client keeps for itself (``share_bn``) stands in the model as its last round left it.

    Raises:
        ShadowDefenseError: for a message that does not fit, a damaged state, too few validation images, or one answer
            too many (:func:`admit_evaluation`).
    """
    model, images = taking_part.model, taking_part.client.validation
    initial, states = on_host(model.state_dict()), taking_part.states
    received = _received(content, initial, withheld_names(model, taking_part.share_bn))
    round, asked = round_of(content, taking_part.settings.rounds), digest(received)
    admit_evaluation(states, round, asked, len(images), taking_part.least_evaluated)
    last = states.last()
    model.load_state_dict({**initial, **received, **({} if last is None else last.own)})
    normalised = taking_part.dataset.normalisation.apply(images.unit_images())
    with torch.no_grad(), training_mode(model, False):
        device = device_of(model)
        logits = torch.cat([model(chunk.to(device)) for chunk in normalised.split(EVALUATED_AT_ONCE)]).cpu()
        measured = {
            "loss": float(taking_part.loss_fn(logits, images.labels)),
            "accuracy": float((logits.argmax(1) == images.labels).float().mean()),
        }
    said = {name: rounded(name, value) for name, value in measured.items()}
    return RecordDict({METRICS: MetricRecord({SAMPLES: len(images), **said})})


def round_of(content: RecordDict, rounds: int) -> int:
    """The round (0-based) that a message asks for.

    Raises :class:`UpdateError` where it does not say, or asks for more than the ``rounds`` that a defense plans with.
    """
    for config in content.config_records.values():
        if "server-round" in config:
            round = _whole(config, "server-round") - 1 + _whole(config, FIRST_ROUND, 0)
            if not 0 <= round < rounds:
                raise UpdateError(f"the server asks for round {round + 1} of {rounds}: use one configuration")
            return round
    raise UpdateError("the server's message has no 'server-round': use a strategy that sends it, as FedAvg does")


def _whole(config: ConfigRecord, key: str, default: int = 0) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or value < 0:
        raise UpdateError(f"the server's message says {key}={value!r}: expected a whole number")
    return value


def _received(content: RecordDict, initial: Mapping[str, Tensor], withheld: frozenset[str]) -> dict[str, Tensor]:
    return in_types_of(from_record(arrays_of(content), initial, "the server's global model", withheld), initial)


def arrays_of(content: RecordDict) -> ArrayRecord:
    """The model's tensors in a message. Raises :class:`UpdateError` where there are none."""
    if ARRAYS not in content.array_records:
        raise UpdateError(f"the message has no tensors under '{ARRAYS}': leave arrayrecord_key at its default")
    return content.array_records[ARRAYS]


def _check_own(own: Mapping[str, Tensor], initial: Mapping[str, Tensor], withheld: frozenset[str], path: Path) -> None:
    if own.keys() != withheld or any(own[name].shape != initial[name].shape for name in own):
        raise RunError(f"{path} is of another model or another share_bn: begin a run of another name")


def _reply(received: Mapping[str, Tensor], result: LocalResult, taking_part: Participant) -> RecordDict:
    update = result.update
    if taking_part.exact:
        received = {name: each.double() if each.is_floating_point() else each for name, each in received.items()}
    after = {name: tensor + update.tensors[name] for name, tensor in received.items()}
    metrics = MetricRecord({SAMPLES: update.samples, STEPS: update.steps, PARTITION: taking_part.partition})
    return RecordDict({ARRAYS: to_record(after), METRICS: metrics})
