"""Risk 6: differential privacy and secure computation are expensive."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.plans.risks.base import NO_DEFENSE, changed, shadow_arm
from shadow_defense.experiment.plans.risks.intervals import mean_ratio
from shadow_defense.experiment.plans.risks.risk import DotChart, Finding, Risk, Runs, Subrun
from shadow_defense.experiment.plans.run import STAGES
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks.costing import in_own_process
from shadow_defense.experiment.tasks.pretraining import load_run_generator
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.secure_sum import (
    WORD_BYTES,
    add_masks,
    from_fixed_point,
    pair_secrets,
    sum_masked,
    to_fixed_point,
)
from shadow_defense.files import read_json, write_json
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.progress import Progress
from shadow_defense.report.kit.formatting import MISSING, number, with_interval

PLAIN, DP, SHADOW, STORED, SECURE = "plain", "dp-sgd", "shadow", "shadow-later", "secure-sum"

IMAGES, BATCH_SIZE = 32, 8

REPETITIONS = 7

SUMMED_CLIENTS = 10


def subruns(base: RunConfig, folder: Path) -> dict[str, Subrun]:
    rounds = REPETITIONS + 1
    batch = base.model.normalisation == "batch"
    config = changed(
        base,
        "Risk 6: what privacy costs in time",
        data={"split": {"kind": "sizes", "sizes": [IMAGES], "batch_sizes": [BATCH_SIZE]}},
        # Of several samples' gradients batch norm makes one: DP-SGD cannot be run on it.
        model={"normalisation": "group"} if batch else {},
        training={"rounds": rounds, "local_epochs": 1, "evaluate_every": rounds},
        arms={
            PLAIN: NO_DEFENSE,
            DP: DefenseSettings(defense="dp-sgd"),
            SHADOW: shadow_arm(base, shadow_rounds=rounds),
            STORED: shadow_arm(base, shadow_rounds=0),
        },
        attacks={},
    )
    return {"seconds": Subrun(config, measure_seconds)}


def seconds_path(run: Run) -> Path:
    """Where the measured times are kept, among what the arms left."""
    return run.folder / "arms" / "seconds.json"


def measure_seconds(run: Run, progress: Progress) -> None:
    """Time local epochs of every arm in turn, in one process, and the secure sum between them."""
    if seconds_path(run).exists():
        return
    STAGES["pretrain"](run, progress)
    task = progress.start("timing local epochs", 1)
    write_json(seconds_path(run), in_own_process(_times, run.folder))
    task.advance()
    task.finish()


def _times(folder: Path) -> dict[str, Any]:
    run = Run.open(folder)
    torch.set_num_threads(run.config.threads)
    (client,) = run.dataset.clients
    images = run.dataset.normalisation.apply(client.train.unit_images())
    federations, preparing = {}, {}
    for arm, settings in run.config.arms.items():
        defense = build_defense(run, arm, load_run_generator(run, arm), client.name)
        model = run.new_model(arm)
        defense.check_model(model)
        started = time.perf_counter()
        defense.prepare(images, client.train.sample_ids)
        preparing[arm] = time.perf_counter() - started
        federations[arm] = Federation(
            model=model,
            dataset=run.dataset,
            defenses={client.name: defense},
            settings=run.config.training,
            loss_fn=run.config.training.loss_function(),
            evaluate=lambda model: {},
            seed=run.config.seed,
            folder=run.arm_folder(arm),
            share_bn=settings.share_bn,
        )
    seconds: dict[str, list[float]] = {arm: [] for arm in (*federations, SECURE)}
    entries = sum(tensor.numel() for tensor in federations[PLAIN].global_state.values())
    for round in range(run.config.training.rounds):
        for arm, federation in federations.items():
            seconds[arm].append(federation.run_round(round)["seconds"])
        seconds[SECURE].append(_masking_seconds(entries, round))
    # The first epoch warms caches up.
    kept = {arm: values[1:] for arm, values in seconds.items()}
    return {
        "seconds": kept,
        "preparing": preparing,
        "adding": _adding_seconds(entries),
        "entries": entries,
        "images": len(client.train),
    }


def _masking_seconds(entries: int, round: int) -> float:
    """What one of :data:`SUMMED_CLIENTS` clients spends: fixed point and one mask with each other client."""
    clients = [f"client-{index}" for index in range(SUMMED_CLIENTS)]
    secrets = pair_secrets(clients, 0)
    values = torch.linspace(-1, 1, entries, dtype=torch.float64)
    started = time.perf_counter()
    add_masks(to_fixed_point(values, len(clients)), clients[0], clients, secrets, round)
    return time.perf_counter() - started


def _adding_seconds(entries: int) -> float:
    """What the server spends on a round: the sum of all masked vectors, and back from fixed point."""
    words = to_fixed_point(torch.zeros(entries, dtype=torch.float64), SUMMED_CLIENTS)
    started = time.perf_counter()
    from_fixed_point(sum_masked([words] * SUMMED_CLIENTS))
    return time.perf_counter() - started


def measure(seeds: Sequence[Runs]) -> Finding:
    measured = [read_json(seconds_path(runs["seconds"])) for runs in seeds]
    arms = list(measured[0]["seconds"])
    seconds = {arm: [value for times in measured for value in times["seconds"][arm]] for arm in arms}
    preparing = {
        arm: sum(times["preparing"][arm] / times["images"] for times in measured) / len(measured)
        for arm in (SHADOW, STORED)
    }
    adding = sum(times["adding"] for times in measured) / len(measured)
    return finding(seconds, preparing, adding, measured[0]["entries"])


LABELS = {
    DP: "DP-SGD",
    SECURE: f"Secure sum of {SUMMED_CLIENTS} clients",
    SHADOW: "Shadow, with its pseudo attack",
    STORED: "Shadow, after its last pseudo attack",
}


def finding(
    seconds: Mapping[str, Sequence[float]], preparing: Mapping[str, float], adding: float, entries: int
) -> Finding:
    """From seconds a local epoch (``secure-sum``: of masking alone) taken in turn; preparing in seconds an image."""
    plain = seconds[PLAIN]
    epochs = {
        **{arm: list(seconds[arm]) for arm in (DP, SHADOW, STORED)},
        SECURE: [epoch + masks for epoch, masks in zip(plain, seconds[SECURE], strict=True)],
    }
    ratios = {arm: mean_ratio(epochs[arm], plain) for arm in LABELS}
    against = mean_ratio(epochs[DP], epochs[SHADOW])
    compared = (
        "less than DP-SGD"
        if against.mean > 1
        else f"more than DP-SGD, which takes {with_interval(against.mean, against.interval, 2)} of Shadow's time"
    )
    sentence = (
        f"A local epoch takes {_times_text(ratios[DP])} times the plain time with DP-SGD, "
        f"{_times_text(ratios[SECURE])} times with the secure sum's masks and {_times_text(ratios[SHADOW])} times "
        f"with Shadow in the rounds of its pseudo attack ({_times_text(ratios[STORED])} after them): "
        f"Shadow costs {compared}."
    )
    megabytes = entries * WORD_BYTES / 1e6
    rows = [("Plain", number(1.0, 0), _milliseconds(plain), MISSING, number(megabytes, 2))]
    rows += [
        (
            label,
            with_interval(ratios[arm].mean, ratios[arm].interval, 2),
            _milliseconds(epochs[arm]),
            number(preparing[arm], 2) if arm in (SHADOW, STORED) else MISSING,
            number(megabytes, 2),
        )
        for arm, label in LABELS.items()
    ]
    return Finding(
        sentence,
        f"time of a local epoch with DP-SGD, as a multiple of the plain one (secure sum: {ratios[SECURE].mean:.2f}; "
        f"Shadow itself: {ratios[SHADOW].mean:.2f})",
        ratios[DP],
        "epochs",
        (
            DotChart(
                "Time of a local epoch, as a multiple of the plain one",
                {label: ratios[arm] for arm, label in LABELS.items()},
                ("plain", 1.0),
            ),
        ),
        (
            "Method",
            "Times the plain epoch",
            "Milliseconds an epoch",
            "Seconds an image, once before training",
            "Upload (MB)",
        ),
        tuple(rows),
        nothing=1.0,
        notes=(
            f"One client of {IMAGES} images in batches of {BATCH_SIZE}, on the CPU; all methods take turns in one "
            "process. Ratios are geometric means over epochs. Times depend on the machine; ratios less so.",
            f"Secure sum: pairwise masks after Bonawitz et al. 2017 for {entries} values in 32-bit fixed point, one "
            f"mask of SHAKE-128 with each of {SUMMED_CLIENTS - 1} other clients; its time grows with their number. "
            f"The server adds up a round in {1000 * adding:.1f} ms. Not included: key agreement (a public key of 32 "
            "bytes for each client, once) and what lets the sum survive clients that drop out.",
            "Homomorphic encryption and other secure computation are not measured. Neither is what DP-SGD costs in "
            "F1: `shadow-defense compare` does that.",
        ),
    )


def _times_text(value: Estimate) -> str:
    return with_interval(value.mean, value.interval, 2)


def _milliseconds(values: Sequence[float]) -> str:
    return number(1000 * sum(values) / len(values), 1)


RISK = Risk(
    6,
    "cost of other defenses",
    "Differential privacy and secure computation protect at a high price in computation.",
    "Seconds of a local epoch with DP-SGD, with the masks of a secure sum, with Shadow and with nothing, measured in "
    "turn in one process.",
    subruns,
    measure,
)
