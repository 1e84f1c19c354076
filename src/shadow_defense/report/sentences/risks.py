"""What the risks' numbers are called, what they say of their claims, and what limits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.formatting import listed, number, signed, signed_with_interval, with_interval
from shadow_defense.report.records.risks import CONTRADICTED, NOT_CLEAR, SUPPORTED, Finding
from shadow_defense.report.records.scores import MEAN_IMAGE

OUTCOMES = {
    SUPPORTED: "The 95 % interval lies on the claim's side.",
    NOT_CLEAR: "The 95 % interval includes what would be found if the claim were wrong, or there is no interval.",
    CONTRADICTED: "The 95 % interval lies on the other side.",
}


@dataclass(frozen=True)
class Wording:
    """How one risk's finding is said; texts may name its ``rows`` and ``facts``, as in ``{facts[weight]:g}``.

    Attributes:
        quantity: what its number is.
        counted: what the number is counted over.
        sentence: what was found, whichever way it points.
        notes: what limits the finding.
    """

    quantity: str
    counted: str
    sentence: Callable[[Finding], str]
    notes: tuple[str, ...]
    unit: str = ""
    digits: int = 2

    def quantity_of(self, finding: Finding) -> str:
        """What the number of a finding is."""
        return self._filled(self.quantity, finding)

    def notes_of(self, finding: Finding) -> list[str]:
        """What limits a finding."""
        return [self._filled(note, finding) for note in self.notes]

    def _filled(self, text: str, finding: Finding) -> str:
        return text.format(
            rows={row.name: row for row in finding.rows},
            first=finding.rows[0].name,
            last=finding.rows[-1].name,
            facts=finding.facts,
        )


def outcome_sentence(outcome: str) -> str:
    """What an outcome means for the claim."""
    return f"The claim is {'not clear from this' if outcome == NOT_CLEAR else outcome}."


def number_text(risk: int, value: Estimate) -> str:
    """A risk's number with its interval and unit, and what is behind it.

    >>> number_text(5, Estimate(2.0, (1.5, 2.5), 8)).replace(chr(160), " ")
    '2.00 dB, 95 % interval 1.50 to 2.50 (8 images of both sizes)'
    """
    words = WORDINGS[risk]
    mean, over = number(value.mean, words.digits, words.unit), f"({value.count} {words.counted})"
    if value.interval is None:
        return f"{mean}, no interval {over}"
    low, high = (number(end, words.digits) for end in value.interval)
    return f"{mean}, 95 % interval {low} to {high} {over}"


def _perturbation(finding: Finding) -> str:
    names = finding.names("f1_difference")
    strengths = [name.removeprefix("uniform-") for name in names if name.startswith("uniform-")]

    def points(kind: str) -> str:
        costs = (finding.row(f"{kind}-{strength}").values["f1_difference"] for strength in strengths)
        return ", ".join(signed(100 * cost.mean, 1) for cost in costs)

    ssim, psnr = signed_with_interval(finding.value, 3), signed_with_interval(finding.more["psnr"], 2)
    return (
        f"Uniform noise in place of targeted noise of the same energy changes the attack's SSIM by {ssim} and its PSNR "
        f"by {psnr} dB, averaged over the strengths {', '.join(strengths)}. Against no defense, macro F1 changes by "
        f"{points('uniform')} points with uniform noise and by {points('targeted')} with targeted noise. "
        f"{_hidden(finding)}"
    )


def _hidden(finding: Finding) -> str:
    """Which settings bring the attack down to the mean image in SSIM and in PSNR, and what they cost."""
    mean_image = finding.row(MEAN_IMAGE).values

    def hidden(name: str) -> bool:
        return all(finding.row(name).values[column].mean <= mean_image[column].mean for column in ("ssim", "psnr"))

    undefended = next(name for name in finding.names("f1") if name not in finding.names("f1_difference"))
    if hidden(undefended):
        return "Without defense the attack does not beat the mean image either: here there is little to hide."
    costs = {name: finding.row(name).values["f1_difference"].mean for name in finding.names("f1_difference")}
    found = ", ".join(f"{name} ({signed(100 * cost, 1)} points of F1)" for name, cost in costs.items() if hidden(name))
    if not found:
        return "No setting brings the attack down to the mean image's level in both."
    return f"The attack falls to the mean image's level in both with {found}."


def _batch_norm(finding: Finding) -> str:
    with_statistics, without, mean_image = (row.values["psnr"].mean for row in finding.rows)
    beaten = max(with_statistics, without) > mean_image
    psnr, ssim = signed_with_interval(finding.value, 2), signed_with_interval(finding.more["ssim"], 3)
    return (
        f"With the batch-norm statistics the same attack on the same images reaches {psnr} dB of PSNR and {ssim} of "
        f"SSIM against the attack that leaves them out ({with_statistics:.1f} and {without:.1f} dB; the mean image has "
        f"{mean_image:.1f})."
        + ("" if beaten else " Neither beats the mean image, so the difference says little about a real leak.")
    )


def _rounds(finding: Finding) -> str:
    means = {row.name: row.values["psnr"].mean for row in finding.rows}
    (first, *_, last), best = means, max(means, key=lambda name: means[name])
    psnr, ssim = signed_with_interval(finding.value, 2), signed_with_interval(finding.more["ssim"], 3)
    return (
        f"The attack's PSNR changes by {psnr} dB a round and its SSIM by {ssim}, from {means[first]:.1f} dB in round "
        f"{first} to {means[last]:.1f} dB in round {last}; it is highest in round {best} ({means[best]:.1f} dB)."
    )


def _pretrained(finding: Finding) -> str:
    first, last = finding.rows[0], finding.rows[-1]
    now, then = signed_with_interval(finding.value, 2), signed_with_interval(last.values["psnr_difference"], 2)
    later = f", and {then} dB in round {last.name}" if last != first else ""
    return (
        f"In round {first.name} the attack's PSNR on a pre-trained model is {now} dB against the same images on random "
        f"weights ({first.values['psnr_pretrained'].mean:.1f} and {first.values['psnr_fresh'].mean:.1f} dB){later}."
    )


def _client_size(finding: Finding) -> str:
    gains = {row.name: row.values["psnr"] for row in finding.rows}
    gained = listed([f"{signed_with_interval(gain, 1)} dB with {size}" for size, gain in gains.items()])
    sentence = (
        f"Above the mean image the attack gains {gained} images in the client's one batch: "
        f"{signed_with_interval(finding.value, 1)} dB between {finding.rows[0].name} and {finding.rows[-1].name}."
    )
    below = [size for size, gain in gains.items() if gain.mean <= 0]
    if below:
        sentence += (
            f" With {', '.join(below)} images it stays below the mean image: with these iterations it proves no leak "
            "there, nor that there is none."
        )
    return sentence


def _cost(finding: Finding) -> str:
    ratios = {row.name: with_interval(row.values["ratio"], 2) for row in finding.rows}
    against = finding.more["dp against shadow"]
    compared = (
        "less than DP-SGD"
        if against.mean > 1
        else f"more than DP-SGD, which takes {with_interval(against, 2)} of Shadow's time"
    )
    return (
        f"A local epoch takes {ratios['dp-sgd']} times the plain time with DP-SGD, {ratios['secure-sum']} times with "
        f"the secure sum's masks and {ratios['shadow']} times with Shadow in the rounds of its pseudo attack "
        f"({ratios['shadow-later']} after them): Shadow costs {compared}."
    )


def _regions(finding: Finding) -> str:
    own, other, _ = finding.rows
    shuffled, others = signed_with_interval(finding.value, 2), signed_with_interval(finding.more[other.name], 2)
    return (
        f"The rank correlation between Shadow's map and how well the attack rebuilt each pixel is "
        f"{with_interval(own.values['rank'], 2)}, where 1 would be the same order and 0 none: {shuffled} against a "
        f"shuffled map and {others} against another image's map. In the {finding.facts['marked share']:.0%} of pixels "
        f"that the map marks, the attack's squared error is {own.values['marked'].mean:.2f} times the mean."
    )


WORDINGS: dict[int, Wording] = {
    1: Wording(
        "SSIM that uniform noise leaves to the attack, minus what targeted noise of the same energy leaves",
        "images",
        _perturbation,
        (
            "The intervals of F1 are over trainings where there are several, else over the test images of the one.",
            "The control draws uniform noise in [-1, 1] and scales it to the energy that Shadow's noise has on the "
            "same image. Both see the true data in training; neither is a guarantee.",
            "Gaussian noise on gradients has no clipping here, hence no epsilon: the 'DP' of most comparisons.",
        ),
        digits=3,
    ),
    2: Wording(
        "PSNR with the statistics minus PSNR without, in dB, image by image",
        "images",
        _batch_norm,
        (
            "The two attacks differ in the weight of the statistics alone: {facts[weight]:g} against 0.",
            "Clients of one and of four images, one step of one whole batch, first round, model with batch norm.",
            "The images of one batch share their statistics: they are not quite independent.",
        ),
        unit="dB",
    ),
    3: Wording(
        "slope of PSNR in dB a round, a least-squares line for each image",
        "images",
        _rounds,
        (
            "The same clients' updates are attacked in every round, with the same number of iterations.",
            "{last} rounds are the beginning of a training: a slope here says nothing about round 100.",
        ),
        unit="dB",
    ),
    4: Wording(
        "PSNR from a pre-trained model minus PSNR from random weights in round {first}, in dB, image by image",
        "images",
        _pretrained,
        (
            "Pre-trained: {facts[epochs]:.0f} epochs on the public images of the same kind, with their labels, which "
            "gives a macro F1 of {facts[start_f1]:.2f} on the test images before any client has trained. Weights from "
            "ImageNet may behave otherwise.",
        ),
        unit="dB",
    ),
    5: Wording(
        "PSNR above the mean image in clients of {first} minus that in clients of {last}, in dB",
        "images of both sizes",
        _client_size,
        (
            "Reconstructions of a batch are matched one to one to its images (optimal assignment by PSNR). Above the "
            "mean image, since some images are easier to come close to than others.",
            "The images of one batch are attacked together: their interval is narrower than it should be.",
            "Labels are known to the attacker and every size gets the same number of iterations.",
        ),
        unit="dB",
    ),
    6: Wording(
        "time of a local epoch with DP-SGD, as a multiple of the plain one (secure sum: "
        "{rows[secure-sum].values[ratio].mean:.2f}; Shadow itself: {rows[shadow].values[ratio].mean:.2f})",
        "epochs",
        _cost,
        (
            "One client of {facts[images]:.0f} images in batches of {facts[batch_size]:.0f}, on the CPU; all methods "
            "take turns in one process. Ratios are geometric means over epochs. Times depend on the machine; ratios "
            "less so.",
            "Secure sum: pairwise masks after Bonawitz et al. 2017 for {facts[entries]:,.0f} values in 32-bit fixed "
            "point, one mask of SHAKE-128 with each other one of {facts[summed clients]:.0f} clients; its time grows "
            "with their number. The server adds up a round in {facts[adding]:.2g} seconds. Every method uploads "
            "{facts[bytes]:,.0f} bytes. Not included: key agreement (a public key of 32 bytes for each client, once) "
            "and what lets the sum survive clients that drop out.",
            "Homomorphic encryption and other secure computation are not measured. Neither is what DP-SGD costs in F1: "
            "`shadow-defense compare` does that.",
        ),
    ),
    7: Wording(
        "rank correlation of Shadow's map with minus the attack's error, less that of the shuffled map",
        "images",
        _regions,
        (
            "No other defense here draws such a map: that part of the claim holds by construction. Measured is whether "
            "Shadow's map is right about a real attack on the undefended update.",
            "Another image's map tells what a map owes to the kind of image (dark borders, bright lungs) and not to "
            "this image.",
        ),
        digits=3,
    ),
}
"""By the risk's number."""
