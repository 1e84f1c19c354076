"""Messages of federated engines: what a client says to the server, and what a training hands the site's own guard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import NUMBERS, TEXTS, change_bytes

ROUNDS = 3


def _arrays(random: np.random.Generator, like: np.ndarray) -> tuple[Any, str]:
    """Bytes that stand for an array, mostly not for one like this."""
    import torch
    from flwr.app import Array

    def saved(array: Any) -> bytes:
        written = io.BytesIO()
        np.save(written, array, allow_pickle=True)
        return written.getvalue()

    dtypes = ("f2", "f8", "i8", "u1", "c8", "?", "U3", "S3", "M8[s]", "O", ">f4", "V4")
    how = pick(random, ("dtype", "shape", "value", "value", "bytes", "raw", "kind", "claims", "bfloat16"))
    if how == "dtype":
        dtype = pick(random, dtypes)
        changed = np.empty(like.shape, dtype) if dtype[0] in "USMOV" else like.astype(dtype)
    elif how == "shape":
        changed = pick(random, (like[None], like.ravel(), like[:0], np.zeros(()), np.zeros((1,) * 30, "f4")))
    elif how == "value":
        changed = np.full_like(like, pick(random, (np.nan, np.inf, -np.inf, 3e38, 1e30, 0)))
    else:
        content = saved(like)
        stype = "numpy.ndarray"
        if how == "bytes":
            content, _ = change_bytes(random, content)
        elif how == "raw":
            content = random.bytes(int(random.integers(0, 200)))
        elif how == "kind":
            stype = pick(random, ("", "pickle", "torch.Tensor", "\x1b[2J", "x" * 5000))
        elif how == "claims":
            shape = pick(random, ("(100000000000,)", "(-1,)", "9" * 5000, "()", "(2,) * 99"))
            header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
            content = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64)
        else:
            content = saved(torch.zeros(like.shape).bfloat16().view(torch.int16).numpy())
        return Array(dtype="float32", shape=tuple(like.shape), stype=stype, data=content), how
    try:
        return Array(changed), f"{how} {changed.dtype} {changed.shape}"[:60]
    except Exception:  # Flower's own constructor refuses some.
        return Array(dtype="float32", shape=tuple(like.shape), stype="numpy.ndarray", data=saved(changed)), how


def _change_content(random: np.random.Generator, content: Any, like: dict[str, np.ndarray]) -> str:
    """Another record, or another value in one."""
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

    name = pick(random, tuple(like))
    how = pick(
        random,
        ("array", "array", "array", "metric", "metric", "list", "drop", "record", "config", "no array", "rename"),
    )
    try:
        if how == "array":
            content["arrays"][name], what = _arrays(random, like[name])
            return f"{how} {name}: {what}"
        if how == "metric":
            key = pick(random, ("num-examples", "steps", "partition-id", "loss", "weight", *TEXTS[:20]))
            value = pick(random, NUMBERS)
            content["metrics"][key] = value if abs(value) < 2**63 else float(value)
            return f"{how} {key!a:.40} = {value}"
        if how == "list":
            content["metrics"][pick(random, ("num-examples", "leak"))] = [
                float(each) for each in like[name].ravel()[:50]
            ]
        elif how == "drop":
            del content[pick(random, tuple(content))]
        elif how == "record":
            content[pick(random, ("control-variate", "second", "own-control-variate", "x"))] = ArrayRecord([like[name]])
        elif how == "config":
            content[pick(random, ("config", "x"))] = ConfigRecord(
                {"leak": like[name].tobytes(), "a": [0.5] * 20, "text": "x" * 100}
            )
        elif how == "no array":
            del content["arrays"][name]
        else:
            content["arrays"][pick(random, TEXTS)[:200]] = content["arrays"].pop(name)
    except Exception as error:  # Flower's own records refuse some values; a record may have been dropped.
        return f"nothing ({type(error).__name__})"
    if random.random() < 0.05:
        content["metrics"] = MetricRecord({})
    return how


def _somebody() -> None:
    # Messages can be made within an engine only, since Flower 1.41; this is what an engine sets.
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def _message(round: int, state: dict[str, np.ndarray], node: int) -> Any:
    import torch
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

    arrays = ArrayRecord({name: torch.from_numpy(np.array(each)) for name, each in state.items()})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": round, "rounds": ROUNDS})})
    return Message(content, dst_node_id=node, message_type="train")


def _reply(message: Any, state: dict[str, np.ndarray]) -> Any:
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    arrays = ArrayRecord({name: torch.from_numpy(np.array(each)) for name, each in state.items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 3})}), reply_to=message)


def make_lie(random: np.random.Generator, folder: Path) -> Input:
    """One of three replies is not what it should be: the round's average is made all the same, and is finite."""
    from flwr.app import ArrayRecord, Error, Message
    from flwr.serverapp.strategy import FedAvg

    from shadow_defense.federated.flower.checked_strategy import CheckedStrategy

    _somebody()
    state = {"weight": np.ones((2, 3), np.float32), "count": np.array(4)}
    asked = [_message(1, state, node) for node in (100, 101, 102)]
    replies = [_reply(message, {name: each + 1 for name, each in state.items()}) for message in asked]
    changes = [_change_content(random, replies[1].content, state) for _ in range(int(random.integers(1, 4)))]
    if random.random() < 0.1:
        replies[1] = Message(Error(pick(random, (0, 1, 1001, 2**31)), pick(random, TEXTS)), reply_to=asked[1])
        changes = ["an error"]
    strategy = CheckedStrategy(FedAvg(fraction_evaluate=0), names=("a", "b", "c"))
    strategy._sent = dict(ArrayRecord({name: _tensor(each) for name, each in state.items()}).to_torch_state_dict())

    def give() -> None:
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        for array in arrays.to_torch_state_dict().values():
            assert array.isfinite().all(), "an average that is not finite"

    return Input("; ".join(changes), give)


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.array(array))


