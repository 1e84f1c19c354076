"""A comparison as GitHub Markdown, for docs/results."""

from __future__ import annotations

import json
from collections.abc import Sequence

from shadow_defense.report.columns import score_table
from shadow_defense.report.kit.formatting import counted, markdown_code, markdown_text
from shadow_defense.report.pages.compare import when
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.reading import Settings


def comparison_markdown(record: ComparisonRecord, first: Sequence[str] = ()) -> str:
    """What was compared, by which command, on which data, with which versions, when; then ``first`` and every table."""
    parts = [
        f"# {markdown_text(record.title)}",
        f"```\n{markdown_code(record.command)}\n```",
        "\n".join(f"- {line}" for line in _setup(record)),
        *_bullets("What the numbers say", record.verdict),
        *first,
        "Mean ± half the 95 % interval over images and seeds. In brackets the difference to "
        f"{markdown_text(record.first)}, paired by image and seed, with a star where its interval leaves out zero. "
        "Lower PSNR and SSIM and higher LPIPS are better protected. Front: on the Pareto front of that attack's "
        "privacy-utility plane, by the means alone. Time and memory are multiples of those without defense. "
        "Epsilon is followed by its delta; it is that of the parameters sent: batch norm's statistics, where they "
        "leave (all or stats), are not covered. Batch norm: which of its values are shared.",
    ]
    for heading, tables in (("Comparison", record.tables), ("Ablations", record.ablations)):
        if tables:
            parts.append(f"## {heading}")
        for table in tables:
            parts.append(f"### {markdown_text(table.model)}, {markdown_text(table.attack)}, {when(table)}")
            parts.append(score_table("document", "", table.rows).markdown())
    parts += _bullets("Left out", [f"{entry.defense} with {entry.model}: {entry.reason}" for entry in record.left_out])
    parts += _bullets("Failed", [f"{failure.cell}: {failure.error}" for failure in record.failures])
    parts += _bullets("Notes", record.notes)
    return "\n\n".join(parts) + "\n"


def _bullets(heading: str, sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return []
    return [f"## {heading}", "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences)]


def _setup(record: ComparisonRecord) -> list[str]:
    data = record.data
    height, width = data.image_size
    sizes = ", ".join(str(client.train) for client in data.clients.values())
    hashes = {"": data.sha256} if isinstance(data.sha256, str) else data.sha256
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return [
        f"Date: {markdown_text(record.created)}.",
        f"Data: {markdown_text(data.name)}, {height} x {width} px, {counted(data.channels, 'channel')}; training "
        f"images by client: {sizes}; {data.public} public, {data.test} test images.",
        f"SHA-256 of the data: {'; '.join(f'seed {seed} `{markdown_code(value)}`' for seed, value in hashes.items())}.",
        f"Seeds: {', '.join(map(str, record.seeds))}.",
        f"Versions: {markdown_text(versions)}.",
        *(f"Model {markdown_text(name)}: `{_settings(settings)}`." for name, settings in record.models.items()),
        *(
            f"Attack {markdown_text(name)}: {markdown_text(attack.attack)}, rounds "
            f"{', '.join(map(str, attack.rounds))}, {counted(len(attack.clients), 'client')}, "
            f"`{_settings(attack.settings)}`."
            for name, attack in record.attacks.items()
        ),
    ]


def _settings(settings: Settings) -> str:
    return markdown_code(json.dumps(settings, ensure_ascii=False))
