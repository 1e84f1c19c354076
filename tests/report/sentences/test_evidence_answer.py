"""What a study answers, from settings made by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.pages.evidence import _bars
from shadow_defense.report.records.evidence import PUBLIC_ALONE, EvidenceRecord, Left, Setting, Together, Worth
from shadow_defense.report.sentences.evidence import answer


def near(mean: float, half: float, count: int = 100) -> Estimate:
    return Estimate(mean, (mean - half, mean + half), count)


WORTH = Worth(f1=near(0.9, 0.02), f1_of_seeds=(0.9,), auroc=None, balanced=Estimate(0.9, None, 1))


def setting(arm: str, lost: float, above: float, found: float, half: float = 0.001, **changes: Any) -> Setting:
    left = Left(by="worst case", above=near(above, half), ssim=near(0.5, 0.1), found=near(found, half), gallery=900)
    bounded = replace(left, bounded=True)
    return replace(Setting(model="net", arm=arm, worth=WORTH, f1_lost=near(lost, half), left=bounded), **changes)


OPEN_HOUSE = replace(setting("fedavg", 0.0, 9.0, 1.0), f1_lost=None)


def said(*settings: Setting, missing: dict[str, int] | None = None, first: Setting | None = None) -> list[str]:
    """Of a record that holds these settings after one without defense."""
    whole = [first or Setting(model="net", arm="fedavg", worth=WORTH), *settings]
    given = {"settings": tuple(whole), "missing": missing or {}, "defenses": {"fedavg": None}}
    record = object.__new__(EvidenceRecord)
    for field in fields(EvidenceRecord):
        object.__setattr__(record, field.name, given.get(field.name))
    return answer(record)


def test_a_setting_that_meets_all_bars_is_named() -> None:
    found = said(setting("good", 0.005, 1.0, 0.02), setting("leaky", 0.0, 5.0, 0.02))
    assert "net: yes: good (F1 lost 0.5" in found[1] and "leaky" not in found[1]


def test_what_the_intervals_do_not_settle_is_not_shown_and_what_would_is_said() -> None:
    """Half of 0.03 around a loss that lies 0.005 below its bar: (0.03 / 0.005)^2 = 36 times the trainings."""
    found = said(setting("open", 0.005, 1.0, 0.02, half=0.03), setting("leaky", 0.0, 5.0, 0.02))
    assert "net: open: open comes nearest" in found[1]
    assert found[1].endswith("not settled: the cost in F1.")
    had = len(WORTH.f1_of_seeds)
    wanted = f"{36 * had} trainings of each in place of {had} for the cost in F1 of open"
    assert any(wanted in each for each in found)


def test_the_answers_of_all_models_come_before_what_is_beside_them() -> None:
    """Who opens the page reads them on its first screen."""
    found = said(*(setting("good", 0.005, 1.0, 0.02, model=model, on_front=True) for model in ("small", "large")))
    starts = [each.split(": ")[0:2] for each in found if ": on the front" in each or ": yes" in each]
    assert [model for model, _ in starts] == ["small", "large", "small", "large"]
    assert [what[:3] for _, what in starts] == ["yes", "yes", "on ", "on "]


def test_a_clear_miss_everywhere_is_a_no() -> None:
    found = said(setting("leaky", 0.0, 5.0, 0.9), setting("costly", 0.3, 1.0, 0.02))
    assert "net: no: every arm clearly misses a bar; costly" in found[1] and "misses the cost in F1" in found[1]


def test_the_nearest_is_the_cheapest_of_those_that_hide_the_images() -> None:
    """Not the one that costs nothing and leaves much open, nor the strongest, which hides no more of the bars."""
    wide = {"f1_lost": near(0.02, 0.03)}
    mild, strong = (
        setting("mild", 0.02, 1.9, 0.049, **wide),
        setting("strong", 0.05, 0.1, 0.0, f1_lost=near(0.05, 0.05)),
    )
    found_open = setting("free", 0.0, 1.0, 0.05)
    for order in ((found_open, strong, mild), (mild, found_open, strong)):
        found = said(*order)
        assert "net: open: mild comes nearest" in found[1]
        assert any("the cost in F1 of mild" in each for each in found)


def test_where_all_miss_a_bar_the_cheapest_that_hides_the_images_is_named() -> None:
    found = said(setting("strong", 0.3, 0.1, 0.0), setting("mild", 0.2, 1.0, 0.02), setting("leaky", 0.0, 5.0, 0.02))
    assert "net: no: every arm clearly misses a bar; mild" in found[1]


def test_a_worst_case_that_misses_a_bar_decides_before_the_cost_is_known() -> None:
    """And as long as something else is open the answer waits for it."""
    more, less = (setting(arm, 0.0, left, 0.9, f1_lost=None) for arm, left in (("more", 9.0), ("less", 5.0)))
    hidden = setting("hidden", 0.0, 1.0, 0.02, f1_lost=None)
    assert "net: no: every arm clearly misses a bar; less (5.0" in said(more, less)[1]
    assert said(more, hidden, less)[1] == "net: no answer yet: a bar is clearly missed by 2 of 3 arms."
    withheld = Setting(model="net", arm="decoys", worth=WORTH, f1_lost=near(0.3, 0.01), withheld=True)
    assert "net: no: every arm clearly misses a bar; less" in said(more, less, withheld)[1], "nothing more comes of it"
    assert said(hidden)[1] == "net: nothing was measured far enough for an answer."
    assert [_bars(each) for each in (more, hidden)] == ["–, no, no", "–"]


def test_the_closest_in_hindsight_stands_beside_what_is_believed() -> None:
    attacked = setting("attacked", 0.3, 1.0, 0.0)
    assert attacked.left is not None
    left = replace(attacked.left, by="ig, round 1", bounded=False, closest=near(4.0, 0.5))
    (found,) = [each for each in said(replace(attacked, left=left), first=OPEN_HOUSE) if "misses" in each]
    assert "by ig, round 1 (4.0 ± 0.5 in hindsight)" in found


def test_what_attacks_alone_found_bounds_nothing() -> None:
    """However little an attack found, another may find more."""
    attacked = setting("attacked", 0.0, -1.0, 0.0)
    assert attacked.left is not None
    by_attack = replace(attacked.left, by="ig, round 1", bounded=False)
    unbounded = replace(attacked, left=by_attack, tried=by_attack)
    assert set(attacked.outcomes().values()) == {"met"}
    assert unbounded.outcomes() == {"f1": "met", "left": "open", "found": "open"}
    much = replace(attacked.left, above=near(9.0, 1.0), bounded=False)
    assert replace(unbounded, left=much).outcomes()["left"] == "missed"
    open_house = replace(unbounded, arm="fedavg", left=much, tried=much)
    assert "net: open: attacked comes nearest" in said(unbounded, first=open_house)[1]


def test_attacks_that_fail_without_a_defense_say_nothing_of_one() -> None:
    attacked = setting("attacked", 0.0, -6.0, 0.0)
    assert attacked.left is not None
    failing = replace(attacked.left, by="ig, round 1", bounded=False)
    first = replace(attacked, arm="fedavg", left=failing, tried=failing)
    found = said(replace(attacked, left=failing, tried=failing), first=first)
    assert found[1] == "net: nothing was measured far enough for an answer."
    assert "without a defense, ig, round 1 leaves -6.0" in found[-1]
    # A server's own layer does not fail there.
    read = replace(attacked.left, by="malicious server, 3 rounds", above=near(9.0, 1.0), bounded=False)
    assert "net: no: every arm clearly misses a bar; attacked" in said(replace(attacked, left=read), first=first)[1]


def test_public_images_alone_stand_beside_and_what_is_missing_is_said() -> None:
    alone = Setting(model="net", arm=PUBLIC_ALONE, worth=WORTH, f1_lost=near(0.0, 0.01))
    found = said(setting("good", 0.005, 1.0, 0.02), alone, missing={"attack": 3})
    (beside,) = [each for each in found if "public images alone" in each]
    assert "F1 0.900" in beside and "is not shown" in beside, "as good as the clients' own"
    (beside,) = [each for each in said(replace(alone, f1_lost=near(0.1, 0.01))) if "public images alone" in each]
    assert "counted from there" in beside
    assert found[-1] == "Not all of the study is there. Still to be computed: 3 attacks."


def test_what_is_added_to_the_reading_network_is_said_of_each_arm() -> None:
    more, nothing = (
        setting(arm, 0.0, 1.0, 0.02, together=Together(worth=WORTH, auroc_added=near(gain, 0.005), f1_lost=None))
        for arm, gain in (("a", 0.01), ("b", 0))
    )
    (both,) = [each for each in said(more, nothing) if "reading network" in each]
    assert "by a 1.0 ± 0.5" in both and "by b not shown" in both
    leaky = replace(more, arm="leaky", left=setting("leaky", 0.0, 5.0, 0.02).left)
    assert not [each for each in said(more, leaky) if "by leaky" in each or "and leaky" in each], "hides nothing"
    (neither,) = [each for each in said(nothing) if "reading network" in each]
    assert "not shown of any arm" in neither
    assert not [each for each in said(setting("c", 0.0, 1.0, 0.02)) if "reading network" in each]


def test_what_both_answers_cost_is_said_of_arms_that_hide_the_images() -> None:
    both = Together(worth=WORTH, auroc_added=near(0.01, 0.005), f1_lost=near(0.002, 0.004))
    hidden, seen = setting("a", 0.05, 1.0, 0.02, together=both), setting("b", 0.05, 3.0, 0.02, together=both)
    (found,) = [each for each in said(hidden, seen) if "where both answer" in each]
    assert "network: a 0.2 ± 0.4 points (met)." in found
    assert not [each for each in said(seen) if "where both answer" in each]
