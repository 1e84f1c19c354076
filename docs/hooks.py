"""Pages that MkDocs makes at build time: the start page from the README, the names that can be chosen from the code."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from shadow_defense.schema import CHOSEN, settings_of

ROOT = Path(__file__).resolve().parents[1]


def start_page() -> str:
    """The README as a page of the site, without its badges: it loads nothing from elsewhere.

    Links into docs/ are its neighbours, those to other files are plain text.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text = re.sub(r"^\[?!\[[^\]]+\]\(https://.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?:[A-Z]+(?:\.[a-z]+)?|examples/[^)]*)\)", r"\1", text)


def registry_page() -> str:
    """Every entry of the package's registries: its name, its line, and what can be set of it."""
    lines = ["# Everything that can be chosen by name", "", "Made from the registries: `shadow-defense config schema`."]
    for registry, prefix in CHOSEN:
        lines += ["", f"## {registry.what.capitalize()}s", ""]
        for name, entry in registry.own.items():
            lines += [f"### `{name}`", "", _escaped(entry.summary), ""]
            settings = list(settings_of(entry.options, prefix))
            if settings:
                lines += ["| setting | type and range | default | meaning |", "|---|---|---|---|"]
            for key, kind, default, description in settings:
                cells = (f"`{key.removeprefix(prefix)}`", _escaped(kind), f"`{default}`", _escaped(description))
                lines.append("| " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return re.sub(r"([|<>\[\]*_])", r"\\\1", text)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links to files of the repository that are no pages become their words."""
    return re.sub(r"\[([^\]]+)\]\(\.\./(?:benchmarks|examples|src)/[^)]*\)", r"\1", markdown)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Links of notebooks, which MkDocs leaves as they are, to the pages that Markdown becomes; no scripts."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = re.sub(r"<script\b[^>]*>(?:(?!</script>).)*?https://cdn.*?</script>", "", html, flags=re.DOTALL)
    return re.sub(r'href="([^":]+)\.md"', lambda link: f'href="{link[1].replace("README", "index")}.html"', html)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, content in (("index.md", start_page()), ("registry.md", registry_page())):
        files.append(File.generated(config, path, content=content))
    return files
