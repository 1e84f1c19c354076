"""Draws what leaks: docs/pictures/leak.png, from a finished run.

    shadow-defense demo --images faces --out leak
    python docs/pictures/leak.py leak docs/pictures/leak.png

First the faces that the four clients of one image trained on, then the closest that any attacker of the demo came to
each: without a defense, with Shadow Defense at two strengths, and from images that were protected once. The faces come
with scikit-image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from shadow_defense.experiment.exhibits import collect_patients
from shadow_defense.experiment.plans.run import read_results
from shadow_defense.experiment.run import Run

ROWS = {
    None: "the clients' images",
    "no-defense": "rebuilt: no defense",
    "published-strength-0.19": "rebuilt: published strength, 0.19",
    "strength-1.0": "rebuilt: strength 1.0",
    "protect-once": "rebuilt: protect once, the worst case",
}


def draw(folder: Path, picture: Path) -> None:
    run = Run.open(folder)
    record = read_results(run)
    patients = collect_patients(run, record)[:4]
    figure, places = plt.subplots(
        len(ROWS), len(patients), figsize=(1.6 * len(patients), 10.4), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.08)
    for row, (arm, title) in enumerate(ROWS.items()):
        for place, patient in zip(places[row], patients, strict=True):
            image = patient.original
            if arm is not None:
                sight = record.closest(arm)[patient.sample_id]
                image = patient.rebuilt[arm, sight.attack]
                place.set_xlabel(f"SSIM {sight.ssim:.2f}\n{sight.recognition}", fontsize=8)
            place.imshow(image.mean(0), cmap="gray", vmin=0, vmax=1)
            place.set(xticks=[], yticks=[])
        places[row][0].set_title(title, fontsize=10, loc="left", pad=6)
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