def network() -> Any:
    from shadow_defense.models.build import build_model
    from shadow_defense.models.settings import ModelSettings

    return build_model(
        ModelSettings(name="convnet", width=8, normalisation="batch"), channels=1, classes=2, image_size=(8, 8), seed=0
    )


def secrets_of(state: dict[str, np.ndarray]) -> list[bytes]:
    """The parameters, which are protected; whether batch norm's buffers leave is the site's choice (``share_bn``)."""
    parameters = {name for name, _ in network().named_parameters()}
    return [each.tobytes() for name, each in state.items() if name in parameters and each.size >= 8]


def leaks(secret: list[bytes], leaving: Any) -> bool:
    """Whether any of these bytes stand in what leaves."""
    found = []

    def walk(value: Any) -> None:
        if isinstance(value, bytes | bytearray):
            found.append(bytes(value))
        elif isinstance(value, np.ndarray):
            found.append(value.tobytes())
        elif hasattr(value, "data") and isinstance(getattr(value, "data", None), bytes):
            found.append(value.data)
        elif hasattr(value, "numpy"):
            found.append(value.detach().numpy().tobytes())
        elif hasattr(value, "items"):
            for key, each in value.items():
                walk(key)
                walk(each)
        elif isinstance(value, list | tuple):
            numbers = [each for each in value if isinstance(each, int | float)]
            found.append(np.array(numbers, np.float32).tobytes())
            for each in value:
                walk(each)

    walk(leaving)
    everything = b"\0".join(found)
    return any(each in everything for each in secret)


def make_training(random: np.random.Generator, folder: Path) -> Input:
    """A training on a site replies oddly: the mod answers with the protected update alone, or with an error."""
    from flwr.app import Context, RecordDict

    from shadow_defense.defenses.build import DefenseSettings
    from shadow_defense.federated.flower.update_defense_mod import UpdateDefenseMod

    _somebody()
    state = {name: tensor.numpy().copy() for name, tensor in network().state_dict().items()}
    message = _message(pick(random, (1,) * 9 + (0, -1, 99)), state, 100)
    # Numbers that occur nowhere else.
    after = {name: each + random.normal(size=each.shape).astype(each.dtype) for name, each in state.items()}
    reply = _reply(message, after)
    changes = [_change_content(random, reply.content, after) for _ in range(int(random.integers(0, 4)))]
    secret = secrets_of(after)
    settings = DefenseSettings(defense="noise", options={"place": "update"})
    mod = UpdateDefenseMod(settings, network, run="r", rounds=ROUNDS, metrics=("loss",))
    context = Context(
        run_id=1, node_id=100, node_config={"state-dir": str(folder / "state")}, state=RecordDict(), run_config={}
    )

    def give() -> None:
        answer = mod(message, context, lambda *_: reply)
        if not answer.has_error():
            assert set(answer.content) <= {"arrays", "metrics"}, f"records {set(answer.content)}"
            assert not leaks(secret, answer.content), "the raw update leaves"

    return Input("; ".join(changes) or "valid", give)


FLOWER = ("flwr.serverapp.strategy", "flwr.clientapp", "shadow_defense.federated.flower.checked_strategy")
LIE = Kind(make_lie, FLOWER)
TRAINING = Kind(make_training, (*FLOWER, "shadow_defense.federated.flower.update_defense_mod"))
