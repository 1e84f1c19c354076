"""The server: averages, evaluates, and records what the run's attacks ask for: updates, or by SecAgg+ their average."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from shadow_defense.experiment.flower_apps import server_app
from shadow_defense.experiment.run import Run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    run = Run.open(Path(str(context.run_config["run-dir"])))
    arm, timeout = str(context.run_config["arm"]), float(context.run_config["round-timeout"])
    place = run.place(arm)
    server_app(place, timeout=timeout, secure=place.shows_averages)(grid, context)
