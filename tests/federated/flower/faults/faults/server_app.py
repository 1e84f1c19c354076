"""The server of the hospitals in which things go wrong: it records everybody in every round."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from shadow_defense.federated.flower.server_app import FlowerServer

from .hospital import NAMES, dataset, model, settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    rounds = int(str(context.run_config["rounds"]))
    FlowerServer(
        model=model(),
        dataset=dataset(),
        settings=settings(rounds),
        evaluate=lambda trained: {},
        folder=Path(str(context.run_config["server"])),
        keep=dict.fromkeys(range(rounds), NAMES),
        timeout=300,
    ).run(grid)
