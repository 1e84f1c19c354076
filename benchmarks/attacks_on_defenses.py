"""What each defense does to each attack: PSNR and SSIM of one-image clients' faces, as the tables of docs/attacks.md.

    .venv/bin/python benchmarks/attacks_on_defenses.py                  (goes on where it was stopped)
    .venv/bin/python benchmarks/attacks_on_defenses.py --adaptive       (the attacker knows the defense)
    .venv/bin/python benchmarks/attacks_on_defenses.py --attacks r-gap --defenses none noise --images 1

Every attack on the model it is made for, with the small budget of ATTACKS; every defense at its preset `paper`. Faces
of 16 px from scikit-image, one local step of the first of ten rounds at learning rate 0.1, on an untrained model. The
shadow generator, which generator-based attacks share, is a DCGAN of width 8 trained on public faces for 1,000 steps.
Two rows are no defense: the mean public face, and the attack on noise as long as the undefended update.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from one_image_clients import BATCH, GROUP, IMPRINT, LENET, MODELS, MOST_IMAGES, PERCEPTRON, Federation
from torch import Tensor

from shadow_defense.attacks.build import AttackSettings, reconstruct
from shadow_defense.attacks.observation import Observation, randomised
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.errors import ShadowDefenseError
from shadow_defense.experiment.provenance import versions
from shadow_defense.files import read_json, write_json
from shadow_defense.metrics.fidelity import score_reconstructions
from shadow_defense.progress import Task
from shadow_defense.seeds import seed_for

MEAN_IMAGE, RANDOM_UPDATE = "mean image", "random update"


@dataclass(frozen=True)
class Column:
    """An attack of the table: the registry's name, the model it is run on, its budget, and who runs it."""

    attack: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threat: str = "informed server"

    def settings(self, adaptive: bool) -> AttackSettings:
        """Raises :class:`ThreatModelError` where no threat model grants what the attack needs and the defense."""
        own = self.threat == "informed server"
        return AttackSettings(
            attack=self.attack,
            options=dict(self.options),
            threat_model="adaptive server" if adaptive and own else self.threat,
            adaptive={} if adaptive else None,
        )


ATTACKS = {
    "inverting-gradients": Column("inverting-gradients", LENET, {"iterations": 200}),
    "inverting-gradients, fast": Column("inverting-gradients", LENET, {"variant": "fast", "iterations": 200}),
    "gradinversion": Column("gradinversion", BATCH, {"iterations": 500}),
    # On the ConvNet with batch norm it needs thousands of iterations: its seeds start from noise, not from a template.
    "gradinversion-group": Column("gradinversion-group", LENET, {"iterations": 150, "seeds": 2}),
    "dlg": Column("dlg", LENET, {"iterations": 20, "restarts": 2}),
    "idlg": Column("idlg", LENET, {"iterations": 20, "restarts": 2}),
    "fully-connected-leak": Column("fully-connected-leak", PERCEPTRON),
    "r-gap": Column("r-gap", LENET),
    "gias": Column("gias", GROUP, {"iterations": 400, "weight_iterations": 200, "restarts": 1}),
    "model-based": Column(
        "model-based", BATCH, {"iterations": 400, "learning_rate": 0.1, "weight_learning_rate": 1e-3}
    ),
    "ggl": Column("ggl", GROUP, {"iterations": 400, "restarts": 2}),
    "gifd": Column("gifd", GROUP, {"iterations": 100, "restarts": 2, "stages": 2}),
    "learning-to-invert": Column("learning-to-invert", LENET, {"updates": 200, "hidden": 500}),
    "rog": Column("rog", LENET),
    "robbing-the-fed": Column("robbing-the-fed", IMPRINT, threat="malicious server"),
}


Entry = dict[str, Any]
"""Of one attack on one client: psnr, ssim and seconds, or the reason why there is none, refused."""


