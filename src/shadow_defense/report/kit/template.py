"""Pages from their templates, and settings as pages show them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import yaml

from shadow_defense.report.kit.formatting import counted
from shadow_defense.report.records.scores import Header
from shadow_defense.report.sentences.origin import origin_sentences

if TYPE_CHECKING:
    from markupsafe import Markup


def render_page(name: str, record: Header, *, seeds: Sequence[int], **parts: object) -> str:
    """The page ``name`` of ``report/pages`` as one HTML document that needs no network and no other file.

    All text is escaped, no name may be missing, and a content security policy in the page forbids loading anything.
    Templates extend ``kit/base.html.j2``. Their filters: ``settings`` is :func:`nested_text`, ``typed`` and ``counted``
    are themselves, and ``origin`` is :func:`origin_sentences`.

    Args:
        parts: what the template lays out besides ``record`` and ``seeds``.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("shadow_defense.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    filters = {"settings": nested_text, "typed": typed, "counted": counted, "origin": origin_sentences}
    environment.filters |= filters
    return environment.get_template(f"pages/{name}.html.j2").render(record=record, seeds=seeds, **parts)


def typed(sentence: str) -> Markup:
    """A sentence as HTML, escaped, in which what stands in backticks is code.

    >>> typed("`r-gap` <b>")
    Markup('<code>r-gap</code> &lt;b&gt;')
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def nested_text(value: Mapping[str, object]) -> str:
    """Nested settings as YAML, which the command line reads back.

    >>> print(nested_text({"training": {"rounds": 2, "optimiser": None}}))
    training:
      rounds: 2
      optimiser: null
    """
    # Through JSON, so that what is shown is what results.json holds: tuples become lists.
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True).rstrip()
