"""A last look at the update as a Flower mod, around any client's own training and its other mods."""

from __future__ import annotations

from collections.abc import Callable, Collection

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.control_variates import control_change
from shadow_defense.federated.flower.client_app import BeforeUpload, arrays_of, round_of
from shadow_defense.federated.flower.leaving import content_of, leaving_metrics
from shadow_defense.federated.flower.records import ARRAYS, CONTROL, METRICS, from_record, to_record
from shadow_defense.federated.flower.refusal import refuse
from shadow_defense.federated.flower.replies import update_of
from shadow_defense.federated.flower.site_state import STATE_FOLDER, node_name, state_root


class BeforeUploadMod:
    """Shows every update to ``check`` before it leaves; where that, or the training, raises, nothing is uploaded.

    ``@app.train(mods=[BeforeUploadMod(...), ...])``: the first mod of a list is the last to touch the update, and this
    one has to see it as the server will, so that it belongs before mods that defend. As with those, nothing leaves that
    is not on a list (:mod:`leaving`): what was not looked at could be the update. No metric of an evaluation leaves
    past it: for ``@app.evaluate`` there is :class:`UpdateDefenseMod`. Why an update was withheld is said in the
    client's log, and in ``withheld.txt`` where the site gave its node a folder (``state-dir``).

    Args:
        check: of a client, by its node's context; such as a :class:`shadow_defense.experiment.self_audit.SelfAudit`.
        run: a name of the training.
        rounds: R, the server cannot ask for more.
        metrics: names of the training's metrics that may leave: single numbers, rounded.
        scaffold_learning_rate: as that of an :class:`UpdateDefenseMod` behind this one; the control variate that leaves
            is computed from the update that was looked at.
    """

    def __init__(
        self,
        check: Callable[[Context], BeforeUpload],
        *,
        run: str,
        rounds: int,
        metrics: Collection[str] = (),
        scaffold_learning_rate: float | None = None,
    ) -> None:
        self.check, self.run, self.rounds, self.metrics = check, run, rounds, frozenset(metrics)
        self.scaffold_learning_rate = scaffold_learning_rate

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        states: ClientStateFolder | None = None
        trains = message.metadata.message_type.startswith("train")
        try:
            if STATE_FOLDER in context.node_config:
                states = ClientStateFolder(state_root(context), self.run, node_name(context))
            answer = self._checked if trains else self._told
            content = answer(message, context, call_next)
        except Exception as error:
            # As in the client's own training: whatever it is, nothing leaves.
            return refuse(message, error, states)
        if states is not None and trains:
            states.forget_refusal()
        return Message(content, reply_to=message)

    def _checked(self, message: Message, context: Context, call_next: ClientAppCallable) -> RecordDict:
        round = round_of(message.content, self.rounds)
        # Read before the training is called, which may reuse the record.
        received, control = (
            {name: each.clone() for name, each in record.to_torch_state_dict().items()}
            for record in (arrays_of(message.content), message.content.array_records.get(CONTROL, ArrayRecord()))
        )
        reply = call_next(message, context)
        content, learning_rate = content_of(reply), self.scaffold_learning_rate
        tensors = (ARRAYS,) if learning_rate is None else (ARRAYS, CONTROL)
        metrics = leaving_metrics(content, context, named=self.metrics, tensors=tensors)
        update = update_of(reply, received, round)
        self.check(context)(update, received)
        # Written anew: behind a tensor's bytes there could be others.
        after = to_record(from_record(arrays_of(content), received, "the training's model"))
        leaving = RecordDict({ARRAYS: after, METRICS: metrics})
        if learning_rate is not None:
            changed = control_change(control, update.tensors, steps=update.steps, learning_rate=learning_rate)
            leaving.array_records[CONTROL] = to_record(changed)
        return leaving

    def _told(self, message: Message, context: Context, call_next: ClientAppCallable) -> RecordDict:
        """Who the node is, and no more: how often an evaluation may be answered is counted by the other mod."""
        content = content_of(call_next(message, context))
        return RecordDict({METRICS: leaving_metrics(content, context, named=(), tensors=())})
