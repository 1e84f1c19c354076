"""A report's content as a real run would give it: faces as images, faces with noise as reconstructions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shadow_defense.metrics.confidence import Estimate, mean_interval, paired_difference
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.report.content import ArmPictures, Content, Exhibit
from shadow_defense.seeds import named_generator

# How far each arm's reconstructions are from the originals: the deviation of the noise laid over them.
ARMS = {"no defense": 0.08, "shadow (authors)": 0.22, "shadow": 0.3, "uniform control": 0.18}
SHADOWS = ("shadow (authors)", "shadow")
CLIENTS = tuple(f"hospital-{number}" for number in range(1, 7))
THREAT_MODEL = """informed server: runs the protocol as agreed and also knows the labels.
Granted besides: the true labels of the client's images.
Not granted: nothing is withheld."""
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


def _exhibit(index: int, original: Tensor, client: str, attack: str, round: int) -> Exhibit:
    arms = {}
    for arm, deviation in ARMS.items():
        draw = named_generator(0, "rebuilt", index, attack, round, arm)
        rebuilt = (original + deviation * torch.randn(original.shape, generator=draw)).clamp(0, 1)
        scores = {
            "psnr_whole": float(psnr(rebuilt[None], original[None])[0]),
            "ssim_whole": float(ssim(rebuilt[None], original[None])[0]),
        }
        noise = 0.1 * torch.randn(original.shape, generator=draw)
        explanation = _explanation(original, noise) if arm in SHADOWS else {}
        arms[arm] = ArmPictures(rebuilt, scores, **explanation)
    return Exhibit(f"train/{index}", client, attack, round, CLASSES[index % 2], original, arms)


def _json(measured: Estimate) -> dict[str, Any]:
    return {"mean": measured.mean, "interval": None if measured.interval is None else list(measured.interval)}


def _table(attack: str, round: int | None, exhibits: list[Exhibit]) -> dict[str, Any]:
    chosen = [e for e in exhibits if e.attack == attack and round in (None, e.round)]
    values: dict[str, dict[str, list[float]]] = {arm: {} for arm in (*ARMS, "mean image")}
    for exhibit in chosen:
        for arm in values:
            scores = exhibit.arms["shadow" if arm == "mean image" else arm].scores
            for region, shift in (("whole", 0.0), ("inside", 1.5), ("outside", -0.7)):
                shift -= 1.0 if arm == "mean image" else 0.0
                own = values[arm]
                own.setdefault(f"psnr_{region}", []).append((scores["psnr_whole"] or 0) + shift)
                own.setdefault(f"ssim_{region}", []).append((scores["ssim_whole"] or 0) + shift / 20)
                own.setdefault(f"lpips_{region}", []).append(0.6 - (scores["ssim_whole"] or 0) / 2 - shift / 20)
            own.setdefault("best_match_psnr", []).append((scores["psnr_whole"] or 0) + 0.4)
    first = values["no defense"]
    rows = []
    for arm, columns in values.items():
        difference = {key: _json(paired_difference(column, first[key])) for key, column in columns.items()}
        rows.append(
            {
                "arm": arm,
                "images": len(chosen),
                "metrics": {key: _json(mean_interval(column)) for key, column in columns.items()},
                "difference": None if arm == "no defense" else difference,
            }
        )
    return {"attack": attack, "round": round, "rows": rows}


def _arm(position: int, arm: str) -> dict[str, Any]:
    history: list[dict[str, Any]] = []
    for round in range(30):
        clients = {client: {"loss": math.exp(-round / 12) + 0.05 * position} for client in CLIENTS}
        if arm in SHADOWS:
            for measured in clients.values():
                measured.update(noise_rms=0.4 * math.exp(-round / 20) + 0.03 * position, noise_peak=1.2)
        entry: dict[str, Any] = {
            "round": round,
            "loss": math.exp(-round / 12) + 0.05 * position,
            "seconds": 1.5,
            "clients": clients,
        }
        if round % 3 == 2:
            f1 = 0.93 - 0.45 * math.exp(-round / 8) - 0.012 * position
            test = {"f1_micro": f1 + 0.01, "f1_macro": f1, "f1_class_0": f1 - 0.02, "f1_class_1": f1 + 0.02}
            entry["test"] = test | {"accuracy": f1 + 0.01, "auroc": None if position == 2 else f1 + 0.04}
        history.append(entry)
    return {
        "defense": "none" if position == 0 else "shadow",
        "preset": "paper" if arm in SHADOWS else None,
        "options": {"epsilon": 0.1, "steps": 60} if arm in SHADOWS else {},
        "summary": "The update leaves the client as it is."
        if position == 0
        else "Noise where the shadow generator can rebuild the image, little where the diagnosis looks.",
        "acts_on": [] if position == 0 else ["batch"],
        "history": history,
        "test": history[-1]["test"],
    }


def build_content() -> Content:
    """Six clients, four arms, two attacks; the second attack in one round only."""
    originals = _faces(2 * len(CLIENTS))
    attacks = [("inverting gradients", 1), ("inverting gradients", 30), ("gradinversion", 30)]
    exhibits = [
        _exhibit(index, original, CLIENTS[index // 2], attack, round)
        for attack, round in attacks
        for index, original in enumerate(originals)
        if index % 2 == 0 or round == 1
    ]
    tables = [_table(attack, round, exhibits) for attack, round in attacks]
    tables.insert(0, _table("inverting gradients", None, exhibits))
    results = {
        "title": "Faces on six hospitals",
        "seed": 0,
        "created": "2026-11-22",
        "command": "shadow-defense run faces.yaml --set seed=0",
        "versions": {"shadow-defense": "0.1.0", "torch": "2.13.0"},
        "config": {"seed": 0, "data": {"source": "faces", "image_size": 25}, "arms": {arm: {} for arm in ARMS}},
        "data": {
            "name": "faces",
            "classes": list(CLASSES),
            "image_size": [25, 25],
            "channels": 1,
            "clients": {c: {"train": 12, "validation": 3, "test": 4, "batch_size": 4} for c in CLIENTS},
            "public": 60,
            "test": 40,
            "sha256": "0123456789abcdef" * 4,
        },
        "threat_models": dict.fromkeys(("inverting gradients", "gradinversion"), THREAT_MODEL),
        "attack_settings": {"inverting gradients": {"steps": 2400, "total_variation": 1e-4}},
        "arms": {arm: _arm(position, arm) for position, arm in enumerate(ARMS)},
        "tables": tables,
        "verdict": [
            "Against 'no defense', inverting gradients rebuilds more than the mean image shows: the leak is real "
            "(PSNR 22.3 dB against 11.9 dB, SSIM 0.81 against 0.33).",
            "'shadow' lowers both PSNR and SSIM of inverting gradients: PSNR -9.4 dB (the 95 % interval leaves out "
            "zero), SSIM -0.43 (the 95 % interval leaves out zero).",
            "'uniform control' does so too, with less noise: placing the noise by vulnerability is not what helped.",
            "'shadow' reaches a macro F1 of 0.893 on 40 test images, -2.4 points against the first arm's 0.917.",
        ],
        "notes": ["Clients train in train mode, with the statistics of each batch.", "Images are matched by PSNR."],
    }
    return Content(results, tuple(exhibits))


@pytest.fixture(scope="session")
def content() -> Content:
    return build_content()
