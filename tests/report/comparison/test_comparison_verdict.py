"""The verdict says what the numbers say: crafted comparisons in which Shadow wins, loses, or equals its control."""

from __future__ import annotations

from typing import Any

from shadow_defense.report.comparison_content import plane_front
from shadow_defense.report.sentences.comparison import verdict
from shadow_defense.report.sentences.differences import direction, unpaired_difference
from shadow_defense.report.sentences.shadow import shadow_names, uniform_control

Numbers = tuple[float, float, float]
"""PSNR, SSIM, macro F1."""

NONE = (25.0, 0.9, 0.8)
GUESSES = {"mean image": (14.0, 0.4, 0.0), "random update": (9.0, 0.1, 0.0)}


def measure(mean: float, half: float) -> dict[str, Any]:
    return {"mean": mean, "interval": [mean - half, mean + half]}


def crafted(
    arms: dict[str, Numbers],
    *,
    half: float = 0.01,
    none: Numbers = NONE,
    attacks: tuple[str, ...] = ("inversion",),
) -> dict[str, Any]:
    """A comparison on one model; ``half`` is half of every interval, in units of SSIM and F1, and in 10 dB."""
    everyone = {"fedavg": none, **arms}
    rows = []
    for name, (psnr, ssim, f1) in {**everyone, **GUESSES}.items():
        guess = name in GUESSES
        rows.append(
            {
                "defense": name,
                "images": 8,
                "seeds": 3,
                "metrics": {"psnr_whole": measure(psnr, 10 * half), "ssim_whole": measure(ssim, half)},
                "difference": None
                if name == "fedavg"
                else {"psnr_whole": measure(psnr - none[0], 10 * half), "ssim_whole": measure(ssim - none[1], half)},
                "utility": None if guess else {"f1_macro": measure(f1, half)},
                "utility_difference": None if guess else {"f1_macro": measure(f1 - none[2], half)},
            }
        )
    points: list[dict[str, Any]] = [
        {"defense": row["defense"], "privacy": row["metrics"]["ssim_whole"], "utility": row["utility"]["f1_macro"]}
        for row in rows
        if row["utility"]
    ]
    for point, on_front in zip(points, plane_front("ssim_whole", points), strict=True):
        point["on_front"] = on_front
    place = {"model": "convnet", "metric": "ssim_whole", "round": None, "baseline": {}}
    kinds = {"shadow": {}, "control": {"placement": "uniform"}}
    return {
        "defenses": {
            name: {
                "defense": "shadow" if name in kinds else "none",
                "preset": "paper",
                "options": kinds.get(name, {}),
                "share_bn": "all",
            }
            for name in everyone
        },
        "tables": [{**place, "attack": attack, "rows": rows} for attack in attacks],
        "planes": [{**place, "attack": attack, "points": points} for attack in attacks],
        "failures": [],
        "left_out": [],
    }


def test_shadow_wins() -> None:
    said = verdict(crafted({"shadow": (13.0, 0.3, 0.795), "control": (18.0, 0.6, 0.7), "noise": (20.0, 0.7, 0.6)}))
    assert said == [
        "convnet: without defense, inversion (PSNR 25.0 against 14.0 and 9.0, SSIM 0.90 against 0.40 and 0.10) clearly "
        "beats the mean image and the random update in PSNR and SSIM: the leak is real.",
        "convnet: against no defense, under inversion, shadow clearly lowered PSNR and SSIM (PSNR -12.0 ± 0.1 dB, "
        "SSIM -0.60 ± 0.01).",
        "convnet: against its uniform-noise control of equal energy, Shadow Defense let clearly less through in 1 "
        "(shadow under inversion) of 1 pair, clearly more in 0, and neither in 0 (from intervals that are not paired "
        "by image, so wider than need be).",
        "convnet: macro F1 was not clearly changed by shadow (-0.005 ± 0.010).",
        "convnet: macro F1 against that of the uniform control was clearly better in 1 (shadow) of 1 pair, clearly "
        "worse in 0.",
        "convnet: under inversion, no other defense dominates shadow.",
        "convnet: on the Pareto front by the means, best protected first, under inversion (SSIM against macro F1): "
        "shadow and fedavg.",
    ]


