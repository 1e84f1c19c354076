"""A hospital: its node says where its run directory and its state lie, in which arms it takes part, what may leave."""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from shadow_defense.errors import RunError
from shadow_defense.experiment.flower_apps import participant
from shadow_defense.federated.flower.client_app import Participant, build_client_app
from shadow_defense.federated.flower.secure_aggregation.client_app import build_secure_client_app


def hospital(context: Context) -> Participant:
    arm, agreed = str(context.run_config["arm"]), str(context.node_config["arms"]).split()
    # Else a server could switch the defense off.
    if arm not in agreed:
        raise RunError(f"the server asks for arm '{arm}': this hospital takes part in {', '.join(agreed)} only")
    return participant(Path(str(context.node_config["run-dir"])), arm, context, simulated=False)


class Hospital(ClientApp):
    """Where the node says ``secure``, its updates leave masked or not at all, whatever the server asks for."""

    def __call__(self, message: Message, context: Context) -> Message:
        build = build_secure_client_app if context.node_config.get("secure") else build_client_app
        return build(hospital)(message, context)


app = Hospital()
