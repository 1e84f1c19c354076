"""What a comparison's numbers say, whichever way they point."""

from __future__ import annotations

from collections.abc import Sequence

from shadow_defense.report.kit.formatting import counted, listed, number, plain
from shadow_defense.report.kit.metrics import metric_of
from shadow_defense.report.records.comparison import ComparisonRecord, Plane
from shadow_defense.report.records.scores import Row, ScoreTable
from shadow_defense.report.sentences.differences import direction, sentences_of, unpaired_difference
from shadow_defense.report.sentences.shadow import shadow_sentences


def comparison_verdict(record: ComparisonRecord) -> list[str]:
    """For each model: do the attacks work, what is Shadow Defense worth, who is on the front; then what is missing.

    A difference counts only when its 95 % interval leaves out zero. At most eleven sentences a model, however many
    attacks and defenses there are.
    """
    sentences = []
    for model in dict.fromkeys(table.model for table in record.tables):
        tables = record.pooled(model)
        planes = [plane for plane in record.planes if plane.model == model]
        # Where the first defense was not scored, nothing is known of how well the attack works without defense.
        undefended = [table for table in tables if table.rows[0].arm == record.first]
        said = _attack_sentences(undefended) + shadow_sentences(record.defenses, tables, planes)
        said += _front_sentences([plane for plane in planes if plane.points])
        sentences += [f"{model}: {sentence}" for sentence in said or ["nothing was scored."]]
    return [*sentences, *_missing_sentence(len(record.failures), len(record.left_out))]


def _missing_sentence(failures: int, left_out: int) -> list[str]:
    clauses = []
    if failures:
        clauses.append(f"{counted(failures, 'cell')} of the grid failed")
    if left_out:
        clauses.append(f"{counted(left_out, 'pair')} of model and defense did not fit and stayed out")
    return [f"Not everything was measured: {listed(clauses)}."] if clauses else []


def _attack_sentences(tables: Sequence[ScoreTable]) -> list[str]:
    works: list[str] = []
    fails: list[str] = []
    unknown: list[str] = []
    named: dict[str, None] = {}
    for table in tables:
        first, guesses = table.rows[0], [row for row in table.rows if row.baseline]
        named |= dict.fromkeys(f"the {row.arm}" for row in guesses)
        beaten = all(_beats(first, guess, key) for guess in guesses for key in ("psnr_whole", "ssim_whole"))
        outcome = unknown if not guesses else works if beaten else fails
        outcome.append(f"{table.attack} ({_against(first, guesses)})" if guesses else table.attack)
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


def _beats(first: Row, guess: Row, key: str) -> bool:
    # What the guess reaches less what the attack reaches: paired where the engine paired it.
    difference = guess.difference.get(key) or unpaired_difference(guess.metrics.get(key), first.metrics.get(key))
    return direction(difference) < 0


def _against(first: Row, guesses: Sequence[Row]) -> str:
    def mean(row: Row, key: str, digits: int) -> str:
        return plain(number(row.metrics[key].mean, digits)) if key in row.metrics else "unmeasured"

    return ", ".join(
        f"{label} {mean(first, key, digits)} against {listed([mean(guess, key, digits) for guess in guesses])}"
        for label, key, digits in (("PSNR", "psnr_whole", 1), ("SSIM", "ssim_whole", 2))
    )


def _front_sentences(planes: Sequence[Plane]) -> list[str]:
    clauses = []
    for plane in planes:
        if not plane.ranked:
            clauses.append(f"under {plane.attack}: nobody, since the attack does not clearly beat a guess there")
            continue
        metric = metric_of(plane.metric)
        front = sorted((point for point in plane.points if point.on_front), key=plane.goodness, reverse=True)
        names = listed([point.arm for point in front])
        clauses.append(f"under {plane.attack} ({metric.label} against macro F1): {names}")
    return sentences_of("on the Pareto front by the means, best protected first, ", clauses)
