"""What every mod of a site has in common: its state's folder, what it lets leave, and that it fails closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from shadow_defense.errors import UpdateError
from shadow_defense.federated.client_state import ClientState, ClientStateFolder
from shadow_defense.federated.evaluations import LEAST_EVALUATED, admit_evaluation
from shadow_defense.federated.flower.client_app import arrays_of, round_of
from shadow_defense.federated.flower.leaving import content_of, leaving_metrics
from shadow_defense.federated.flower.records import METRICS, SAMPLES, from_record, to_record
from shadow_defense.federated.flower.refusal import refuse
from shadow_defense.federated.flower.site_state import node_name, state_root
from shadow_defense.federated.states import digest, in_types_of
from shadow_defense.folder_lock import holding


class ProtectingMod(ABC):
    """A mod whose reply is made anew of what was protected and of the numbers that may leave.

    Whatever is raised, by the training too, nothing is uploaded.

    Args:
        metrics: names of the training's or the evaluation's metrics that may leave: single numbers, rounded.
        least_evaluated: images without which an evaluation stays at home.
    """

    def __init__(self, *, metrics: Collection[str], least_evaluated: int = LEAST_EVALUATED) -> None:
        self.metrics, self.least_evaluated = frozenset(metrics), least_evaluated

    @abstractmethod
    def run_of(self, context: Context) -> str:
        """The name of the training."""

    @abstractmethod
    def rounds_of(self, context: Context) -> int:
        """R, which the defense plans with; the server cannot ask for more."""

    @abstractmethod
    def like(self, message: Message) -> Mapping[str, Tensor]:
        """What the tensors of a message have to be like."""

    @abstractmethod
    def protected(
        self, message: Message, context: Context, call_next: ClientAppCallable, states: ClientStateFolder
    ) -> RecordDict:
        """What leaves of a training."""

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = message.metadata.message_type.partition(".")[0]
        answer = {"train": self.protected, "evaluate": self._evaluated}.get(kind, self._told)
        states: ClientStateFolder | None = None
        try:
            states = ClientStateFolder(state_root(context), self.run_of(context), node_name(context))
            # Two processes that trained as one node would draw the same noise for two updates.
            with holding(states.folder):
                content = answer(message, context, call_next, states)
        except Exception as error:
            return refuse(message, error, states)
        if kind == "train":
            states.forget_refusal()
        # A message of its own, so that nothing of the training's is in it.
        return Message(content, reply_to=message)

    def _evaluated(
        self, message: Message, context: Context, call_next: ClientAppCallable, states: ClientStateFolder
    ) -> RecordDict:
        round, like = round_of(message.content, self.rounds_of(context)), self.like(message)
        received = from_record(arrays_of(message.content), like, "the server's global model")
        asked = digest(in_types_of(received, like))
        content = content_of(call_next(message, context))
        metrics = leaving_metrics(content, context, named=self.metrics, tensors=())
        admit_evaluation(states, round, asked, whole(metrics, SAMPLES), self.least_evaluated)
        return RecordDict({METRICS: metrics})

    def _told(
        self, message: Message, context: Context, call_next: ClientAppCallable, states: ClientStateFolder
    ) -> RecordDict:
        """To any other question a node says who it is and no more."""
        content = content_of(call_next(message, context))
        return RecordDict({METRICS: leaving_metrics(content, context, named=(), tensors=())})


def leaving(state: ClientState) -> RecordDict:
    """The reply of a round, from what is on disk: the same whenever it is asked for."""
    records = {name: to_record(tensors) for name, tensors in state.sent.items()}
    return RecordDict({**records, METRICS: MetricRecord(dict(state.said))})


def numbers(metrics: MetricRecord) -> dict[str, int | float]:
    """The single numbers of a record."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def whole(metrics: MetricRecord, key: str) -> int:
    """A whole number of a reply. Raises :class:`UpdateError` where it is not there."""
    value = metrics.get(key)
    if not isinstance(value, int):
        raise UpdateError(f"the reply does not say '{key}': give it as a whole number in its metrics")
    return value
