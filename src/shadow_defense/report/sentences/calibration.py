"""What a calibration found, whichever way it points."""

from __future__ import annotations

from shadow_defense.metrics.limit import Limit
from shadow_defense.report.kit.formatting import counted
from shadow_defense.report.kit.metrics import METRICS
from shadow_defense.report.records.calibration import CalibrationRecord, Leakage, ScheduleEntry


def calibration_verdict(record: CalibrationRecord) -> list[str]:
    """The choice, the undefended attack, each schedule, then what speaks against it."""
    entries = record.schedules.items()
    return [
        *chosen_sentences(record),
        undefended_sentence(record),
        *(schedule_sentence(name, entry, record.target) for name, entry in entries),
        *(sentence for name, entry in entries for sentence in doubt_sentences(name, entry)),
    ]


def amount(metric: str, value: float) -> str:
    """A value of leakage as it is written in a sentence.

    >>> amount("psnr", 21.26), amount("ssim", 0.4)
    ('21.3 dB', '0.40')
    """
    return f"{value:.1f} dB" if metric == "psnr" else f"{value:.2f}"


def _leaked(metric: str, leakage: Leakage) -> str:
    """Without a mention of rounds for the mean image, which has none."""
    low, high = amount(metric, leakage.low), amount(metric, leakage.high)
    return f"{METRICS[metric].label} {amount(metric, leakage.mean)} [{low}, {high}]"


def undefended_sentence(record: CalibrationRecord) -> str:
    """What the attack reaches without defense, beside what the mean image shows."""
    metric = record.target.metric
    leaked, blank = record.undefended.leakage[metric], record.mean_image[metric]
    against = f"{_leaked(metric, leaked)} in round {leaked.round}, the mean image {_leaked(metric, blank)}"
    if leaked.low > blank.mean:
        return f"Without defense {record.attack} rebuilds more than the mean image shows ({against})."
    return (
        f"Without defense {record.attack} does not clearly beat the mean image ({against}): with this model, batch "
        "and budget there is little to calibrate against."
    )


def schedule_sentence(name: str, entry: ScheduleEntry, target: Limit) -> str:
    """What bisection found for one schedule."""
    goal = f"{METRICS[target.metric].label} {amount(target.metric, target.value)}"
    certain, average, strongest = entry.certain, entry.average, entry.measurements[-1]
    if entry.outcome == "not needed":
        return (
            f"{name}: the attack stays below {goal} without any defense: strength 0 is enough, and calibrating against "
            "an attack that fails anyway proves nothing. Take one that succeeds (more iterations, clients of one "
            "image, a smooth model without batch norm), or a lower target."
        )
    if average.holds is None:
        on_average = "even the mean stays at or above the target throughout"
    elif average.fails is None:
        on_average = "the mean alone is below it at every strength"
    else:
        on_average = f"the mean alone is below it from {average.holds:g} on ({average.fails:g} is not)"
    if entry.outcome == "not enough":
        return (
            f"{name}: even strength {strongest.strength:g} is not surely below {goal} "
            f"({_leaked(target.metric, strongest.leakage[target.metric])}); {on_average}. Raise --most, attack more "
            "images for a narrower interval, or take a higher target."
        )
    leaks = "" if entry.leaks is None else f"; up to {entry.leaks:g} the whole interval lies at or above it"
    return (
        f"{name}: strength {certain.holds:g} is the weakest measured whose 95 % interval lies below {goal} in every "
        f"attacked round ({certain.fails:g} does not); {on_average}{leaks}."
    )


def doubt_sentences(name: str, entry: ScheduleEntry) -> list[str]:
    """Where measurements contradict the belief that more noise leaks less, on which bisection rests."""
    sentences = []
    for rise in entry.rises:
        weight = "and the intervals do not overlap" if rise.clear else "within the intervals, so it may be chance"
        sentences.append(f"{name}: strength {rise.stronger:g} leaks more on average than {rise.weaker:g}, {weight}.")
    if entry.held_earlier:
        held = ", ".join(f"{strength:g}" for strength in entry.held_earlier)
        sentences.append(
            f"{name}: strength {held} was below the target although {entry.certain.fails:g} was not: leakage is "
            "not monotone here, or the interval is a matter of chance; more seeds would tell."
        )
    return sentences


def chosen_sentences(record: CalibrationRecord) -> list[str]:
    """Which setting is the weakest, what it costs, and where another measure of leakage says otherwise."""
    chosen = record.chosen
    if chosen is None:
        return []
    images, seeds = chosen.leakage[record.target.metric].images, len(record.seeds)
    cost = chosen.f1_difference
    certainty = (
        "one training each: no interval"
        if cost.interval is None
        else f"95 % interval over {seeds} seeds {100 * cost.interval[0]:+.1f} to {100 * cost.interval[1]:+.1f}"
    )
    sentences = [
        f"The weakest setting found: {chosen.schedule} {chosen.strength:g}, whose noise averages "
        f"{chosen.mean_amplitude:.2f} of the images' peak over the rounds ({images} attacked images, "
        f"{counted(seeds, 'seed')}). It changes macro F1 by {100 * cost.mean:+.1f} points ({certainty})."
    ]
    for metric, leakage in chosen.leakage.items():
        blank = record.mean_image[metric]
        if metric != record.target.metric and leakage.low > blank.mean:
            sentences.append(
                f"By {METRICS[metric].label} the attack still beats the mean image at this setting "
                f"({_leaked(metric, leakage)} against {_leaked(metric, blank)}): the target says less than it seems."
            )
    return sentences
