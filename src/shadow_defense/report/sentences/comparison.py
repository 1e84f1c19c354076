"""What a comparison's numbers say, in plain sentences, whichever way they point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shadow_defense.report.comparison_content import BASELINES, goodness
from shadow_defense.report.kit.formatting import listed, metric_and_region, metric_named
from shadow_defense.report.sentences.differences import direction, sentences_of, unpaired_difference
from shadow_defense.report.sentences.shadow import shadow_sentences


def verdict(comparison: Mapping[str, Any]) -> list[str]:
    """For each model: do the attacks work, what is Shadow Defense worth, who is on the front; then what is missing.

    A difference counts only when its 95 % interval leaves out zero. At most eleven sentences a model, however many
    attacks and defenses there are.
    """
    sentences = []
    for model in dict.fromkeys(table["model"] for table in comparison["tables"]):
        tables = pooled_tables(comparison, model)
        planes = [plane for plane in comparison["planes"] if plane["model"] == model]
        first = next(iter(comparison["defenses"]), None)
        # Where the first defense was not scored, nothing is known of how well the attack works without defense.
        undefended = [table for table in tables if table["rows"][0]["defense"] == first]
        said = _attack_sentences(undefended) + shadow_sentences(comparison["defenses"], tables, planes)
        said += _front_sentences([plane for plane in planes if plane["points"]])
        sentences += [f"{model}: {sentence}" for sentence in said or ["nothing was scored."]]
    return [*sentences, *_missing_sentence(len(comparison["failures"]), len(comparison["left_out"]))]


def _missing_sentence(failures: int, left_out: int) -> list[str]:
    clauses = []
    if failures:
        clauses.append(f"{failures} cell{'' if failures == 1 else 's'} of the grid failed")
    if left_out:
        clauses.append(f"{left_out} pair{'' if left_out == 1 else 's'} of model and defense did not fit and stayed out")
    return [f"Not everything was measured: {listed(clauses)}."] if clauses else []


def pooled_tables(comparison: Mapping[str, Any], model: str) -> list[Mapping[str, Any]]:
    """One table for each attack on that model: all attacked rounds together, else the first round there is."""
    tables: dict[str, Mapping[str, Any]] = {}
    for table in sorted(comparison["tables"], key=lambda table: table["round"] is not None):
        if table["model"] == model and table["rows"]:
            tables.setdefault(table["attack"], table)
    return list(tables.values())


def _attack_sentences(tables: list[Mapping[str, Any]]) -> list[str]:
    works: list[str] = []
    fails: list[str] = []
    unknown: list[str] = []
    named: dict[str, None] = {}
    for table in tables:
        first = table["rows"][0]
        guesses = [row for row in table["rows"] if row["defense"] in BASELINES]
        named |= dict.fromkeys(f"the {row['defense']}" for row in guesses)
        beaten = all(_beats(first, guess, key) for guess in guesses for key in ("psnr_whole", "ssim_whole"))
        outcome = unknown if not guesses else works if beaten else fails
        outcome.append(f"{table['attack']} ({_against(first, guesses)})" if guesses else table["attack"])
    every = listed(list(named))
    sentences = []
    if works:
        sentences.append(
            f"without defense, {listed(works)} clearly {'beats' if len(works) == 1 else 'beat'} {every} in PSNR and "
            "SSIM: the leak is real."
        )
    if fails:
        sentences.append(
            f"without defense, {listed(fails)} {'does' if len(fails) == 1 else 'do'} not clearly beat {every} in both "
            "PSNR and SSIM: differences between defenses say little there."
        )
    if unknown:
        sentences.append(f"no baseline was measured: there is nothing to compare {listed(unknown)} with.")
    return sentences


def _beats(first: Mapping[str, Any], guess: Mapping[str, Any], key: str) -> bool:
    # What the guess reaches less what the attack reaches: paired where the engine paired it.
    paired = (guess["difference"] or {}).get(key)
    difference = paired or unpaired_difference(guess["metrics"].get(key), first["metrics"].get(key))
    return direction(difference) < 0


def _against(first: Mapping[str, Any], guesses: list[Mapping[str, Any]]) -> str:
    def mean(row: Mapping[str, Any], key: str, digits: int) -> str:
        value = row["metrics"].get(key)
        return "unmeasured" if value is None else f"{value['mean']:.{digits}f}"

    return ", ".join(
        f"{label} {mean(first, key, digits)} against {listed([mean(guess, key, digits) for guess in guesses])}"
        for label, key, digits in (("PSNR", "psnr_whole", 1), ("SSIM", "ssim_whole", 2))
    )


def _front_sentences(planes: list[Mapping[str, Any]]) -> list[str]:
    clauses = []
    for plane in planes:
        metric = metric_named(metric_and_region(plane["metric"])[0])
        front = [point for point in plane["points"] if point["on_front"]]
        front.sort(key=lambda point: goodness(plane["metric"], point), reverse=True)
        names = listed([point["defense"] for point in front])
        clauses.append(f"under {plane['attack']} ({metric.label} against macro F1): {names}")
    return sentences_of("on the Pareto front by the means, best protected first, ", clauses)
