"""A ClientApp whose update leaves masked only: the same training, defense, state and refusals as in the clear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.compat.common.recorddict_compat import fitres_to_recorddict

from shadow_defense.errors import UpdateError
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.client_app import (
    Participant,
    answer_or_refuse,
    arrays_of,
    round_of,
    train_round,
)
from shadow_defense.federated.flower.records import ARRAYS, METRICS, SAMPLES, STEPS, from_record
from shadow_defense.federated.flower.secure_aggregation.fixed_point import LEVELS, FixedPoint
from shadow_defense.federated.flower.secure_aggregation.masks import MODULUS, use_own_masks
from shadow_defense.federated.states import change, in_types_of, on_host
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_json, write_json

MOST_IMAGES = "most-images"
"""The key of a message's configuration with the largest number of images that a client may have."""


def build_secure_client_app(participant: Callable[[Context], Participant]) -> ClientApp:
    """The ClientApp that trains as ``participant`` says and hands its update to Flower's SecAgg+ alone.

    A server that asks for an update in the clear gets none, nor is the model evaluated here: a client's own loss and
    accuracy would go in the clear. Whatever goes wrong, the reply is an error that names its kind only.

    Args:
        participant: called for every message, in whatever process handles it; picklable for the simulation.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def answer(taking_part: Participant) -> Message:
            stage, asked = _asked(message)
            reply = _answer(stage, asked, taking_part, message, context)
            if stage == Stage.COLLECT_MASKED_VECTORS:
                taking_part.states.forget_refusal()
            return reply

        return answer_or_refuse(message, context, participant, answer)

    return app


def _answer(stage: str, asked: ConfigRecord, taking_part: Participant, message: Message, context: Context) -> Message:
    use_own_masks()
    if stage == Stage.SETUP:
        check_setup(asked)
    if stage == Stage.UNMASK:
        _check_unmasking(asked, taking_part.states)

    def trained(message: Message, context: Context) -> Message:
        return Message(train_securely(taking_part, message.content, context), reply_to=message)

    return secaggplus_mod(message, context, trained)


def train_securely(taking_part: Participant, content: RecordDict, context: Context) -> RecordDict:
    """One round of one client, as Flower's mod wants it before it masks it: one row, of weight 1, and nothing else.

    Raises:
        UpdateError: for a change that the secure sum cannot hold; the client's state is on disk then, nothing left.
        Whatever :func:`train_round` raises.
    """
    setup = context.state.config_records[RECORD_KEY_STATE]
    fixed_point = FixedPoint(_whole(setup, Key.SAMPLE_NUMBER), _most_images(content), _limit(setup))
    initial = on_host(taking_part.model.state_dict())
    sent = arrays_of(content)
    like = {name: tensor.detach().clone() for name, tensor in initial.items() if name in sent}
    # In double precision the update can be read off the reply without loss.
    reply = train_round(replace(taking_part, exact=True), content)
    received = in_types_of(from_record(sent, like, "the server's global model"), like)
    metrics = reply.metric_records[METRICS]
    update = ModelUpdate(
        change(received, from_record(reply.array_records[ARRAYS], received, "the update")),
        _whole(metrics, SAMPLES),
        _whole(metrics, STEPS),
        round_of(content, taking_part.settings.rounds),
        taking_part.client.name,
    )
    row = ndarrays_to_parameters([fixed_point.encode(update)])
    return fitres_to_recorddict(FitRes(Status(Code.OK, ""), row, num_examples=1, metrics={}), keep_input=False)


def check_setup(asked: ConfigRecord) -> None:
    """Refuse a protocol in which the server could unmask a client with fewer than most of the others' help.

    A client hands out, of every other one, a share of either of two secrets. Where half of the clients are enough for
    one secret, a server that tells the halves different things gets both, and with them the update.

    Raises:
        UpdateError: naming what the server asks for.
    """
    clients, shares, threshold = (_whole(asked, key) for key in (Key.SAMPLE_NUMBER, Key.SHARE_NUMBER, Key.THRESHOLD))
    if clients < 2 or shares != clients or not clients < 2 * threshold <= 2 * clients:
        raise UpdateError(
            f"the server asks {clients} clients for {shares} shares of which {threshold} are enough: expected at "
            "least 2 clients, as many shares, and more than half of them"
        )
    for key, value in ((Key.MOD_RANGE, MODULUS), (Key.TARGET_RANGE, LEVELS), (Key.MAX_WEIGHT, 1.0)):
        if asked.get(key) != value:
            raise UpdateError(
                f"the server asks for {key}={asked.get(key)}: expected {value}; run the server's side of this package"
            )


def _asked(message: Message) -> tuple[str, ConfigRecord]:
    # Flower routes names such as train.default here too, and its mod masks what answers to this one alone.
    if message.metadata.message_type != MessageType.TRAIN:
        raise UpdateError(
            f"the server asks by a message '{message.metadata.message_type}' and masks are put on for "
            f"'{MessageType.TRAIN}' alone: run the server's side of this package"
        )
    records = message.content.config_records
    stage = records[RECORD_KEY_CONFIGS].get(Key.STAGE) if RECORD_KEY_CONFIGS in records else None
    if not isinstance(stage, str) or stage not in Stage.all():
        raise UpdateError(
            "the server asks for an update in the clear and this client takes part in secure aggregation only: use "
            "the same engine on both sides"
        )
    return stage, records[RECORD_KEY_CONFIGS]


def _check_unmasking(asked: ConfigRecord, states: ClientStateFolder) -> None:
    """Refuse to help to unmask what shows one client.

    A client that is said to be there and gone at once would lose both of its secrets. And a round that is asked again
    (a server was restarted) gives the same updates: sums over different clients would differ by single ones, so that a
    sum is repeated over everybody or not at all.
    """
    there, gone = (_nodes(asked, key) for key in (Key.ACTIVE_NODE_ID_LIST, Key.DEAD_NODE_ID_LIST))
    if there & gone:
        raise UpdateError("the server says of a client that it answered and that it did not: nothing is unmasked")
    path, round = states.folder / "unmasked.json", states.last_round()
    now = {"round": round, "clients": len(there)}
    if path.exists():
        before = read_json(path, f"delete {states.folder} and begin a run of another name")
        if before["round"] == round and (before != now or gone):
            raise UpdateError(
                f"this round was summed over {before['clients']} clients already and is asked for again over "
                f"{len(there)}, with {len(gone)} gone: the difference could show single updates; begin a run of "
                "another name"
            )
    write_json(path, now)


def _nodes(asked: ConfigRecord, key: str) -> set[Any]:
    listed = asked.get(key)
    if not isinstance(listed, list):
        raise UpdateError(f"the server's message lacks the list '{key}': run the server's side of this package")
    return set(listed)


def _most_images(content: RecordDict) -> int:
    for config in content.config_records.values():
        if MOST_IMAGES in config:
            return _whole(config, MOST_IMAGES)
    raise UpdateError(f"the server's message has no '{MOST_IMAGES}': run the server's side of this package")


def _limit(setup: ConfigRecord) -> float:
    limit = setup.get(Key.CLIPPING_RANGE)
    if not isinstance(limit, float) or not limit > 0:
        raise UpdateError(f"the server asks for values up to {limit}: expected a positive number")
    return limit


def _whole(record: Any, key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or value < 0:
        raise UpdateError(f"the message says {key}={value!r}: expected a whole number")
    return value
