"""What a malicious server reads of one-image clients under each defense of a study, in one round and in all.

    python benchmarks/malicious_server.py docs/results/pneumoniamnist.yaml --data pneumoniamnist.npz
    python benchmarks/malicious_server.py STUDY.yaml --data pneumoniamnist.npz --only dp-sgd,local-dp --images 50

Of the first seed, as `evidence` has it (docs/attacks.md); of images that were drawn once too, where the worst case says
what is read at most.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from shadow_defense.experiment.plans.evidence.plan import Evidence, base_of, left_by
from shadow_defense.experiment.plans.evidence.reading import load_study
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.tasks.planting import Planting
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.progress import Progress
from shadow_defense.report.kit.formatting import counted, plain, with_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=300, help="that are read")
    parser.add_argument("--only", default="", help="arms whose names hold one of these, with commas between")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    _, study = load_study(given.study, given.data, seeds=[0])
    rows = {}
    with TemporaryDirectory() as folder:
        evidence = Evidence(Path(folder), study.model_copy(update={"workers": 0}))
        scene = base_of(evidence.trial(next(iter(study.models)), 0))
        for arm in scene.config.arms:
            if not any(part in arm for part in given.only.split(",")):
                continue
            for looks in (1, study.training.rounds):
                task = Planting(scene, arm, given.images, looks)
                carry_out([task], evidence.store, evidence.workers, Progress(), name=task.about)
                left = left_by(task.load(evidence.store), 0, counted(looks, "round"), once=False)
                assert left is not None
                rows[f"{arm}, {left.by}"] = {"above": left.above, "ssim": left.ssim, "found": left.found}
                numbers = ", ".join(f"{name} {written(each)}" for name, each in rows[f"{arm}, {left.by}"].items())
                print(f"{arm}, {left.by}, {left.above.count} of {left.gallery}: {numbers}", flush=True)
    if given.json:
        numbers_of = {row: {name: each.as_record() for name, each in own.items()} for row, own in rows.items()}
        given.json.write_text(json.dumps(numbers_of, indent=1))


def written(measure: Estimate) -> str:
    """A number with its interval."""
    return plain(with_interval(measure, 3))


if __name__ == "__main__":
    main()
