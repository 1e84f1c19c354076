r"""Draws what leaks: docs/pictures/leak.png, from a finished run.

    shadow-defense run demo --out leak --set training.rounds=1 --set metrics.lpips=null --set data.split.kind=sizes \
        --set "data.split.sizes=[1, 1, 1, 1]" --set "data.split.batch_sizes=[1, 1, 1, 1]"
    python docs/pictures/leak.py leak docs/pictures/leak.png

First the faces that four clients trained on, one each, then what the attack rebuilt from each client's update without
a defense and with Shadow Defense at two strengths. The faces come with scikit-image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from shadow_defense.experiment.exhibits import collect_exhibits, read_scores
from shadow_defense.experiment.run import Run

ROWS = {
    None: "the clients' images",
    "fedavg": "rebuilt: no defense",
    "shadow-paper": "rebuilt: published strength, 0.19",
    "shadow-strong": "rebuilt: strength 1.0",
}


def draw(folder: Path, picture: Path) -> None:
    run = Run.open(folder)
    exhibits = collect_exhibits(run, read_scores(run, "run `shadow-defense evaluate` again"))
    figure, places = plt.subplots(
        len(ROWS), len(exhibits), figsize=(1.6 * len(exhibits), 7.4), squeeze=False, layout="constrained"
    )
    for row, (arm, title) in enumerate(ROWS.items()):
        for place, exhibit in zip(places[row], exhibits, strict=True):
            image = exhibit.original if arm is None else exhibit.arms[arm].reconstruction
            place.imshow(image.mean(0), cmap="gray", vmin=0, vmax=1)
            under = "" if arm is None else f"SSIM {exhibit.arms[arm].scores['ssim_whole']:.2f}"
            place.set_xlabel(under, fontsize=8)
            place.set(xticks=[], yticks=[])
        places[row][0].set_title(title, fontsize=10, loc="left")
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
