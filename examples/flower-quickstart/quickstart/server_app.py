"""The server: it makes the run directory and its shadow generator, averages, and records what it sees."""

from pathlib import Path

import yaml
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from shadow_defense.config import config_from
from shadow_defense.experiment.flower_apps import server_app
from shadow_defense.experiment.plans.run import pretrain_stage
from shadow_defense.experiment.run import Run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings = yaml.safe_load(Path(__file__).with_name("federation.yaml").read_text(encoding="utf-8"))
    run = Run.create(Path(str(context.run_config["run-dir"])).expanduser(), config_from(settings))
    pretrain_stage(run)
    server_app(run.place("shadow"), at_least=len(run.dataset.clients))(grid, context)
