"""Pages from their templates, and settings as pages show them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml


def render_template(name: str, context: Mapping[str, Any]) -> str:
    """The template ``name`` of this package with ``context``; all text is escaped, and no name may be missing.

    Templates have the filter ``settings``, which is :func:`nested_text`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("shadow_defense.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["settings"] = nested_text
    return environment.get_template(name).render(context)


def nested_text(value: Mapping[str, Any]) -> str:
    """Nested settings as YAML, which the command line reads back.

    >>> print(nested_text({"training": {"rounds": 2, "optimiser": None}}))
    training:
      rounds: 2
      optimiser: null
    """
    # Through JSON, so that what is shown is what results.json holds: tuples become lists.
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True).rstrip()
