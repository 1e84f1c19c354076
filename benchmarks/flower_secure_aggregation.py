"""What secure aggregation costs on Flower: seconds and bytes of a round, with SecAgg+ and in the clear.

    .venv/bin/python benchmarks/flower_secure_aggregation.py

Both sides run in turn in one process, on one thread, without Ray and without sockets: a client's seconds are those of
its app on all messages of a round, training included (one step on two images, so that the rest shows); the server's are
the others. Seconds are of processor time, which a shared machine distorts less. Bytes are those of Flower's messages,
serialised. The median of several rounds, the first one left out. Engines add their own: SecAgg+ has four exchanges a
round instead of one, and a deployment starts a process for each.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shadow_defense.data.dataset import ClientData, FederatedDataset, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.client_app import ClientApp, Context, Participant, build_client_app
from shadow_defense.federated.flower.secure_aggregation.client_app import build_secure_client_app
from shadow_defense.federated.flower.secure_aggregation.server_app import SecureServer
from shadow_defense.federated.flower.server_app import FlowerServer
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

# After ours, which makes Flower silent.
from flwr.app import Message, RecordDict  # isort: skip
from flwr.serverapp import Grid  # isort: skip
from flwr.common.serde import message_to_proto  # isort: skip
from flwr.supercore.task_identity import TaskIdentity  # isort: skip

SIZE = 32
IMAGES = 2
MODELS = {
    "convnet": ModelSettings(name="convnet", activation="gelu"),
    "resnet18": ModelSettings(name="resnet18", normalisation="batch"),
}


class MeasuringGrid(Grid):
    """Calls the app of every node in turn, and notes its seconds and the bytes both ways."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.app = app
        self.contexts = {
            1 + index: Context(
                run_id=1, node_id=1 + index, node_config={"partition-id": index}, state=RecordDict(), run_config={}
            )
            for index in range(nodes)
        }
        self.seconds, self.passing, self.down, self.up = 0.0, 0.0, 0, 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages, replies = list(messages), list[Message]()
        passed = time.process_time()
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            received = copy.deepcopy(message)
            started = time.process_time()
            reply = self.app(received, self.contexts[message.metadata.dst_node_id])
            self.seconds += time.process_time() - started
            if reply.has_error():
                raise SystemExit(f"a client failed: {reply.error.reason}")
            self.down += message_to_proto(message).ByteSize()
            self.up += message_to_proto(reply).ByteSize()
            replies.append(reply)
        # With copies and sizes, which are neither the clients' nor the server's.
        self.passing += time.process_time() - passed
        return replies

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def set_run(self, *arguments: Any, **named: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_nodes(self) -> Iterable[Any]:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def measure(model_name: str, clients: int, secure: bool, rounds: int) -> dict[str, float]:
    """Medians of one round: a client's and the server's seconds, a client's megabytes down and up."""

    def build() -> nn.Module:
        return build_model(MODELS[model_name], channels=1, classes=2, image_size=(SIZE, SIZE), seed=0)

    def images(name: str) -> ImageSet:
        drawn = torch.randint(0, 256, (IMAGES, 1, SIZE, SIZE), dtype=torch.uint8)
        return ImageSet(drawn, torch.arange(IMAGES) % 2, tuple(f"{name}/{index}" for index in range(IMAGES)))

    data = FederatedDataset(
        "random",
        tuple(
            ClientData(name, images(name), images(f"{name}/v"), images(f"{name}/t"), IMAGES)
            for name in (f"client-{index}" for index in range(clients))
        ),
        images("public"),
        images("test"),
        ("a", "b"),
        Normalisation((0.5,), (0.25,)),
    )
    settings = TrainingSettings(rounds=rounds + 1, learning_rate=0.01)
    seconds: list[tuple[float, float, int, int]] = []
    with tempfile.TemporaryDirectory() as folder:

        def participant(context: Context) -> Participant:
            partition = int(context.node_config["partition-id"])
            client = data.clients[partition]
            states = ClientStateFolder(Path(folder) / "clients", "run", client.name)
            loss = nn.CrossEntropyLoss()
            return Participant(build(), data, client, Defense(), settings, loss, 0, "all", partition, states)

        grid = MeasuringGrid((build_secure_client_app if secure else build_client_app)(participant), clients)
        started = time.process_time()

        def measured(round: int) -> dict[str, Any]:
            nonlocal started
            total = time.process_time() - started
            seconds.append((grid.seconds / clients, total - grid.passing, grid.down // clients, grid.up // clients))
            grid.seconds, grid.passing, grid.down, grid.up, started = 0.0, 0.0, 0, 0, time.process_time()
            return {}

        kind: Any = SecureServer if secure else FlowerServer
        more = {"most_images": IMAGES} if secure else {}
        kind(build(), data, settings, lambda model: {}, Path(folder), measured=measured, **more).run(grid)
    client, server, down, up = (statistics.median(each) for each in zip(*seconds[1:], strict=True))
    return {"client": client, "server": server, "down": down / 1e6, "up": up / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median is taken")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    head = ("model", "parameters", "clients", "", "s a client", "s at the server", "MB down", "MB up")
    print("{:9} {:>11} {:>7} {:12} {:>10} {:>15} {:>8} {:>8}".format(*head))
    for name, settings in MODELS.items():
        model = build_model(settings, channels=1, classes=2, image_size=(SIZE, SIZE), seed=0)
        count = sum(tensor.numel() for tensor in model.state_dict().values())
        for clients in (3, 9):
            found = {secure: measure(name, clients, secure, rounds) for secure in (False, True)}
            for secure, of in found.items():
                side = "SecAgg+" if secure else "in the clear"
                numbers = f"{of['client']:10.3f} {of['server']:15.3f} {of['down']:8.3f} {of['up']:8.3f}"
                print(f"{name:9} {count:11,} {clients:7} {side:12} {numbers}")
            print(
                f"{'':29} {'added':12} {found[True]['client'] - found[False]['client']:10.3f} "
                f"{found[True]['server'] - found[False]['server']:15.3f} "
                f"{found[True]['down'] / found[False]['down']:7.2f}x {found[True]['up'] / found[False]['up']:7.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
