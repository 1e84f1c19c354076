"""Cards show each image once, and a page starts with few of them."""

from __future__ import annotations

import dataclasses

import torch

from shadow_defense.report.kit.pictures import picture
from shadow_defense.report.pages.run_pictures import MOST_CARDS_AT_ONCE, attack_card, choices, noise_cards
from shadow_defense.report.records.run import ArmPictures, Exhibit


def _exhibit(**scores: float) -> Exhibit:
    image = torch.full((1, 8, 8), 0.5)
    first = ArmPictures(image, {"psnr_whole": 20.0, "ssim_whole": 0.5})
    return Exhibit(
        "train/1", "clinic", "attack", 1, "benign", image, {"none": first, "other": ArmPictures(image, scores)}
    )


def test_card_shows_every_arm_with_its_scores(exhibits: tuple[Exhibit, ...]) -> None:
    exhibit = exhibits[0]
    card = attack_card(exhibit)
    assert card.original.source == picture(exhibit.original, "", "").source
    assert [arm.title for arm in card.arms] == list(exhibit.arms)
    for shown, pictures in zip(card.arms, exhibit.arms.values(), strict=True):
        assert shown.source == picture(pictures.reconstruction, "", "").source
        assert f"PSNR {pictures.scores['psnr_whole']:.1f}" in shown.lines[0].replace("\N{NO-BREAK SPACE}", " ")
    assert "lower" in card.arms[2].lines[0]
    assert "lower" not in card.arms[0].lines[0]


def test_score_lines_compare_with_the_first_arm() -> None:
    lines = attack_card(_exhibit(psnr_whole=23.5, ssim_whole=0.5)).arms[1].lines
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] == [
        "PSNR 23.5 dB, 3.5 higher",
        "SSIM 0.50, same",
    ]


def test_missing_scores_are_dashes() -> None:
    assert attack_card(_exhibit()).arms[1].lines == ("PSNR –", "SSIM –")


def test_an_image_attacked_twice_has_one_noise_card(exhibits: tuple[Exhibit, ...]) -> None:
    cards = noise_cards(exhibits)
    places = [(card.place.client, card.place.round, card.place.sample_id) for card in cards]
    assert len(places) == len(set(places))
    assert set(places) == {(e.client, e.round, e.sample_id) for e in exhibits}
    assert list(cards[0].arms) == ["shadow (authors)", "shadow"]
    titles = [each.title for each in cards[0].arms["shadow (authors)"]]
    assert titles == ["Vulnerability", "Diagnosis (CAM)", "Noise", "Protected", "Rebuilt by shadow"]


def test_arms_without_pictures_of_their_work_get_no_noise_card() -> None:
    assert noise_cards([_exhibit()]) == []


def test_noise_card_shows_only_what_was_kept() -> None:
    exhibit = _exhibit()
    kept = dataclasses.replace(exhibit.arms["other"], protected=torch.zeros(1, 8, 8))
    card = noise_cards([dataclasses.replace(exhibit, arms={"none": exhibit.arms["none"], "other": kept})])[0]
    assert card.limit is None
    assert [each.title for each in card.arms["other"]] == ["Protected"]


def test_small_pictures_grow_by_whole_factors() -> None:
    for width in range(1, 65):
        shown = picture(torch.zeros(1, 2, width), "", "")
        assert shown.pixelated
        assert shown.width % width == 0
        assert 160 <= shown.width < 160 + width
        assert shown.height == 2 * shown.width / width


def test_first_selection_is_small_and_not_empty(exhibits: tuple[Exhibit, ...]) -> None:
    places = [attack_card(exhibit).place for exhibit in exhibits]
    selectors = choices(places)
    assert [selector.key for selector in selectors] == ["attack", "round", "client"]
    shown = [
        place
        for place in places
        if all(s.selected is None or str(getattr(place, s.key)) == s.selected for s in selectors)
    ]
    assert 0 < len(shown) <= MOST_CARDS_AT_ONCE


def test_few_cards_need_no_selectors(exhibits: tuple[Exhibit, ...]) -> None:
    places = [attack_card(exhibit).place for exhibit in exhibits[:MOST_CARDS_AT_ONCE]]
    assert choices(places) == []
