"""A run's results as its stages would gather them: faces as images, faces with noise as reconstructions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.report.comparison_record import build_comparison
from torch import Tensor

from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.analysis import score_table, shown_rounds, sights_of, training_row
from shadow_defense.experiment.tasks.scoring import ImageScore, Score
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.run import Arm, Explanation, Patient, Round, RunRecord
from shadow_defense.report.records.scores import MEAN_IMAGE, Attack, Client, Data, Row
from shadow_defense.report.sentences.run import run_verdict
from shadow_defense.seeds import named_generator

# How far each arm's reconstructions are from the originals: the deviation of the noise laid over them.
ARMS = {"no defense": 0.08, "shadow (authors)": 0.22, "shadow": 0.3, "uniform control": 0.18}
SHADOWS = ("shadow (authors)", "shadow")
CLIENTS = tuple(f"hospital-{number}" for number in range(1, 7))
ATTACKED = {"inverting gradients": (0, 29), "gradinversion": (29,)}
CLASSES = ("no face", "face")


def _faces(count: int) -> Tensor:
    from skimage.data import lfw_subset

    return torch.from_numpy(lfw_subset()).float()[100 - count // 2 : 100 + count - count // 2, None]


def _explanation(original: Tensor, noise: Tensor) -> dict[str, Tensor]:
    side = torch.linspace(-1, 1, original.shape[2])
    centre = torch.exp(-2 * (side[:, None] ** 2 + side[None] ** 2))
    noise = noise * (1 - centre)
    return {
        "protected": (original + noise).clamp(0, 1),
        "noise": noise,
        "vulnerability": (1 - centre) / (1 - centre).max(),
        "cam": centre / centre.max(),
        "rebuilt": torch.nn.functional.avg_pool2d(original[None], 3, 1, 1)[0],
    }


def _rebuilt(index: int, original: Tensor, attack: str, round: int, arm: str) -> Tensor:
    draw = named_generator(0, "rebuilt", index, attack, round, arm)
    return (original + ARMS[arm] * torch.randn(original.shape, generator=draw)).clamp(0, 1)


def _client(index: int) -> str:
    return CLIENTS[index // 2]


def _patient(index: int, original: Tensor) -> Patient:
    rebuilt = {
        (arm, attack): _rebuilt(index, original, attack, max(rounds), arm)
        for attack, rounds in ATTACKED.items()
        for arm in ARMS
    }
    noise = 0.1 * torch.randn(original.shape, generator=named_generator(0, "noise", index))
    explained = {1: {arm: Explanation(**_explanation(original, noise)) for arm in SHADOWS}}
    return Patient(f"train/{index}", _client(index), CLASSES[index % 2], original, rebuilt, explained)


def _row(index: int, original: Tensor, attack: str, round: int, arm: str) -> ImageScore:
    rebuilt = _rebuilt(index, original, attack, round, "shadow" if arm == MEAN_IMAGE else arm)
    decibels = float(psnr(rebuilt[None], original[None])[0])
    similarity = float(ssim(rebuilt[None], original[None])[0])
    metrics = {"best_match_psnr": decibels + 0.4}
    for region, shift in (("whole", 0.0), ("inside", 1.5), ("outside", -0.7)):
        shift -= 1.0 if arm == MEAN_IMAGE else 0.0
        metrics[f"psnr_{region}"] = decibels + shift
        metrics[f"ssim_{region}"] = similarity + shift / 20
        metrics[f"lpips_{region}"] = 0.6 - similarity / 2 - shift / 20
    return ImageScore(0, 0, f"train/{index}", metrics)


def _arm(position: int, arm: str) -> Arm:
    history: list[Round] = []
    for round in range(30):
        loss = math.exp(-round / 12) + 0.05 * position
        measured = {"loss": loss}
        if arm in SHADOWS:
            measured |= {"noise_rms": 0.4 * math.exp(-round / 20) + 0.03 * position, "noise_peak": 1.2}
        test: dict[str, float | None] = {}
        if round % 3 == 2:
            f1 = 0.93 - 0.45 * math.exp(-round / 8) - 0.012 * position
            test = {"f1_micro": f1 + 0.01, "f1_macro": f1, "f1_class_0": f1 - 0.02, "f1_class_1": f1 + 0.02}
            test |= {"accuracy": f1 + 0.01, "auroc": None if position == 2 else f1 + 0.04}
        history.append(Round(round, loss, dict.fromkeys(CLIENTS, measured), test))
    return Arm(
        title=arm[:1].upper() + arm[1:],
        defense="none" if position == 0 else "shadow",
        preset="paper" if arm in SHADOWS else None,
        options={"epsilon": 0.1, "steps": 60} if arm in SHADOWS else {},
        summary="The update leaves the client as it is."
        if position == 0
        else "Noise where the shadow generator can rebuild the image, little where the diagnosis looks.",
        acts_on=() if position == 0 else ("batch",),
        history=tuple(history),
    )


@pytest.fixture(scope="session")
def patients() -> tuple[Patient, ...]:
    """Two images of each of six clients."""
    return tuple(_patient(index, original) for index, original in enumerate(_faces(2 * len(CLIENTS))))


@pytest.fixture(scope="session")
def record(patients: tuple[Patient, ...]) -> RunRecord:
    """What ``results.json`` of a run over four arms holds, its rows from the functions that make them."""
    scores = [
        Score(arm, attack, round, patient.client, (_row(index, patient.original, attack, round, arm),))
        for attack, rounds in ATTACKED.items()
        for round in rounds
        for index, patient in enumerate(patients)
        for arm in (*ARMS, MEAN_IMAGE)
    ]
    arms = {arm: _arm(position, arm) for position, arm in enumerate(ARMS)}
    trainings = {name: {0: arm.history} for name, arm in arms.items()}
    names, first = list(arms["shadow"].test), trainings["no defense"]
    utilities = tuple(training_row(name, DefenseSettings(), trainings[name], first, names) for name in arms)
    rows = [*utilities, Row(arm=MEAN_IMAGE, images=0, metrics={})]
    attacked = {"clients": CLIENTS, "threat_model": "informed server.\nGranted besides: the true labels."}
    settings: dict[str, object] = {"steps": 2400, "total_variation": 1e-4}
    record = RunRecord(
        title="Faces on six hospitals",
        seed=0,
        created="2026-11-22",
        command="shadow-defense run faces.yaml --set seed=0",
        versions={"shadow-defense": "0.1.0", "torch": "2.13.0"},
        config={"seed": 0, "data": {"source": "faces", "image_size": 25}, "arms": {arm: {} for arm in ARMS}},
        data=Data(
            name="faces",
            classes=CLASSES,
            image_size=(25, 25),
            channels=1,
            clients=dict.fromkeys(CLIENTS, Client(12, 4, 3, 4)),
            public=60,
            test=40,
            sha256="0123456789abcdef" * 4,
        ),
        arms=arms,
        attacks={
            name: Attack(attack=name, rounds=tuple(round + 1 for round in rounds), settings=settings, **attacked)
            for name, rounds in ATTACKED.items()
        },
        utilities=utilities,
        tables=tuple(
            score_table(scores, rows, attack, round)
            for attack, rounds in ATTACKED.items()
            for round in shown_rounds(rounds)
        ),
        sights=sights_of(scores),
        notes=("Clients train in train mode, with the statistics of each batch.", "Images are matched by PSNR."),
    )
    return replace(record, verdict=tuple(run_verdict(record)))


@pytest.fixture(scope="session")
def comparison() -> ComparisonRecord:
    return build_comparison()
