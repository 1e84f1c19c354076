"""Risk 4: pre-trained models leak more in early rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.data.dataset import ClientData, FederatedDataset
from shadow_defense.defenses.base import Defense
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.risks.base import ATTACK, NO_DEFENSE, UNDEFENDED, changed, main_attack
from shadow_defense.experiment.plans.risks.readings import Values, differences, image_values, mean_of
from shadow_defense.experiment.plans.risks.risk import CurveChart, Finding, Risk, Runs, Subrun
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks.training import evaluation
from shadow_defense.federated.rounds import Federation, read_journal, state_folder
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.progress import Progress
from shadow_defense.report.kit.formatting import signed_with_interval, with_interval
from shadow_defense.report.records.scores import MEAN_IMAGE

EPOCHS = 10

BATCH_SIZE = 16

PUBLIC = "public"

FRESH, PRETRAINED = "fresh", "pretrained"

EARLY_ROUNDS = (1, 2, 4)


def subruns(base: RunConfig, folder: Path) -> dict[str, Subrun]:
    if base.data.public_source is not None or base.data.public_path is not None:
        raise ConfigError(
            "risk 4 pre-trains on the public images with their labels, and those of another source have other "
            "classes: leave data.public_source and data.public_path empty, or leave 4 out of --only"
        )
    if base.model.start is not None or base.model.weights is not None:
        raise ConfigError(
            "risk 4 compares a pre-trained model with one from random weights: leave model.start and model.weights "
            "empty, or leave 4 out of --only"
        )
    early = [round for round in EARLY_ROUNDS if round <= base.training.rounds]
    state = state_folder(folder.resolve() / PUBLIC / "arms" / PUBLIC, EPOCHS) / "global.safetensors"
    training = {"rounds": EPOCHS, "local_epochs": 1, "evaluate_every": EPOCHS}
    each = {
        "arms": {UNDEFENDED: NO_DEFENSE},
        "attacks": {ATTACK: main_attack(base, early)},
        # The schedule of the learning rate does not depend on how long the training is.
        "training": {"rounds": early[-1]},
    }
    public = changed(
        base, "Risk 4: central training on public images", training=training, arms={PUBLIC: NO_DEFENSE}, attacks={}
    )
    return {
        PUBLIC: Subrun(public, train_centrally),
        FRESH: Subrun(changed(base, "Risk 4: from random weights", **each)),
        PRETRAINED: Subrun(changed(base, "Risk 4: from a pre-trained model", model={"start": str(state)}, **each)),
    }


def public_federation(run: Run) -> FederatedDataset:
    """The run's data with one client in place of all others, that holds the public images."""
    data = run.dataset
    if len(data.public) == 0:
        raise ConfigError("risk 4 pre-trains on public images and there are none: raise data.public_fraction")
    nothing = data.test.subset([])
    only = ClientData(PUBLIC, data.public, nothing, nothing, min(BATCH_SIZE, len(data.public)))
    return replace(data, clients=(only,))


def train_centrally(run: Run, progress: Progress) -> None:
    """Plain SGD on the public images, one epoch a round: a training that no client takes part in."""
    Federation(
        model=run.new_model(PUBLIC),
        dataset=public_federation(run),
        defenses={PUBLIC: Defense()},
        settings=run.config.training,
        loss_fn=run.config.training.loss_function(),
        evaluate=lambda model: evaluation(run, model),
        seed=run.config.seed,
        folder=run.arm_folder(PUBLIC),
    ).run(progress)


def measure(seeds: Sequence[Runs]) -> Finding:
    starts: dict[str, Sequence[Run]] = {name: [runs[name] for runs in seeds] for name in (FRESH, PRETRAINED)}
    attacked = [round + 1 for round in starts[FRESH][0].config.attacked_rounds(ATTACK)]
    scores = {
        column: {
            name: {
                round: image_values(runs, arm=UNDEFENDED, attack=ATTACK, column=f"{column}_whole", round=round)
                for round in attacked
            }
            for name, runs in starts.items()
        }
        for column in ("psnr", "ssim")
    }
    blank = mean_of(image_values(starts[FRESH], arm=MEAN_IMAGE, attack=ATTACK, column="psnr_whole")).mean
    journals = [read_journal(runs[PUBLIC].arm_folder(PUBLIC))[1] for runs in seeds]
    return finding(scores, blank, sum(journal[-1]["test"]["f1_macro"] for journal in journals) / len(journals))


def finding(scores: Mapping[str, Mapping[str, Mapping[int, Values]]], blank: float, start_f1: float) -> Finding:
    """From PSNR and SSIM by start, round (counted from 1) and image; the mean image's PSNR; F1 of the start."""
    rounds = list(scores["psnr"][FRESH])
    gains: dict[str, dict[int, Estimate]] = {
        column: {round: mean_of(differences(starts[PRETRAINED][round], starts[FRESH][round])) for round in rounds}
        for column, starts in scores.items()
    }
    first, last = gains["psnr"][rounds[0]], gains["psnr"][rounds[-1]]
    means = {
        name: {round: mean_of(values).mean for round, values in by_round.items()}
        for name, by_round in scores["psnr"].items()
    }
    later = (
        f", and {signed_with_interval(last.mean, last.interval, 2)} dB in round {rounds[-1]}" if len(rounds) > 1 else ""
    )
    sentence = (
        f"In round {rounds[0]} the attack's PSNR on a pre-trained model is "
        f"{signed_with_interval(first.mean, first.interval, 2)} dB against the same images on random weights "
        f"({means[PRETRAINED][rounds[0]]:.1f} and {means[FRESH][rounds[0]]:.1f} dB){later}."
    )
    rows = []
    for round in rounds:
        cells = [f"Round {round}"]
        for column, digits in (("psnr", 2), ("ssim", 3)):
            for name in (FRESH, PRETRAINED):
                own = mean_of(scores[column][name][round])
                cells.append(with_interval(own.mean, own.interval, digits))
            gain = gains[column][round]
            cells.append(signed_with_interval(gain.mean, gain.interval, digits))
        rows.append(tuple(cells))
    return Finding(
        sentence,
        f"PSNR from a pre-trained model minus PSNR from random weights in round {rounds[0]}, in dB, image by image",
        first,
        "images",
        (
            CurveChart(
                "PSNR of the attack, dB",
                {
                    **{name: list(values.items()) for name, values in means.items()},
                    MEAN_IMAGE: [(round, blank) for round in rounds],
                },
            ),
        ),
        ("Round", "PSNR fresh", "PSNR pre-trained", "difference", "SSIM fresh", "SSIM pre-trained", "difference"),
        tuple(rows),
        unit="dB",
        notes=(
            f"Pre-trained: {EPOCHS} epochs on the public images of the same kind, with their labels, which gives a "
            f"macro F1 of {start_f1:.2f} on the test images before any client has trained. Weights from ImageNet "
            "may behave otherwise.",
        ),
    )


RISK = Risk(
    4,
    "pre-trained models",
    "A federation that begins with a pre-trained model leaks more in its first rounds than one that begins with random "
    "weights.",
    "The same clients train from random weights and from a model trained centrally on the public images; the same "
    "early rounds of both are attacked.",
    subruns,
    measure,
)
