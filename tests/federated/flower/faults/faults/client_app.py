"""Hospitals in which things go wrong: ``faults`` says where, when and what, as in ``hospital-2/1/raise``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor
from torch.nn import functional as F

from shadow_defense.defenses.base import Defense, RoundContext
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.client_app import Participant, build_client_app
from shadow_defense.federated.flower.site_state import PARTITION, state_root

from .hospital import NAMES, dataset, model, settings

SECRET = "image 17 of patient Miller"


class Faulty(Defense):
    """Counts its releases, as a privacy budget does, and fails as it is told."""

    def __init__(self, faults: Mapping[int, str], marker: Path) -> None:
        self.faults, self.marker, self.releases = faults, marker, 0

    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        fault = self.faults.get(context.round)
        if fault == "raise":
            raise ValueError(SECRET)
        if fault == "nan":
            return {name: tensor * float("nan") for name, tensor in tensors.items()}
        if fault == "hang" and not self.marker.exists():
            self.marker.touch()
            # In steps: Flower's own signal, when the SuperNode is gone, is seen between two of them only.
            for _ in range(6000):
                time.sleep(0.1)
        self.releases += 1
        return tensors

    def state_dict(self) -> dict[str, Any]:
        return {"releases": torch.tensor(self.releases)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.releases = int(state["releases"])


def hospital(context: Context) -> Participant:
    partition = int(str(context.node_config[PARTITION]))
    name, told = NAMES[partition], [line.split("/") for line in str(context.run_config["faults"]).split()]
    faults = {int(round): what for where, round, what in told if where == name}
    states = ClientStateFolder(state_root(context), str(context.run_config["run"]), name)
    last = states.folder / "round-000000.safetensors"
    if "damaged" in faults.values() and last.exists():
        last.write_bytes(last.read_bytes()[:40])
    data = dataset()
    return Participant(
        model=model(),
        dataset=data,
        client=data.clients[partition],
        defense=Faulty(faults, states.folder / "hangs"),
        settings=settings(int(str(context.run_config["rounds"]))),
        loss_fn=F.cross_entropy,
        seed=0,
        share_bn="all",
        partition=partition,
        states=states,
    )


app = build_client_app(hospital)
