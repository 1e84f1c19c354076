"""A hospital: its node says where its run directory and its state lie (run-dir, state-dir, partition-id)."""

from pathlib import Path

from flwr.app import Context

from shadow_defense.experiment.flower_apps import participant
from shadow_defense.federated.flower.client_app import Participant, build_client_app


def hospital(context: Context) -> Participant:
    return participant(Path(str(context.node_config["run-dir"])), "shadow", context, simulated=False)


app = build_client_app(hospital)
