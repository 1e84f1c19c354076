"""A comparison of thirty arms on two models under two attacks, with made-up numbers."""

from __future__ import annotations

import random
from dataclasses import replace

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.pareto import pareto_front
from shadow_defense.report.records.comparison import (
    ComparisonRecord,
    DefenseEntry,
    Failure,
    LeftOut,
)
from shadow_defense.report.records.scores import (
    MEAN_IMAGE,
    RANDOM_UPDATE,
    Attack,
    Client,
    Data,
    Guarantee,
    Row,
    ScoreTable,
)

SWEEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fedavg": ("none", ("",)),
    "shadow": ("shadow", ("0.1", "0.19", "0.5", "1.0")),
    "uniform control": ("shadow", ("0.1", "0.19", "0.5", "1.0")),
    "gaussian noise": ("noise", ("0.001", "0.01", "0.1")),
    "laplace noise": ("noise", ("0.001", "0.01")),
    "gradient clipping": ("gradient-clipping", ("8", "4", "1")),
    "sparsification": ("gradient-sparsification", ("0.1", "0.3", "0.9")),
    "soteria": ("soteria", ("weak", "paper", "strong")),
    "outpost": ("outpost", ("weak", "paper", "strong")),
    "censor": ("censor", ("paper",)),
    "local-dp": ("local-dp", ("weak", "paper", "strong")),
    "dp-sgd": ("dp-sgd", ("weak", "paper")),
    "no statistics shared": ("none", ("",)),
}
MODELS = ("convnet", "resnet18")
ATTACKS = ("inverting-gradients", "gradinversion")


def estimate(mean: float, half: float = 0.05) -> Estimate:
    return Estimate(mean, (mean - half, mean + half), 24)


def defense_entries() -> dict[str, DefenseEntry]:
    entries = {}
    for family, (kind, labels) in SWEEPS.items():
        for label in labels:
            placement = {"shadow": "targeted", "uniform control": "uniform"}.get(family)
            entries[f"{family} {label}".strip()] = DefenseEntry(
                defense=kind,
                preset="paper",
                options={"strength": float(label)} if kind == "shadow" else {},
                summary="plain FedAvg, nothing protected" if kind == "none" else f"what {kind} does, in a few words",
                acts_on=() if kind == "none" else ("batch" if kind == "shadow" else "gradients",),
                share_bn="none" if family == "no statistics shared" else "all",
                family=family,
                label=label or family,
                placement=placement,
                control=f"uniform control {label}" if placement == "targeted" else None,
            )
    return entries


def _row(name: str, strength: float, model: str, attack: str, draws: random.Random) -> Row:
    ssim = max(0.05, 0.93 - (0.75 if model == "convnet" else 0.5) * strength + draws.gauss(0, 0.05))
    psnr = 10 + 18 * ssim + (2 if attack == "gradinversion" else 0)
    f1 = 0.86 - 0.3 * strength**2 + draws.gauss(0, 0.02)
    metrics = {}
    for region, shift in (("whole", 0.0), ("inside", 0.02), ("outside", -0.02)):
        metrics[f"psnr_{region}"] = estimate(psnr + 20 * shift, 1.3)
        metrics[f"ssim_{region}"] = estimate(ssim + shift, 0.04)
        metrics[f"lpips_{region}"] = estimate(0.7 * (1 - ssim) - shift, 0.03)
    first = {"psnr": 26.7, "ssim": 0.93, "lpips": 0.05}
    row = Row(
        arm=name,
        images=24,
        seeds=3,
        metrics=metrics,
        difference={key: estimate(value.mean - first[key.partition("_")[0]], 0.04) for key, value in metrics.items()},
    )
    if row.baseline:
        return row
    return replace(
        row,
        utility={"f1_macro": estimate(f1, 0.03), "accuracy": estimate(f1 + 0.02, 0.03), "auroc": estimate(0.9, 0.02)},
        utility_difference={"f1_macro": estimate(f1 - 0.86, 0.03)},
        cost={"time": 1 + 3 * strength, "memory": 1 + 0.4 * strength, "prepare_seconds": 20 * strength},
        epsilon=Guarantee(estimate(8.2, 0.3), 1e-5) if "dp" in name.split()[0] else None,
        measured={"acceptance_rate": 0.7} if "censor" in name else {},
        share_bn="none" if name == "no statistics shared" else "all",
    )


def _table(model: str, attack: str, round: int | None, entries: dict[str, DefenseEntry]) -> ScoreTable:
    draws = random.Random(f"{model} {attack} {round}")
    rows = []
    for name, entry in entries.items():
        labels = SWEEPS[entry.family][1]
        place = labels.index(entry.label) + 1 if entry.label in labels else 0
        rows.append(_row(name, place / (len(labels) + 1), model, attack, draws))
    rows[0] = replace(rows[0], difference={}, utility_difference={})
    rows += [_row(MEAN_IMAGE, 0.5, model, attack, draws), _row(RANDOM_UPDATE, 0.85, model, attack, draws)]
    return ScoreTable(model=model, attack=attack, round=round, rows=tuple(rows))


def with_front(table: ScoreTable) -> ScoreTable:
    """The table with its front marked: the lower the SSIM, the better."""
    rows = [row for row in table.rows if not row.baseline]
    front = pareto_front([(-row.metrics["ssim_whole"].mean, row.utility["f1_macro"].mean) for row in rows])
    fronts = {row.arm: on for row, on in zip(rows, front, strict=True)}
    return replace(table, rows=tuple(replace(row, on_front=fronts.get(row.arm)) for row in table.rows))


def build_comparison() -> ComparisonRecord:
    entries = defense_entries()
    tables = []
    for model in MODELS:
        for attack in ATTACKS:
            pooled = with_front(_table(model, attack, None, entries))
            tables += [pooled, *(_table(model, attack, round, entries) for round in (1, 8))]
    ablation = _table(MODELS[0], ATTACKS[0], None, entries)
    clients = {f"hospital-{number}": Client(1 if number < 8 else 32, 1) for number in range(1, 10)}
    attacked = {"rounds": (1, 8), "clients": ("hospital-1", "hospital-2"), "settings": {"iterations": 300}}
    return ComparisonRecord(
        title="Defenses on chest X-rays",
        created="2026-11-22",
        command="shadow-defense compare pneumoniamnist --set data.path=pneumoniamnist.npz",
        versions={"shadow-defense": "0.1.0", "torch": "2.13.0"},
        seeds=(0, 1, 2),
        data=Data(
            name="pneumoniamnist",
            image_size=(32, 32),
            channels=1,
            public=150,
            test=624,
            clients=clients,
            sha256={str(seed): f"{seed:02x}" * 32 for seed in range(3)},
        ),
        models={"convnet": {"normalisation": "group"}, "resnet18": {"normalisation": "batch"}},
        attacks={
            name: Attack(attack=name, threat_model="honest-but-curious server.\nNot granted: nothing.", **attacked)
            for name in ATTACKS
        },
        defenses=entries,
        tables=tuple(tables),
        ablations=(replace(ablation, rows=(*ablation.rows[:5], *ablation.rows[-2:])),),
        failures=(Failure("resnet18, soteria strong, seed 2", "stopped by the system: out of memory"),),
        left_out=(LeftOut("resnet18", "dp-sgd weak", "batch norm mixes the samples"),),
        verdict=("Shadow does this.", "The control does that."),
        notes=("Clients train in train mode.", "Images are matched by PSNR."),
    )