def test_shadow_loses() -> None:
    said = verdict(crafted({"shadow": (25.0, 0.95, 0.7), "control": (18.0, 0.6, 0.75), "noise": (20.0, 0.7, 0.8)}))
    text = " ".join(said)
    assert "shadow clearly raised PSNR or SSIM (PSNR 0.0 ± 0.1 dB, SSIM +0.05 ± 0.01)" in text
    assert "let clearly less through in 0 of 1 pair, clearly more in 1 (shadow under inversion)" in text
    assert "macro F1 was clearly lower with shadow (-0.100 ± 0.010)" in text
    assert "clearly better in 0 of 1 pair, clearly worse in 1 (shadow)" in text
    assert (
        "other defenses dominate (by the means; in brackets those clearly ahead in privacy or F1) shadow by 3" in text
    )
    assert "(fedavg, control and noise)" in text
    assert said[-1].endswith(": control and noise.")


def test_what_holds_for_every_attack_is_said_once() -> None:
    arms = {"shadow": (25.0, 0.95, 0.7), "noise": (20.0, 0.7, 0.8)}
    (said,) = [text for text in verdict(crafted(arms, attacks=("a", "b", "c"))) if "dominate" in text]
    assert said == (
        "convnet: under a, other defenses dominate (by the means; in brackets those clearly ahead in privacy or F1) "
        "shadow by 2 (fedavg and noise); under b, other defenses dominate shadow by 2 (fedavg and noise); under c, "
        "other defenses dominate shadow by 2 (fedavg and noise)."
    )


def test_control_equal() -> None:
    text = " ".join(verdict(crafted({"shadow": (15.0, 0.4, 0.78), "control": (15.05, 0.405, 0.781)})))
    assert "let clearly less or more through in none of 1 pair" in text
    assert "where the noise goes made no difference that can be told here" in text
    assert "clearly better in 0 of 1 pair, clearly worse in 0." in text


def test_wide_intervals_make_nothing_clear() -> None:
    text = " ".join(verdict(crafted({"shadow": (18.0, 0.5, 0.7), "control": (22.0, 0.8, 0.6)}, half=1.0)))
    assert "inversion (PSNR" in text
    assert "does not clearly beat the mean image and the random update in both PSNR and SSIM" in text
    assert "shadow clearly lowered neither PSNR nor SSIM" in text
    assert "less or more through in none of 1 pair" in text
    assert "macro F1 was not clearly changed by shadow" in text


def test_only_one_metric_is_lowered() -> None:
    text = " ".join(verdict(crafted({"shadow": (25.0, 0.5, 0.8)})))
    assert "shadow clearly lowered only one of PSNR and SSIM" in text
    assert "no uniform-noise control" in text


def test_an_attack_below_one_guess_proves_no_leak() -> None:
    text = " ".join(verdict(crafted({"shadow": (10.0, 0.2, 0.8)}, none=(13.0, 0.5, 0.8))))
    assert "the leak is real" not in text
    assert "differences between defenses say little there" in text


def test_only_guesses_that_were_measured_are_named() -> None:
    comparison = crafted({"shadow": (13.0, 0.3, 0.79)})
    table = comparison["tables"][0]
    table["rows"] = [row for row in table["rows"] if row["defense"] != "random update"]
    assert "clearly beats the mean image in PSNR and SSIM" in verdict(comparison)[0]
    table["rows"] = [row for row in table["rows"] if row["defense"] != "mean image"]
    assert "nothing to compare inversion with" in verdict(comparison)[0]


