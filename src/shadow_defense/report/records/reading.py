"""Typed records to JSON and back: one description of each shape, for what is written and what is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError

from shadow_defense.errors import RunError, shown
from shadow_defense.files import read_json, write_json
from shadow_defense.metrics.confidence import Estimate

SCHEMA = 2
"""Which shape the JSON of results has; where it changes, so does this number."""

Record = TypeVar("Record")

Settings = Mapping[str, object]
"""Nested settings, as they are shown."""


def _estimate(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    low, high = value.get("low"), value.get("high")
    interval = None if low is None and high is None else (low, high)
    return {"mean": value.get("mean"), "interval": interval, "count": value.get("count")}


Measure = Annotated[Estimate, BeforeValidator(_estimate), PlainSerializer(Estimate.as_record)]
"""An estimate: in JSON its ``mean``, ``low``, ``high`` and ``count``."""

Measures = Mapping[str, Measure]
"""Estimates by name."""


def read_record(
    kind: type[Record], values: object, source: str = "these results", hint: str = "compute them again"
) -> Record:
    """A record of the dataclass ``kind`` from nested plain values; keys that it does not know are passed over.

    Raises:
        RunError: where a value is missing or of another kind; the line ends in ``hint``.

    >>> read_record(Measures, {"psnr": {"mean": 1.0, "low": 0.5, "high": 1.5, "count": 4}})
    {'psnr': Estimate(mean=1.0, interval=(0.5, 1.5), count=4)}
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"cannot read {source}: {shown(place)}: {first['msg'][0].lower()}{first['msg'][1:]}; {hint}"
        ) from failure


def record_values(record: object) -> dict[str, object]:
    """A record in plain values for JSON, as :func:`read_record` takes them; with the number of its schema.

    >>> from shadow_defense.report.records.scores import Client
    >>> record_values(Client(train=8, batch_size=4))
    {'schema': 2, 'train': 8, 'batch_size': 4, 'validation': 0, 'test': 0}
    """
    return {"schema": SCHEMA, **TypeAdapter(type(record)).dump_python(record, mode="json")}


def write_record(path: Path, record: object) -> None:
    """Write the record of a plan as JSON."""
    write_json(path, record_values(record))


def load_record(kind: type[Record], path: Path, hint: str) -> Record:
    """The record that :func:`write_record` wrote.

    Raises:
        RunError: where the file is missing, damaged, or of another :data:`SCHEMA`; the line ends in ``hint``.
    """
    values = read_json(path, hint)
    found = values if isinstance(values, dict) else {}
    if found.get("schema") != SCHEMA:
        versions = found.get("versions")
        writer = versions.get("shadow-defense") if isinstance(versions, dict) else None
        raise RunError(
            f"{path} holds schema {shown(found.get('schema', 1))}, written by shadow-defense "
            f"{shown(writer or 'of an unknown version')}, and this version reads schema {SCHEMA}: {hint}"
        )
    return read_record(kind, found, str(path), hint)
