"""The page of a run is one file that loads nothing, escapes everything, and survives thin results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.report.html_page import HOSTILE, Page, renamed
from tests.report.sights import sight

from shadow_defense.errors import RunError
from shadow_defense.files import write_json
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.pictures import picture
from shadow_defense.report.pages.run import render_run, summary
from shadow_defense.report.records.reading import load_record, record_values, write_record
from shadow_defense.report.records.run import Explanation, Patient, RunRecord
from shadow_defense.report.records.scores import Origin, Row, ScoreTable
from shadow_defense.report.sentences.origin import origin_sentences


@pytest.fixture(scope="module")
def html(record: RunRecord, patients: tuple[Patient, ...]) -> str:
    return render_run(record, patients)


@pytest.fixture
def thin(record: RunRecord) -> RunRecord:
    """A run with one client, one arm and no attack."""
    return one_arm(record, "none")


def one_arm(record: RunRecord, name: str) -> RunRecord:
    return replace(
        record,
        arms={name: replace(record.arms["no defense"], title=name)},
        utilities=(replace(record.utilities[0], arm=name),),
        data=replace(record.data, clients={"clinic": record.data.clients["hospital-1"]}),
        tables=(),
        attacks={},
        sights=(),
        verdict=(),
        notes=(),
    )


def test_page_is_whole_and_the_same_twice(html: str, record: RunRecord, patients: tuple[Patient, ...]) -> None:
    Page(html).check()
    assert render_run(record, patients) == html


def test_every_part_is_there(html: str, record: RunRecord, patients: tuple[Patient, ...]) -> None:
    page = Page(html)
    titles = [arm.title for arm in record.arms.values()]
    for text in (*record.verdict, *record.notes, *record.arms, *titles, *record.data.clients, *record.data.classes):
        assert text in page.shown()
    for text in (record.command, "torch 2.13.0", "steps: 2400"):
        assert text in page.shown()
    rebuilt = [image for image in page.named("img") if " rebuilt with " in str(image.get("alt"))]
    assert len(rebuilt) == len(patients) * len(record.arms) + 2


def test_the_first_screen_is_the_worst_patient_of_the_arm_that_hides_most(
    html: str, record: RunRecord, patients: tuple[Patient, ...]
) -> None:
    tiles = Page(html).named("img")[:3]
    assert record.answer == "shadow", "the arm with the most noise"
    worst = max(record.closest("shadow").values(), key=lambda sight: sight.share)
    (patient,) = [each for each in patients if each.sample_id == worst.sample_id]
    undefended = record.closest("no defense")[worst.sample_id]
    wanted = [
        patient.original,
        patient.rebuilt["no defense", undefended.attack],
        patient.rebuilt["shadow", worst.attack],
    ]
    # Of inverting gradients the fixture keeps its last round's picture, whichever round was the closest.
    assert [tile["src"] for tile in tiles] == [picture(image, "", "").source for image in wanted]
    assert "None of" not in html and f"Macro F1 {record.arms['shadow'].test['f1_macro']:.3f}" in html


def test_all_text_is_escaped(record: RunRecord, patients: tuple[Patient, ...]) -> None:
    places = ["no defense", "hospital-1", "face", "inverting gradients", "Shadow", record.title, record.command]
    places += [*record.verdict, *record.notes]
    names = {place: f"{HOSTILE} {index}" for index, place in enumerate(places)}
    changed = [
        replace(
            patient,
            client=names.get(patient.client, patient.client),
            class_name=names.get(patient.class_name, patient.class_name),
            rebuilt={
                (names.get(arm, arm), names.get(attack, attack)): image
                for (arm, attack), image in patient.rebuilt.items()
            },
            explained={round: renamed(dict(arms), names) for round, arms in patient.explained.items()},
        )
        for patient in patients
    ]
    page = Page(render_run(renamed(record, names), changed))
    page.check()
    for name in names.values():
        assert name in page.shown()


def test_no_exhibits_no_attacks_one_client(thin: RunRecord) -> None:
    shown = Page(render_run(thin)).shown()
    for text in ("No attack was run", "No reconstruction was kept", "1 client trained"):
        assert text in shown
    assert "Where the noise went" not in shown


def test_missing_measurements(thin: RunRecord) -> None:
    row = Row(arm="none", images=1, metrics={"psnr_whole": Estimate(9.0, None, 1)})
    table = ScoreTable(attack="a", round=1, rows=(row, Row(arm="mean image", images=0, metrics={})))
    page = Page(render_run(replace(thin, tables=(table,))))
    page.check()
    assert "9.00" in page.shown()


def test_results_are_read_as_they_were_written(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path / "results.json", record)
    assert load_record(RunRecord, tmp_path / "results.json", "evaluate again") == record


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"arms": {"none": {"defense": "none"}}}, r"cannot read .*results\.json: arms\.none\."),
        ({"tables": [{"attack": "a", "round": "x", "rows": []}]}, r"cannot read .*results\.json: tables\.0\.round: "),
        ({"schema": 1}, r"results\.json holds schema 1, written by shadow-defense 0\.1\.0, .* reads schema 2"),
        ({"schema": 3, "versions": 5}, "holds schema 3, written by shadow-defense of an unknown version, "),
    ],
)
def test_damaged_results_are_refused_in_a_line(
    record: RunRecord, tmp_path: Path, damage: dict[str, Any], said: str
) -> None:
    write_json(tmp_path / "results.json", {**record_values(record), **damage})
    with pytest.raises(RunError, match=rf"{said}.*evaluate again$"):
        load_record(RunRecord, tmp_path / "results.json", "evaluate again")


def test_what_is_of_another_day_or_version_is_said(thin: RunRecord) -> None:
    today = Origin("score", "a1", "seed 0, none: ig", "2026-11-22T10:00:00+00:00", thin.versions)
    assert origin_sentences(replace(thin, tasks=(today,))) == []
    earlier = replace(today, key="b2", created="2026-11-20T10:00:00+00:00")
    older = replace(earlier, key="c3", versions={"torch": "2.9.0"}, created="2026-11-19T10:00:00+00:00")
    record = replace(thin, tasks=(today, earlier, older))
    days, versions = origin_sentences(record)
    assert "2 results of 3" in days and "2026-11-19 to 2026-11-20" in days
    assert "1 result of 3" in versions and "torch 2.9.0" in versions
    shown = Page(render_run(record)).shown()
    assert days in shown and versions in shown
    for task in record.tasks:
        assert f"score-{task.key} {task.created} {task.about}" in shown


def test_colour_images_and_long_names(record: RunRecord) -> None:
    name = "a" * 300
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    closest = sight(name, "a", 0.9, client="clinic", round=1, mean_image_ssim=None)
    explained = {1: {name: Explanation(noise=image - 0.5, cam=image[0])}}
    patient = Patient("train/0", "clinic", "face", image, {(name, "a"): image}, explained)
    page = Page(render_run(replace(one_arm(record, name), sights=(closest,)), (patient,)))
    page.check()
    assert name in page.shown()
    assert [image.get("class") for image in page.named("img") if image.get("width")] == [None] * 7


def test_images_are_called_by_words_where_their_name_says_too_little(thin: RunRecord) -> None:
    named = replace(
        thin, data=replace(thin.data, in_words="a real chest radiograph, which client-1 has, and drawn ones")
    )
    assert "trained one model together on a real chest radiograph, which client-1 has" in summary(named)
    assert f"trained one model together on {thin.data.name} (" in summary(thin)