def test_paired_differences_to_the_control_come_first() -> None:
    comparison = crafted({"shadow": (15.0, 0.4, 0.78), "control": (15.05, 0.405, 0.781)})
    row = next(row for row in comparison["tables"][0]["rows"] if row["defense"] == "shadow")
    row["control_difference"] = {
        "psnr_whole": measure(-0.05, 0.01),
        "ssim_whole": measure(-0.005, 0.001),
        "f1_macro": measure(-0.001, 0.0005),
    }
    text = " ".join(verdict(comparison))
    assert "let clearly less through in 1 (shadow under inversion)" in text
    assert "(paired by image)" in text
    assert "clearly worse in 1 (shadow)" in text


def test_many_attacks_and_strengths_stay_short(comparison: dict[str, Any]) -> None:
    said = verdict(comparison)
    for model in comparison["models"]:
        assert 5 <= sum(sentence.startswith(f"{model}: ") for sentence in said) <= 12
    assert said[-1] == (
        "Not everything was measured: 1 cell of the grid failed and 1 pair of model and defense did not fit and "
        "stayed out."
    )
    many = crafted({"shadow": (15.0, 0.4, 0.7), "control": (16.0, 0.5, 0.7)}, attacks=tuple("abcdefgh"))
    assert len(verdict(many)) <= 12
    assert (
        "let clearly less through in 8 (shadow under a, shadow under b, shadow under c, shadow under d and 4 more)"
        in (" ".join(verdict(many)))
    )


def test_without_shadow_nothing_is_said_of_it() -> None:
    said = verdict(crafted({"noise": (15.0, 0.4, 0.7)}))
    assert len(said) == 2
    assert not [sentence for sentence in said if "Shadow" in sentence]


def test_single_round_tables_do_when_there_is_no_other() -> None:
    comparison = crafted({"shadow": (13.0, 0.3, 0.79)})
    pooled = verdict(comparison)
    comparison["tables"][0]["round"] = 1
    assert verdict(comparison) == pooled
    worse = {**comparison["tables"][0], "round": None, "rows": []}
    assert verdict({**comparison, "tables": [*comparison["tables"], worse]}) == pooled


def test_the_control_of_a_point_has_its_strength_and_sharing() -> None:
    defenses = {
        f"{placement} {strength} {share}": {
            "defense": "shadow",
            "preset": "paper",
            "options": {"strength": strength, "placement": placement},
            "share_bn": share,
        }
        for placement in ("targeted", "uniform", "shuffled")
        for strength in (0.19, 1.0)
        for share in ("all", "none")
    }
    assert shadow_names(defenses) == [name for name in defenses if name.startswith("targeted")]
    assert uniform_control("targeted 1.0 none", defenses) == "uniform 1.0 none"
    del defenses["uniform 1.0 none"]
    assert uniform_control("targeted 1.0 none", defenses) is None


def test_interval_that_touches_zero_is_not_clear() -> None:
    assert [direction({"mean": 1.0, "interval": ends}) for ends in ([0.0, 2.0], [0.1, 1.9], [-3.0, -0.1])] == [0, 1, -1]
    difference = unpaired_difference({"mean": 1.0, "interval": [0.7, 1.3]}, {"mean": 0.0, "interval": [-0.4, 0.4]})
    assert difference is not None
    assert [round(end, 9) for end in difference["interval"]] == [0.5, 1.5]


def test_nothing_is_said_of_an_attack_without_defense_that_was_not_scored() -> None:
    """Its cells may have failed: the first row is then another defense's."""
    comparison = crafted({"shadow": (13.0, 0.3, 0.795), "noise": (20.0, 0.7, 0.6)})
    for table in comparison["tables"]:
        table["rows"] = [row for row in table["rows"] if row["defense"] != "fedavg"]
    assert not any("without defense" in sentence for sentence in verdict(comparison))


def test_a_model_without_scores_is_said_to_have_none() -> None:
    """Where the first defense's training failed on every seed."""
    comparison = crafted({"noise": (20.0, 0.7, 0.6)})
    for table in comparison["tables"]:
        table["rows"] = []
    for plane in comparison["planes"]:
        plane["points"] = []
    assert verdict(comparison) == ["convnet: nothing was scored."]
