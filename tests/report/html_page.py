"""What tests ask of any page."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

HOSTILE = """<script>alert(1)</script> & "quoted" 'single' {{ 1 + 1 }} $x_1$ </svg>"""

# Attributes from which a browser loads, and elements that may have none.
LOADING = ("src", "srcset", "href", "xlink:href", "data", "poster", "action", "background")


class Page(HTMLParser):
    """A page's elements, and its text outside script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._text: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self._text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def shown(self) -> str:
        return re.sub(r"\s+", " ", "".join(self._text))

    def check(self) -> None:
        """It loads nothing, runs no script, every id is once there, every link leads somewhere."""
        for tag, attributes in self.elements:
            for name in LOADING:
                value = attributes.get(name)
                assert value is None or value.startswith(("data:", "#")), (tag, name, value)
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert re.findall(r"url\((?!#)", self.html) == []
        assert "@import" not in self.html
        assert not {"iframe", "object", "embed", "base"} & {tag for tag, _ in self.elements}
        assert self.named("script") == []
        policies = [meta["content"] for meta in self.named("meta") if meta.get("http-equiv")]
        assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
        ids = [str(attributes["id"]) for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = {str(a["href"])[1:] for a in self.named("a")} | {str(a["xlink:href"])[1:] for a in self.named("use")}
        assert links | set(re.findall(r"url\(#([^)]+)\)", self.html)) <= set(ids)
        assert [image for image in self.named("img") if not image.get("alt") and "src" in image] == []
        headings = [int(tag[1]) for tag, _ in self.elements if re.fullmatch(r"h[1-6]", tag)]
        assert headings[0] == 1 and headings.count(1) == 1
        assert not re.search(r"\b(nan|None|Undefined)\b", self.shown())


def renamed(value: Any, names: dict[str, str]) -> Any:
    """Records and plain values with other texts, keys too."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: renamed(getattr(value, field.name), names) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return {renamed(key, names): renamed(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(renamed(item, names) for item in value)
    return names.get(value, value) if isinstance(value, str) else value
