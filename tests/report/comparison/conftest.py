"""A comparison as the engine would write it: thirty defenses, two models, two attacks, and made-up numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from shadow_defense.report.comparison_content import ComparisonContent, ComparisonPictures, plane_front
from shadow_defense.seeds import named_generator

SWEEPS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "fedavg": ("none", ("",), {}),
    "shadow": ("shadow", ("0.1", "0.19", "0.5", "1.0"), {}),
    "uniform control": ("shadow", ("0.1", "0.19", "0.5", "1.0"), {"placement": "uniform"}),
    "gaussian noise": ("noise", ("0.001", "0.01", "0.1"), {}),
    "laplace noise": ("noise", ("0.001", "0.01"), {"distribution": "laplace"}),
    "gradient clipping": ("gradient-clipping", ("8", "4", "1"), {}),
    "sparsification": ("gradient-sparsification", ("0.1", "0.3", "0.9"), {}),
    "soteria": ("soteria", ("weak", "paper", "strong"), {}),
    "outpost": ("outpost", ("weak", "paper", "strong"), {}),
    "censor": ("censor", ("paper",), {}),
    "local-dp": ("local-dp", ("weak", "paper", "strong"), {}),
    "dp-sgd": ("dp-sgd", ("weak", "paper"), {}),
    "no statistics shared": ("none", ("",), {"share_bn": "none"}),
}
MODELS = ("convnet", "resnet18")
ATTACKS = ("inverting-gradients", "gradinversion")
CLIENTS = {f"hospital-{number}": {"train": 1 if number < 8 else 32, "batch_size": 1} for number in range(1, 10)}


def measure(mean: float, half: float | None = 0.05) -> dict[str, Any]:
    """A mean with an interval that lies evenly around it, or with none."""
    return {"mean": mean, "interval": None if half is None else [mean - half, mean + half]}


def _defenses() -> dict[str, Any]:
    defenses = {}
    for family, (kind, labels, options) in SWEEPS.items():
        for label in labels:
            defenses[f"{family} {label}".strip()] = {
                "defense": kind,
                "preset": "paper",
                "options": options | ({"strength": float(label)} if kind == "shadow" else {}),
                "summary": "plain FedAvg, nothing protected" if kind == "none" else f"what {kind} does, in a few words",
                "acts_on": [] if kind == "none" else ["batch" if kind == "shadow" else "gradients"],
                "share_bn": options.get("share_bn", "all"),
                "family": family,
                "label": label or family,
            }
    return defenses


def _row(name: str, strength: float, model: str, attack: str, random: random.Random) -> dict[str, Any]:
    ssim = max(0.05, 0.93 - (0.75 if model == "convnet" else 0.5) * strength + random.gauss(0, 0.05))
    psnr = 10 + 18 * ssim + (2 if attack == "gradinversion" else 0)
    f1 = 0.86 - 0.3 * strength**2 + random.gauss(0, 0.02)
    metrics = {}
    for region, shift in (("whole", 0.0), ("inside", 0.02), ("outside", -0.02)):
        metrics[f"psnr_{region}"] = measure(psnr + 20 * shift, 1.3)
        metrics[f"ssim_{region}"] = measure(ssim + shift, 0.04)
        metrics[f"lpips_{region}"] = measure(0.7 * (1 - ssim) - shift, 0.03)
    return {
        "defense": name,
        "images": 24,
        "seeds": 3,
        "metrics": metrics,
        "difference": {
            key: measure(value["mean"] - (0.93 if key[0] == "s" else 26.7 if key[0] == "p" else 0.05), 0.04)
            for key, value in metrics.items()
        },
        "utility": {
            "f1_macro": measure(f1, 0.03),
            "accuracy": measure(f1 + 0.02, 0.03),
            "auroc": measure(min(f1 + 0.08, 0.99), 0.02),
        },
        "utility_difference": {"f1_macro": measure(f1 - 0.86, 0.03)},
        "cost": {"time": 1 + 3 * strength, "memory": 1 + 0.4 * strength, "prepare_seconds": 20 * strength},
        "epsilon": {**measure(8.2, 0.3), "delta": 1e-5} if "dp" in name.split()[0] else None,
        "measured": {"acceptance_rate": 0.7} if "censor" in name else {},
    }


def _table(model: str, attack: str, round: int | None, defenses: dict[str, Any]) -> dict[str, Any]:
    draws = random.Random(f"{model} {attack} {round}")
    rows = []
    for name, defense in defenses.items():
        labels = SWEEPS[defense["family"]][1]
        place = labels.index(defense["label"]) + 1 if defense["label"] in labels else 0
        rows.append(_row(name, place / (len(labels) + 1), model, attack, draws))
    rows[0] |= {"difference": None, "utility_difference": None, "cost": {"time": 1.0, "memory": 1.0}}
    rows[0]["cost"]["prepare_seconds"] = 0.0
    for name, strength in (("mean image", 0.5), ("random update", 0.85)):
        baseline = _row(name, strength, model, attack, random.Random(name))
        rows.append(baseline | {"utility": None, "utility_difference": None, "cost": None, "epsilon": None})
    return {"model": model, "attack": attack, "round": round, "rows": rows}


def _plane(table: dict[str, Any]) -> dict[str, Any]:
    metric = "ssim_whole"
    points: list[dict[str, Any]] = [
        {"defense": row["defense"], "privacy": row["metrics"][metric], "utility": row["utility"]["f1_macro"]}
        for row in table["rows"]
        if row["utility"]
    ]
    for point, on_front in zip(points, plane_front(metric, points), strict=True):
        point["on_front"] = on_front
    baseline = {row["defense"]: row["metrics"][metric]["mean"] for row in table["rows"] if not row["utility"]}
    return {
        "model": table["model"], "attack": table["attack"], "metric": metric, "points": points, "baseline": baseline,
    }  # fmt: skip


def build_comparison() -> dict[str, Any]:
    defenses = _defenses()
    tables = [
        _table(model, attack, round, defenses) for model in MODELS for attack in ATTACKS for round in (None, 1, 8)
    ]
    pooled = [table for table in tables if table["round"] is None]
    ablations = [{**pooled[0], "rows": [*pooled[0]["rows"][:5], *pooled[0]["rows"][-2:]]}]
    return {
        "title": "Defenses on chest X-rays",
        "created": "2026-11-22",
        "command": "shadow-defense compare pneumoniamnist --set data.path=pneumoniamnist.npz",
        "versions": {"shadow-defense": "0.1.0", "torch": "2.13.0"},
        "seeds": [0, 1, 2],
        "data": {
            "name": "pneumoniamnist",
            "image_size": [32, 32],
            "channels": 1,
            "public": 150,
            "test": 624,
            "clients": CLIENTS,
            "sha256": {str(seed): f"{seed:02x}" * 32 for seed in range(3)},
        },
        "models": {
            "convnet": {"name": "convnet", "normalisation": "group"},
            "resnet18": {"name": "resnet18", "normalisation": "batch"},
        },
        "attacks": {
            attack: {
                "attack": attack,
                "settings": {"iterations": 300},
                "threat_model": "honest-but-curious server.\nNot granted: nothing is withheld.",
                "rounds": [1, 8],
                "clients": ["hospital-1", "hospital-2"],
            }
            for attack in ATTACKS
        },
        "defenses": defenses,
        "tables": tables,
        "planes": [_plane(table) for table in pooled],
        "ablations": ablations,
        "failures": [{"cell": "resnet18, soteria strong, seed 2", "error": "stopped by the system: out of memory"}],
        "left_out": [{"model": "resnet18", "defense": "dp-sgd weak", "reason": "batch norm mixes the samples"}],
        "verdict": ["Shadow does this.", "The control does that."],
        "notes": ["Clients train in train mode.", "Images are matched by PSNR."],
    }


def _pictures(comparison: dict[str, Any]) -> tuple[ComparisonPictures, ...]:
    from skimage.data import lfw_subset

    faces = torch.from_numpy(lfw_subset()).float()[:, None]
    pictures = []
    for index, (model, attack) in enumerate((model, attack) for model in MODELS for attack in ATTACKS):
        draws = named_generator(0, "pictures", index)
        rebuilt = {
            name: (faces[index] + 0.03 * place * torch.randn(faces[index].shape, generator=draws)).clamp(0, 1)
            for place, name in enumerate(comparison["defenses"])
        }
        pictures.append(ComparisonPictures(model, attack, 1, "hospital-1", "face", faces[index], rebuilt))
    return tuple(pictures)


def build_content() -> ComparisonContent:
    comparison = build_comparison()
    return ComparisonContent(comparison, _pictures(comparison))


@pytest.fixture(scope="session")
def comparison() -> dict[str, Any]:
    return build_comparison()


@pytest.fixture(scope="session")
def content() -> ComparisonContent:
    return build_content()
