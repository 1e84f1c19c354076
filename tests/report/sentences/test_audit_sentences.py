"""Which sentences follow from what was measured of an update."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from shadow_defense.report.records.audit import AttackEnd, Effect, Facts, Reason, RiskRow
from shadow_defense.report.sentences.audit_diagnosis import diagnose
from shadow_defense.report.sentences.audit_outcome import judged

CLEAN = Facts(
    samples=1,
    steps=1,
    batch_size=1,
    optimiser="sgd",
    loss="ce",
    image_values=256,
    update_values=10_000,
    tensors=8,
    relative_norm=0.01,
    rounding=1e-5,
    zeros=0.0,
    zero_tensors=0,
    equal=0.01,
    noise=1e-4,
    noise_deviation=1e-6,
    batch_norm=None,
    statistics_shared=False,
    hard=False,
    pools=False,
    drops=False,
    exact=None,
    labels_known=True,
)


def test_nothing_hides_a_clean_update() -> None:
    assert {reason.effect for reason in diagnose(CLEAN)} == {"gives away"}


@pytest.mark.parametrize(
    ("facts", "effect", "words"),
    [
        (replace(CLEAN, noise=0.9, noise_deviation=0.01), "hides", "Noise drowns the update. The rows"),
        (replace(CLEAN, noise=0.1, noise_deviation=0.01), "hides", "about 0.01 in each value lies on it, 10% of"),
        (replace(CLEAN, zeros=0.9), "hides", "90% of the update's values are exactly zero: it was thinned out"),
        (replace(CLEAN, zeros=1.0, zero_tensors=8), "hides", "carries nothing"),
        (replace(CLEAN, rounding=0.3, relative_norm=2e-7), "hides", "rounding of the difference is 30% of it"),
        (replace(CLEAN, samples=32, batch_size=32), "hides", "mean over a batch of 32 images"),
        (replace(CLEAN, samples=64, batch_size=2), "hides", "64 images have 16,384 values and the update 10,000"),
        (replace(CLEAN, samples=4, batch_size=2), "gives away", "mean over 2 images only"),
        (replace(CLEAN, samples=4, batch_size=1, steps=4), "gives away", "about one image alone"),
        (replace(CLEAN, steps=5), "hides", "5 local steps"),
        (replace(CLEAN, steps=None), "limits the attack", "--learning-rate, --steps and --batch-size"),
        (replace(CLEAN, batch_norm="train"), "hides", "statistics are not in the update"),
        (replace(CLEAN, batch_norm="train", statistics_shared=True), "gives away", "read them off the buffers"),
        (replace(CLEAN, batch_norm="eval"), "gives away", "stands still"),
        (replace(CLEAN, hard=True, pools=True), "hides", "cut off by ReLU and max pooling"),
        (replace(CLEAN, drops=True), "hides", "Dropout"),
        (replace(CLEAN, exact="first layer"), "gives away", "by one division, exactly."),
        (replace(CLEAN, exact="chain", steps=5), "gives away", "layer by layer, for one image in one step of SGD."),
        (replace(CLEAN, exact="chain", optimiser=None), "gives away", "for one image in one step of SGD."),
        (replace(CLEAN, loss="bce"), "gives away", "SGD on sigmoid cross entropy leaves no such sums: check what was"),
        (replace(CLEAN, relative_norm=7.0), "not known", "The update is 7.0 times as long as the global model's"),
        (
            replace(CLEAN, optimiser="adam"),
            "gives away",
            "One local step of Adam: the update holds the gradient's signs",
        ),
        (replace(CLEAN, equal=0.9), "gives away", "90% of the update's values are equally large: it looks like"),
        (replace(CLEAN, equal=0.9), "not known", "Not given: the client's optimiser. Attacks assume Adam; if"),
        (replace(CLEAN, optimiser=None), "not known", "the client's optimiser. Attacks assume SGD; if it was another"),
        (replace(CLEAN, loss=None), "not known", "the client's loss. Attacks assume cross entropy; if"),
        (replace(CLEAN, noise=0.9, loss=None), "not known", "Whether a defense disturbed the update is not known"),
        (replace(CLEAN, noise=0.9, loss="mse"), "not known", "and the client trained by SGD on squares."),
        (replace(CLEAN, noise=0.9, optimiser="adam"), "not known", "trained by Adam on cross entropy."),
        (replace(CLEAN, samples=2, labels_known=False), "limits the attack", "Labels are not known"),
    ],
)
def test_each_fact_has_its_sentence(facts: Facts, effect: Effect, words: str) -> None:
    found = [reason for reason in diagnose(facts) if words in reason.sentence]
    assert [reason.effect for reason in found] == [effect]
    assert not any(words in reason.sentence for reason in diagnose(CLEAN))


@pytest.mark.parametrize(
    "facts",
    [
        replace(CLEAN, optimiser=None),
        replace(CLEAN, loss=None),
        replace(CLEAN, loss="bce"),
        replace(CLEAN, optimiser="rmsprop"),
        replace(CLEAN, equal=0.9),
    ],
)
def test_no_sentence_of_noise_rests_on_an_assumption(facts: Facts) -> None:
    reasons = diagnose(replace(facts, noise=0.9, noise_deviation=0.1))
    assert not any("oise" in reason.sentence or reason.effect == "hides" for reason in reasons)


def ended(
    facts: Facts = CLEAN,
    *,
    ssim: float | None = 0.1,
    mean_image: float | None = 0.3,
    distance: float = 0.6,
    sought: int = 1,
    reads: bool = False,
) -> AttackEnd:
    """How an attack by dlg is judged, which failed if nothing else is said."""
    rows = (
        () if ssim is None else (RiskRow(reconstruction=0, image=0, ssim=ssim, psnr=9.0, mean_image_ssim=mean_image),)
    )
    end = AttackEnd(rows=rows, labels=(0,) * sought, distance=distance, mean_image_distance=0.8)
    return judged("dlg", end, facts, reads_statistics=reads)


def test_a_failure_against_an_assumed_training_is_no_verdict() -> None:
    assert ended().verdict == "not rebuilt"
    assert ended(replace(CLEAN, optimiser="adam", loss="bce")).verdict == "not rebuilt"
    for facts in (replace(CLEAN, optimiser=None), replace(CLEAN, loss=None), replace(CLEAN, equal=0.9)):
        failed = ended(facts)
        assert failed.verdict == "not known"
        first, second, *_ = failed.sentences
        assert first.endswith("not being given, that says nothing of the update.")
        assert "trained otherwise" in second and "nothing in the update keeps it" not in second
        assert ended(facts, ssim=0.9).verdict == "rebuilt"


def test_rounding_and_thinning_are_not_called_noise() -> None:
    for facts in (replace(CLEAN, noise=0.1, rounding=0.1), replace(CLEAN, noise=0.8, zeros=0.9)):
        assert not any("Noise" in reason.sentence for reason in diagnose(facts))


def test_failures_are_told_apart() -> None:
    """No image found, a wrong image found, and no truth to tell."""
    assert "nothing in the update keeps it" in ended().sentences[1]
    assert "what hides the images (below)" in ended(replace(CLEAN, hard=True)).sentences[1]
    assert "many images fit" in ended(distance=0.0009).sentences[1]
    assert "the search did not get there" in ended(distance=0.0011).sentences[1]
    assert "--attack r-gap" in ended(replace(CLEAN, exact="chain")).sentences[-1]
    buffers = replace(CLEAN, batch_norm="train", statistics_shared=True)
    assert "--attack gradinversion" in ended(buffers).sentences[-1]
    assert "--attack gradinversion" not in ended(buffers, reads=True).sentences[-1]
    unknown = ended(ssim=None)
    assert (unknown.rebuilt, unknown.verdict) == (None, "not known")
    assert "cosine to the observed update 0.4000; of the mean image in every place 0.2000" in unknown.sentences[0]
    assert "sought 4 of 9 images" in ended(replace(CLEAN, samples=9), sought=4).sentences[1]


def test_the_best_reconstruction_is_judged() -> None:
    rows = tuple(
        RiskRow(reconstruction=place, image=place, ssim=ssim, psnr=9.0) for place, ssim in enumerate((0.2, 0.7))
    )
    rows = (*rows, RiskRow(reconstruction=2, image=None))
    end = judged("dlg", AttackEnd(rows=rows, labels=(0, 1, 1), distance=0.1), CLEAN, reads_statistics=False)
    assert end.rebuilt and "rebuilt image 2 (SSIM 0.70" in end.sentences[0]


def test_a_success_is_a_success_against_the_mean_image_or_to_the_eye() -> None:
    assert ended(ssim=0.55).rebuilt is True
    assert ended(ssim=0.6, mean_image=0.7).rebuilt is False
    assert ended(ssim=0.31).rebuilt is False
    assert "came closer than the mean image" in ended(ssim=0.31).sentences[0]
    assert "nothing that it rebuilt comes closer" in ended(ssim=0.29).sentences[0]
    assert "nothing that it rebuilt is recognisable" in ended(mean_image=None).sentences[0]
    assert ended(ssim=0.4, mean_image=None).rebuilt is False
    assert ended(ssim=0.6, mean_image=None).rebuilt is True
    (only,) = ended(ssim=0.9).sentences
    for fact in ("dlg rebuilt image 1", "SSIM 0.90, PSNR 9.0 dB", "0.30 without any update", "gives it away"):
        assert fact in only


def test_reasons_are_sentences() -> None:
    everything = replace(CLEAN, samples=64, batch_size=32, steps=9, zeros=0.5, hard=True, drops=True)
    for reason in diagnose(replace(everything, labels_known=False)):
        assert isinstance(reason, Reason) and re.fullmatch(r"[A-Z0-9].*\.", reason.sentence)
