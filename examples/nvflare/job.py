"""Three sites in NVFlare's simulator: ShadowGuard in their training, a defense of the update behind it, and an auditor.

Run it with: python job.py FOLDER
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from faces import HELD, FacesModel, images_of, public_images
from nvflare.app_opt.pt.job_config.fed_avg import FedAvgJob
from nvflare.client.config import TransferType
from nvflare.job_config.defs import FilterType
from nvflare.job_config.script_runner import ScriptRunner
from PIL import Image

from shadow_defense.federated.nvflare.recording_filter import RecordingFilter
from shadow_defense.federated.nvflare.site_state import STATE_FOLDER
from shadow_defense.federated.nvflare.update_defense_filter import UpdateDefenseFilter
from shadow_defense.files import atomic_path
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.training import pretrain

ROUNDS, TRAIN = 2, ["train"]

OPTIONS: dict[str, dict[str, Any]] = {
    "gradient-clipping": {"place": "update"},
    "gradient-sparsification": {"place": "update"},
    "local-dp": {},
    "noise": {"place": "update"},
}


def build_job(
    folder: Path, *, generator: Path | None, update_defense: str | None, images: Path | None = None
) -> FedAvgJob:
    """The job: FedAvg over differences; what the server sees goes below ``folder``."""
    job = FedAvgJob(FacesModel(), n_clients=len(HELD), num_rounds=ROUNDS, name="faces", min_clients=len(HELD))
    # Installed at every site: not to be copied into the job.
    job.set_app_packages(["shadow_defense"])
    files = {"generator": generator, "images": images}
    arguments = " ".join([f"--run {job.name}", *(f"--{name} {file}" for name, file in files.items() if file)])
    # NVFlare's default is FULL: whole weights, of which no update-space defense makes sense.
    job.to_clients(ScriptRunner("client.py", arguments, params_transfer_type=TransferType.DIFF))
    if update_defense is not None:
        protecting = UpdateDefenseFilter(
            update_defense, FacesModel(), run=job.name, rounds=ROUNDS, options=OPTIONS[update_defense]
        )
        job.to_clients(protecting, filter_type=FilterType.TASK_RESULT, tasks=TRAIN)
    for kind in (FilterType.TASK_DATA, FilterType.TASK_RESULT):
        job.to_server(RecordingFilter(str(folder / "seen")), filter_type=kind, tasks=TRAIN)
    return job


def write_truth(path: Path, images: Path | None) -> None:
    """The single image of site-1, which the audit is scored with; its attack does not see it."""
    image = images_of("site-1", images)[0][0, 0]
    with atomic_path(path) as temporary:
        Image.fromarray(((image + 1) * 127.5).round().byte().numpy()).save(temporary)


def main() -> int:
    """Pre-train the shadow generator, then run the job; the exit code is NVFlare's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder for all that is written")
    parser.add_argument("--no-shadow", action="store_true", help="train on the images as they are")
    parser.add_argument("--images", type=Path, help="an .npz to train on in place of the bundled faces")
    parser.add_argument("--update-defense", choices=sorted(OPTIONS), help="a defense of the update as well")
    parser.add_argument("--threads", type=int, default=len(HELD), help="sites at work at the same time")
    given = parser.parse_args()
    folder = given.folder.expanduser().resolve()
    if folder.exists():
        parser.error(f"{folder} exists: give a new folder, since no site trains a round twice")
    generator = None
    if not given.no_shadow:
        pretrain(GeneratorSettings(z_dim=16, width=8, steps=100), public_images(), seed=0, folder=folder / "generator")
        generator = folder / "generator" / "generator.safetensors"
    images = None if given.images is None else given.images.expanduser().resolve()
    write_truth(folder / "truth.png", images)
    # All sites are simulated on one machine; in a deployment each sets its own.
    os.environ.setdefault(STATE_FOLDER, str(folder / "sites"))
    # NVFlare copies the script into the job by its relative name.
    os.chdir(Path(__file__).parent)
    job = build_job(folder, generator=generator, update_defense=given.update_defense, images=images)
    return job.simulator_run(str(folder / "nvflare"), n_clients=len(HELD), threads=given.threads)


if __name__ == "__main__":
    sys.exit(main())
