"""A hospital: its node says where its run directory and its state lie, and in which arms it takes part."""

from pathlib import Path

from flwr.app import Context

from shadow_defense.errors import RunError
from shadow_defense.experiment.flower_apps import participant
from shadow_defense.federated.flower.client_app import Participant, build_client_app


def hospital(context: Context) -> Participant:
    arm, agreed = str(context.run_config["arm"]), str(context.node_config["arms"]).split()
    # Else a server could switch the defense off.
    if arm not in agreed:
        raise RunError(f"the server asks for arm '{arm}': this hospital takes part in {', '.join(agreed)} only")
    return participant(Path(str(context.node_config["run-dir"])), arm, context, simulated=False)


app = build_client_app(hospital)
