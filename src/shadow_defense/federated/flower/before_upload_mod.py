"""A last look at the update as a Flower mod, around any client's own training and its other mods."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.client_app import PARTITION, BeforeUpload, arrays_of, round_of
from shadow_defense.federated.flower.refusal import refuse
from shadow_defense.federated.flower.replies import update_of
from shadow_defense.federated.flower.site_state import STATE_FOLDER, state_root


class BeforeUploadMod:
    """Shows every update to ``check`` before it leaves; where that, or the training, raises, nothing is uploaded.

    ``@app.train(mods=[BeforeUploadMod(...), ...])``: the first mod of a list is the last to touch the update, and this
    one has to see it as the server will, so that it belongs before mods that defend. Why an update was withheld is
    said in the client's log, and in ``withheld.txt`` where the site gave its node a folder (``state-dir``).

    Args:
        check: of a client, by its node's context; such as a :class:`shadow_defense.experiment.self_audit.SelfAudit`.
        run: a name of the training.
        rounds: R, the server cannot ask for more.
    """

    def __init__(self, check: Callable[[Context], BeforeUpload], *, run: str, rounds: int) -> None:
        self.check, self.run, self.rounds = check, run, rounds

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if not message.metadata.message_type.startswith("train"):
            return call_next(message, context)
        states: ClientStateFolder | None = None
        try:
            if STATE_FOLDER in context.node_config:
                client = f"partition-{context.node_config.get(PARTITION, 0)}"
                states = ClientStateFolder(state_root(context), self.run, client)
            reply = self._checked(message, context, call_next)
        except Exception as error:
            # As in the client's own training: whatever it is, nothing leaves.
            return refuse(message, error, states)
        if states is not None and not reply.has_error():
            states.forget_refusal()
        return reply

    def _checked(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        round = round_of(message.content, self.rounds)
        # Read before the training is called, which may reuse the record.
        received = {name: each.clone() for name, each in arrays_of(message.content).to_torch_state_dict().items()}
        reply = call_next(message, context)
        if not reply.has_error():
            self.check(context)(update_of(reply, received, round), received)
        return reply