class Entries:
    """All entries so far, in a file that is written after each, so that an interruption loses nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Entry] = read_json(path) if path.exists() else {}

    @staticmethod
    def key(label: str, defense: str, image: int, seed: int) -> str:
        """Names all that decides the numbers: another budget is another entry."""
        column = ATTACKS[label]
        return json.dumps([column.attack, dict(column.options), column.model, defense, image, seed])

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        self._entries[key] = entry
        write_json(self._path, self._entries)


def defense_settings(name: str, model: str) -> DefenseSettings:
    """The preset `paper`; Shadow Defense spares no foreground on a perceptron, which has no feature map to find it."""
    blind = name == "shadow" and model == PERCEPTRON
    return DefenseSettings(defense=name, options={"foreground": False} if blind else {})


def score(images: Tensor, truth: Tensor) -> Entry:
    """PSNR in dB and SSIM of the image that comes nearest, of as many as the attack returned."""
    (best,) = [row for row in score_reconstructions(images, truth) if row["truth"] is not None]
    return {"psnr": best["psnr_whole"], "ssim": best["ssim_whole"]}


def attacked(settings: AttackSettings, observation: Observation, truth: Tensor, seed: int) -> Entry:
    started = time.process_time()
    found = reconstruct(settings, observation, seed, Task())
    return {**score(found.images, truth), "seconds": time.process_time() - started, "notes": list(found.notes)}


def fill(
    entries: Entries,
    labels: Sequence[str],
    defenses: Sequence[str],
    images: int,
    federation: Federation,
    *,
    adaptive: bool,
) -> None:
    """Compute what is missing, client by client, so that what an interruption leaves is a table of fewer images."""
    seed = federation.seed
    for image in range(images):
        for defense in (*defenses, RANDOM_UPDATE):
            for model_name in MODELS:
                settings = defense_settings("none" if defense == RANDOM_UPDATE else defense, model_name)
                on_model = [label for label in labels if ATTACKS[label].model == model_name]
                keys = {label: Entries.key(label, defense, image, seed) for label in on_model}
                waiting = [label for label in on_model if entries.get(keys[label]) is None]
                if not waiting:
                    continue
                try:
                    model = federation.model(model_name, settings)
                    update = federation.send(image, model, settings)
                except ShadowDefenseError as error:
                    for label in waiting:
                        entries.put(keys[label], {"refused": str(error)})
                    continue
                for label in waiting:
                    try:
                        chosen = ATTACKS[label].settings(adaptive)
                        seen = federation.observation(image, model, update, settings, chosen.threat_model)
                        if defense == RANDOM_UPDATE:
                            seen = randomised(seen, seed_for(seed, image))
                        own = seed_for(seed, "attack", label, image)
                        entry = attacked(chosen, seen, federation.truth(image), own)
                    except ShadowDefenseError as error:
                        entry = {"refused": str(error)}
                    entries.put(keys[label], entry)
                print(f"client {image + 1}, {defense}, {model_name}", file=sys.stderr, flush=True)


def table(
    entries: Mapping[tuple[str, str], Sequence[Entry]], rows: Iterable[str], labels: Sequence[str], reasons: list[str]
) -> list[str]:
    """Markdown: a row a defense, a column an attack, mean PSNR over mean SSIM; refusals are numbered in ``reasons``."""
    lines = [f"| PSNR dB / SSIM | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for row in rows:
        cells = (cell(entries.get((row, label), ()), reasons) for label in labels)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def cell(entries: Sequence[Entry], reasons: list[str]) -> str:
    """The mean of what was rebuilt; the number of a reason where any of it was refused."""
    if not entries:
        return "-"
    refused = [entry["refused"] for entry in entries if "refused" in entry]
    if refused:
        if refused[0] not in reasons:
            reasons.append(refused[0])
        return f"refused [{reasons.index(refused[0]) + 1}]"
    psnr, ssim = (statistics.fmean(entry[metric] for entry in entries) for metric in ("psnr", "ssim"))
    return f"{psnr:.1f} / {ssim:.2f}"


def print_tables(
    entries: Entries, labels: Sequence[str], defenses: Sequence[str], images: int, federation: Federation
) -> None:
    found: dict[tuple[str, str], list[Entry]] = {}
    for label in labels:
        for defense in (*defenses, RANDOM_UPDATE):
            each = [entries.get(Entries.key(label, defense, image, federation.seed)) for image in range(images)]
            found[defense, label] = [entry for entry in each if entry is not None]
        found[MEAN_IMAGE, label] = [
            score(federation.mean_face.unsqueeze(0), federation.truth(image)) for image in range(images)
        ]
    reasons: list[str] = []
    rows = (*defenses, MEAN_IMAGE, RANDOM_UPDATE)
    print("\n".join(table(found, rows, labels, reasons)))
    for number, reason in enumerate(reasons, start=1):
        print(f"\n[{number}] {reason}")
    print()
    for label in labels:
        seconds = [entry["seconds"] for row in rows for entry in found[row, label] if "seconds" in entry]
        options = ", ".join(f"{name} {value}" for name, value in ATTACKS[label].options.items()) or "its defaults"
        spent = f"{statistics.fmean(seconds):.1f} s of processor time an image" if seconds else "not run"
        print(f"- {label}: {ATTACKS[label].model}; {options}; {spent}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK")
    parser.add_argument("--defenses", nargs="+", choices=DEFENSES, default=list(DEFENSES), metavar="DEFENSE")
    parser.add_argument("--images", type=int, default=3, choices=range(1, MOST_IMAGES + 1), metavar="1-10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adaptive", action="store_true", help="attacks are fitted to the defense, which they know")
    parser.add_argument("--folder", type=Path, default=Path("runs/attacks-on-defenses"), help="generator and results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    # A file each: both tables may be computed at once.
    entries = Entries(arguments.folder / ("adaptive.json" if arguments.adaptive else "published.json"))
    federation = Federation(arguments.seed, arguments.folder)
    of = (arguments.attacks, arguments.defenses, arguments.images, federation)
    fill(entries, *of, adaptive=arguments.adaptive)
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{datetime.date.today()}, {packages}; {arguments.images} images, seed {arguments.seed}", end="")
    print(", adaptive\n" if arguments.adaptive else "\n")
    print_tables(entries, *of)


if __name__ == "__main__":
    main()
