"""A client with Shadow Defense inside its training."""

from pathlib import Path

from flwr.app import Context

from shadow_defense.experiment.flower_apps import participant
from shadow_defense.federated.flower.client_app import Participant, build_client_app


def client(context: Context) -> Participant:
    folder = Path(str(context.run_config["run-dir"])).expanduser()
    return participant(folder, "shadow", context, simulated=True)


app = build_client_app(client)
