"""The contact sheet shows the closest of all attackers; noise cards show what was kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.report.sights import sight

from shadow_defense.report.kit.pictures import picture
from shadow_defense.report.pages.run import outcome
from shadow_defense.report.pages.run_pictures import contact_sheet, noise_cards
from shadow_defense.report.records.run import BEST_REMOVER, Explanation, Patient, RunRecord, Sight


def _patient(record: RunRecord, sights: tuple[Sight, ...]) -> tuple[RunRecord, Patient]:
    rebuilt = {(each.arm, each.attack): torch.full((1, 8, 8), each.ssim) for each in sights}
    patient = Patient("train/0", "hospital-1", "face", torch.zeros(1, 8, 8), rebuilt)
    return replace(record, sights=sights), patient


def test_a_sheet_shows_the_closest_attacker_of_each_arm(record: RunRecord) -> None:
    sights = (
        sight("no defense", "gradinversion", 0.9),
        sight("no defense", "inverting gradients", 0.95),
        sight("shadow", BEST_REMOVER, 0.4),
        sight("shadow", "gradinversion", 0.1),
    )
    (row,) = contact_sheet(*_sheet(record, sights))
    original, first, _, shadow, control = row.tiles
    assert original is not None and original.recognition is None
    assert first is not None and first.recognition == "recognisable"
    assert first.picture.source == picture(torch.full((1, 8, 8), 0.95), "", "").source
    assert shadow is not None and shadow.recognition == "partly"
    assert shadow.picture.lines[0] == "by best remover"
    assert control is None


def _sheet(record: RunRecord, sights: tuple[Sight, ...]) -> tuple[RunRecord, list[Patient]]:
    changed, patient = _patient(record, sights)
    return changed, [patient]


def test_a_leaking_arm_is_no_success(record: RunRecord) -> None:
    """Lower than without defense and still recognisable: the first screen says so."""
    changed, patient = _patient(
        record, (sight("no defense", "gradinversion", 0.95), sight("shadow", "gradinversion", 0.6))
    )
    shown = outcome(changed, [patient])
    assert shown is not None
    assert [tile.recognition for tile in shown.tiles] == [None, "recognisable", "recognisable"]
    assert shown.facts[0] == ("Shadow, worst case of all attackers", "1 of 1 image recognisable")


def test_attackers_are_told_apart_by_what_they_know(record: RunRecord) -> None:
    attacks = {name: replace(attack, knows_defense=name == "gradinversion") for name, attack in record.attacks.items()}
    sights = (
        sight("no defense", "inverting gradients", 0.9),
        sight("shadow", "inverting gradients", 0.2),
        sight("shadow", "gradinversion", 0.7),
        sight("shadow", BEST_REMOVER, 0.3),
    )
    changed, patient = _patient(replace(record, attacks=attacks), sights)
    shown = outcome(changed, [patient])
    assert shown is not None
    facts = dict(shown.facts)
    assert facts["Shadow, worst case of all attackers"] == "1 of 1 image recognisable"
    assert facts["Attacks that do not know the defense"] == "none of 1 image recognisable"
    assert facts["Attackers who know the defense"] == "1 of 1 image recognisable"
    assert facts["Best remover"] == "none of 1 image recognisable"
    cells = {column.title: column.cell("no defense").value for column in shown.arms.columns}
    assert cells["Best remover"] == "not tried"


def test_each_round_has_one_noise_card(record: RunRecord, patients: tuple[Patient, ...]) -> None:
    cards = noise_cards(record, patients)
    assert len(cards) == len(patients)
    assert list(cards[0].arms) == ["Shadow (authors)", "Shadow"]
    titles = [each.title for each in cards[0].arms["Shadow (authors)"]]
    assert titles == ["Vulnerability", "Diagnosis (CAM)", "Noise", "Protected", "Rebuilt by shadow"]


def test_noise_card_shows_only_what_was_kept(record: RunRecord) -> None:
    image = torch.full((1, 8, 8), 0.5)
    kept = {1: {"shadow": Explanation(protected=torch.zeros(1, 8, 8))}}
    (card,) = noise_cards(record, [Patient("train/1", "clinic", "benign", image, {}, kept)])
    assert card.limit is None
    assert [each.title for each in card.arms["Shadow"]] == ["Protected"]


def test_small_pictures_grow_by_whole_factors() -> None:
    for width in range(1, 65):
        shown = picture(torch.zeros(1, 2, width), "", "")
        assert shown.pixelated
        assert shown.width % width == 0
        assert 160 <= shown.width < 160 + width
        assert shown.height == 2 * shown.width / width
