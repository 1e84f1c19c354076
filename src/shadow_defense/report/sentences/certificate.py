"""What a certificate and a calibration of textures say, in words, and what they do not cover."""

from __future__ import annotations

from collections.abc import Mapping

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.progress import duration
from shadow_defense.report.kit.formatting import listed, with_interval
from shadow_defense.report.records.textures import TexturesRecord

COVERED = (
    "Every attack on what leaves a training on the protected images: gradients, updates, buffers, over any number of "
    "rounds, with any model, optimiser and precision, under a server that deviates from the protocol. All of it is "
    "computed from the protected images, and tells no more of the clean ones than they do.",
    "An attacker who knows the method, its settings, the public images and the labels, and not the site's secret.",
)

NOT_COVERED = (
    "Removers that are stronger than those that were run: the bound is one of linear ones alone, where the "
    "public images' mean and covariance are those of the protected images.",
    "Labels, the number of images, and whether somebody's image was trained on (membership).",
    "An attacker who has other images of the same patient.",
    "What a model memorises of the protected images themselves, which are given away here from the start.",
    "Anything else that is computed from clean images and leaves, such as scores on a clean validation set.",
    "A second protection of the same images with other settings: the two together tell more than each.",
)


def certificate_verdict(
    planted: Mapping[str, bool],
    worst: Mapping[str, Estimate],
    mean_image: Mapping[str, Estimate],
    linkage: Mapping[str, Estimate],
) -> tuple[str, ...]:
    """The sentences on top: what the best remover reaches, or why nothing is said."""
    failed = [name for name, broken in planted.items() if not broken]
    if failed:
        return (
            f"The verdict is withheld: the removers did not break {', '.join(failed)}, which any sound one breaks. "
            "Nothing follows from what they failed at. More public images, or more steps of training, may help.",
        )
    sentences = [
        f"Against the clean images, the best remover reaches a PSNR of {_text(worst, 'psnr', 2)} dB and an SSIM of "
        f"{_text(worst, 'ssim', 3)}; the mean of public images, which anybody has, {_text(mean_image, 'psnr', 2)} dB "
        f"and {_text(mean_image, 'ssim', 3)}.",
        f"Given a protected image, its clean one is found first among all that were protected in "
        f"{_text(linkage, 'rank1', 3)} of the cases, and ranks above a random other one in {_text(linkage, 'auc', 3)}.",
    ]
    if "patient_auc" in linkage:
        sentences.append(
            f"Other images of the same patient rank above others' in {_text(linkage, 'patient_auc', 3)} of the cases."
        )
    return tuple(sentences)


def protecting_forecast(seconds: Mapping[str, float]) -> str:
    """How long the networks of a protection will take, before it begins.

    >>> protecting_forecast({"removers": 25200.0, "classifier": 600.0})
    'About 7.2 h: removers (7.0 h; less with fewer --set remover_steps) and classifier (10 min).'
    """
    shorter = {"removers": "; less with fewer --set remover_steps"}
    parts = [f"{name} ({duration(each)}{shorter.get(name, '')})" for name, each in seconds.items()]
    return f"About {duration(sum(seconds.values()))}: {listed(parts)}."


def _text(measures: Mapping[str, Estimate], name: str, digits: int) -> str:
    return with_interval(measures[name], digits)


def textures_verdict(record: TexturesRecord) -> tuple[str, ...]:
    """Of those that meet the target at their weakest the one of the highest macro F1, and what clean images give."""
    meeting = [row for row in record.rows if row.weakest]
    if not meeting:
        return (f"No texture leaves {record.target} at most, at any strength.",)
    best = max(meeting, key=lambda row: row.worth["f1"] or 0.0)
    others = ", ".join(f"{row.arm} ({_f1(row.worth)})" for row in meeting if row is not best)
    return (
        f"At the target {record.target}, {best.arm} keeps most: a macro F1 of {_f1(best.worth)}, where clean images "
        f"give {_f1(record.clean)}." + (f" The others: {others}." if others else ""),
        f"It leaves {best.leaks['psnr']:.2f} dB above the mean image, and {best.leaks['linkage']:.1%} are found first.",
    )


def _f1(worth: Mapping[str, float | None]) -> str:
    return f"{worth['f1'] or 0.0:.3f}"
