"""The page of a calibration of textures: the front of what they leave and what they cost."""

from __future__ import annotations

from shadow_defense.report.kit.charts import Panel
from shadow_defense.report.kit.metrics import METRICS
from shadow_defense.report.kit.plane import plane_svg
from shadow_defense.report.kit.table import Column, Table
from shadow_defense.report.kit.template import render_page
from shadow_defense.report.records.comparison import DefenseEntry
from shadow_defense.report.records.textures import PRIVACY, TextureRow, TexturesRecord


def render_textures(record: TexturesRecord) -> str:
    """The whole page as one HTML document."""
    charts = []
    if record.rows:
        entries = {
            row.arm: DefenseEntry(
                defense="protect-once", summary="", acts_on=("batch",), family=row.preset, label=f"{row.strength:g}"
            )
            # The clean images first: the first family is grey, as what the others are compared with.
            for row in record.compared
        }
        charts = [Panel("RDLV of the linear removal against macro F1", plane_svg("plane", record.plane, entries))]
    return render_page(
        "textures",
        record,
        seeds=(record.seed,),
        charts=charts,
        table=textures_table(record),
        metrics=[METRICS["psnr"], METRICS[PRIVACY]],
    )


def textures_table(record: TexturesRecord) -> Table[TextureRow]:
    """Every row, the clean images first."""
    columns: tuple[Column[TextureRow], ...] = (
        Column("Texture", lambda row: row.preset),
        Column("Strength", lambda row: f"{row.strength:g}" if row.leaks else None),
        Column("Meets the target", lambda row: {True: "the weakest", False: ""}[row.weakest]),
        Column("PSNR above the mean image (dB)", lambda row: row.leaks.get("psnr"), 2),
        Column("RDLV", lambda row: row.leaks.get("rdlv")),
        Column("Found first", lambda row: row.leaks.get("linkage")),
        Column("Macro F1", lambda row: row.worth.get("f1")),
        Column("F1 at the threshold", lambda row: row.worth.get("f1_threshold")),
        Column("AUC", lambda row: row.worth.get("auc")),
    )
    return Table("Textures by what they leave and what they cost", columns, record.compared)
