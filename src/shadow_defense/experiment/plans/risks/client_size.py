"""Risk 5: clients with a single sample are the most exposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.risks.base import ATTACK, NO_DEFENSE, UNDEFENDED, changed, main_attack
from shadow_defense.experiment.plans.risks.intervals import welch_difference
from shadow_defense.experiment.plans.risks.readings import Values, differences, image_values, mean_of
from shadow_defense.experiment.plans.risks.risk import DotChart, Finding, Risk, Runs, Subrun
from shadow_defense.report.kit.formatting import signed_with_interval
from shadow_defense.report.records.scores import MEAN_IMAGE

CLIENTS = {1: 8, 8: 2, 32: 2}
"""How many clients of each size."""


def subruns(base: RunConfig, folder: Path) -> dict[str, Subrun]:
    sizes = [size for size, clients in CLIENTS.items() for _ in range(clients)]
    config = changed(
        base,
        "Risk 5: clients of one and of many images",
        # One step on the whole of a client's images: nothing but their number differs.
        data={"split": {"kind": "sizes", "sizes": sizes, "batch_sizes": sizes}},
        training={"rounds": 1, "local_epochs": 1},
        arms={UNDEFENDED: NO_DEFENSE},
        attacks={ATTACK: main_attack(base, [1], clients=None, longest_client=None)},
    )
    return {"clients": Subrun(config)}


def measure(seeds: Sequence[Runs]) -> Finding:
    runs = [runs["clients"] for runs in seeds]
    size_of = {(run.config.seed, client.name): len(client.train) for run in runs for client in run.dataset.clients}
    gains = {}
    for column in ("psnr", "ssim"):
        attacked, blank = (
            image_values(runs, arm=arm, attack=ATTACK, column=f"{column}_whole") for arm in (UNDEFENDED, MEAN_IMAGE)
        )
        above = differences(attacked, blank)
        gains[column] = {
            size: {image: gain for image, gain in above.items() if size_of[image[:2]] == size}
            for size in sorted(set(size_of.values()))
        }
    return finding(gains)


def finding(gains: Mapping[str, Mapping[int, Values]]) -> Finding:
    """From PSNR and SSIM above the mean image's, by the client's number of images and by image."""
    psnr = {size: mean_of(values) for size, values in gains["psnr"].items()}
    least, most = min(psnr), max(psnr)
    value = welch_difference(list(gains["psnr"][least].values()), list(gains["psnr"][most].values()))
    listed = ", ".join(
        f"{signed_with_interval(found.mean, found.interval, 1)} dB with {size}" for size, found in psnr.items()
    )
    sentence = (
        f"Above the mean image the attack gains {listed} images in the client's one batch: "
        f"{signed_with_interval(value.mean, value.interval, 1)} dB between {least} and {most}."
    )
    below = [size for size, found in psnr.items() if found.mean <= 0]
    if below:
        sentence += (
            f" With {', '.join(map(str, below))} images it stays below the mean image: with these iterations it "
            "proves no leak there, nor that there is none."
        )
    rows = []
    for size, found in psnr.items():
        similarity = mean_of(gains["ssim"][size])
        clients = len({image[:2] for image in gains["psnr"][size]})
        rows.append(
            (
                f"{size} image{'' if size == 1 else 's'}",
                signed_with_interval(found.mean, found.interval, 2),
                signed_with_interval(similarity.mean, similarity.interval, 3),
                str(clients),
                str(found.count),
            )
        )
    return Finding(
        sentence,
        f"PSNR above the mean image in clients of {least} minus that in clients of {most}, in dB",
        value,
        "images of both sizes",
        (
            DotChart(
                "PSNR above the mean image, dB",
                {f"{size} image{'' if size == 1 else 's'}": found for size, found in psnr.items()},
                ("mean image", 0.0),
            ),
        ),
        ("Client", "PSNR above the mean image (dB)", "SSIM above the mean image", "Clients", "Images"),
        tuple(rows),
        unit="dB",
        notes=(
            "Reconstructions of a batch are matched one to one to its images (optimal assignment by PSNR). Above the "
            "mean image, since some images are easier to come close to than others.",
            "The images of one batch are attacked together: their interval is narrower than it should be.",
            "Labels are known to the attacker and every size gets the same number of iterations.",
        ),
    )


RISK = Risk(
    5,
    "one-sample clients",
    "Clients with one image are exposed most: in a larger batch, gradients of several images cover one another.",
    "Clients of 1, 8 and 32 images, each with one step on all of its images, attacked in the first round.",
    subruns,
    measure,
)
