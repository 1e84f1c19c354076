"""What leaves a client beside its one record of tensors: what is on a list, and nothing else."""

from __future__ import annotations

from collections.abc import Collection

from flwr.app import Context, Message, MetricRecord, RecordDict

from shadow_defense.errors import UpdateError, shown
from shadow_defense.federated.evaluations import rounded
from shadow_defense.federated.flower.records import ARRAYS, CONTROL, SAMPLES, STEPS
from shadow_defense.federated.flower.site_state import PARTITION
from shadow_defense.federated.update import MOST_COUNTED


def content_of(reply: Message) -> RecordDict:
    """What a training answered. Raises :class:`UpdateError` for an error, whose own words must not leave."""
    if reply.has_error():
        raise UpdateError(f"the training answered with an error: {shown(reply.error.reason)}")
    return reply.content


def leaving_metrics(
    content: RecordDict, context: Context, *, named: Collection[str], tensors: Collection[str] = (ARRAYS,)
) -> MetricRecord:
    """The numbers of a reply that may leave, in a record of their own; all else in it is refused.

    What is not on a list could be as large as the model, and be the model: SCAFFOLD's control variates are the raw
    update, divided by a number. Refused rather than left out, so that a training that relies on it is not silently
    spoiled.

    Args:
        named: metrics that the site lets leave, each one number, rounded.
        tensors: names of the sets of tensors that the caller answers for.

    Raises:
        UpdateError: naming what is not on the list.
    """
    for name in content.array_records:
        if name not in tensors:
            hint = "; for SCAFFOLD give the mod scaffold_learning_rate" if CONTROL not in tensors else ""
            raise UpdateError(
                f"the reply holds the set of tensors '{shown(name)}' beside '{ARRAYS}', which nothing protects: leave "
                f"it out{hint}"
            )
    for name, config in content.config_records.items():
        if len(config):
            raise UpdateError(f"the reply holds the configuration '{shown(name)}': clients send none, leave it out")
    if len(content.metric_records) > 1:
        raise UpdateError(f"the reply holds {len(content.metric_records)} sets of metrics: put what may leave into one")
    leaving: dict[str, int | float] = {}
    for metrics in content.metric_records.values():
        for name, value in metrics.items():
            if name in (SAMPLES, STEPS):
                leaving[name] = _counted(name, value)
            elif name == PARTITION:
                # The node's own, so that it carries nothing else.
                leaving[name] = _own_partition(value, context)
            elif name in named:
                leaving[name] = rounded(name, value)
            else:
                raise UpdateError(
                    f"the reply holds the metric '{shown(name)}', which the site does not let leave: leave it out, or "
                    f"name it in metrics=..."
                )
    return MetricRecord(leaving)


def _counted(name: str, value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= MOST_COUNTED:
        raise UpdateError(f"the reply says {name}={shown(value, 40)}: expected a whole number up to {MOST_COUNTED}")
    return value


def _own_partition(value: object, context: Context) -> int:
    own = context.node_config.get(PARTITION)
    if not isinstance(own, int) or value != own:
        raise UpdateError(f"the reply says {PARTITION}={shown(value, 40)} and the node's own configuration {own}")
    return own
