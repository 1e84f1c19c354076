"""The stages ``evaluate`` and ``report``: numbers to ``results.json`` and CSV, pictures and numbers to one page."""

from __future__ import annotations

import datetime
import hashlib
import math
import platform
from importlib import metadata
from typing import Any

import torch

import shadow_defense
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import FederatedDataset
from shadow_defense.errors import RunError
from shadow_defense.experiment.exhibits import collect_exhibits
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scores_file import read_scores
from shadow_defense.experiment.scoring import Score, score_all
from shadow_defense.experiment.tables import all_tables
from shadow_defense.federated.batch_norm_policy import MOST_PUBLIC_IMAGES, lacks_statistics, withheld_names
from shadow_defense.federated.rounds import read_journal
from shadow_defense.files import read_json, write_json, write_text
from shadow_defense.progress import Progress
from shadow_defense.report.pages.run import render_run, run_numbers
from shadow_defense.report.records.run import read_run
from shadow_defense.report.sentences.run import run_verdict
from shadow_defense.shadow.settings import ShadowSettings


def evaluate_stage(run: Run, progress: Progress | None = None) -> dict[str, Any]:
    """Score every reconstruction and write ``results.json``, ``results.csv`` and ``scores.json`` (image by image)."""
    scores = score_all(run, progress)
    rounds = {attack: run.config.attacked_rounds(attack) for attack in run.config.attacks}
    results: dict[str, Any] = {
        "title": run.config.title,
        "seed": run.config.seed,
        "created": datetime.date.today().isoformat(),
        "command": f"shadow-defense run {run.folder / 'config.yaml'} --out {run.folder}-again",
        "versions": versions(),
        "config": run.config.as_dict(),
        "data": data_record(run),
        "threat_models": {
            name: threat_model(attack.threat_model).describe() for name, attack in run.config.attacks.items()
        },
        "attack_settings": {
            name: {"attack": attack.attack, **_plain(attack.build())} for name, attack in run.config.attacks.items()
        },
        "arms": _arms(run),
        "tables": all_tables(scores, list(run.config.arms), rounds),
    }
    record = read_run(results)
    results["verdict"] = run_verdict(record)
    results["notes"] = _notes(run, scores)
    write_json(run.folder / "scores.json", [_score(score) for score in scores])
    write_text(run.folder / "results.csv", run_numbers(record).csv())
    write_json(run.results_path, results)
    return results


def report_stage(run: Run, progress: Progress | None = None) -> None:
    """Write ``report.html`` from the results and the stored pictures."""
    if not run.results_path.exists():
        raise RunError(f"{run.folder} has no results yet: run `shadow-defense evaluate {run.folder}` first")
    mend = f"run `shadow-defense evaluate {run.folder}` again"
    results, scores = read_json(run.results_path, mend), read_scores(run, mend)
    task = (progress or Progress()).start("writing the report", 1)
    write_text(run.report_path, render_run(read_run(results, str(run.results_path)), collect_exhibits(run, scores)))
    task.advance()
    task.finish()


def _plain(attack: Any) -> dict[str, Any]:
    return attack.model_dump(mode="json")


def _score(score: Score) -> dict[str, Any]:
    return {
        "arm": score.arm,
        "attack": score.attack,
        "round": score.round,
        "client": score.client,
        # JSON has no infinity: an attack that does not know which image is whose cannot say how well they match.
        "matching_loss": score.matching_loss if math.isfinite(score.matching_loss or 0) else None,
        "seconds": score.seconds,
        "notes": list(score.notes),
        "rows": list(score.rows),
    }


def versions() -> dict[str, str]:
    packages = ("torch", "numpy", "monai", "torchmetrics", "scikit-image")
    return {
        "shadow-defense": shadow_defense.__version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "threads": str(torch.get_num_threads()),
    }


def data_record(run: Run) -> dict[str, Any]:
    data = run.dataset
    return {
        "name": data.name,
        "classes": list(data.class_names),
        "image_size": list(data.image_size),
        "channels": data.channels,
        "clients": {
            client.name: {
                "train": len(client.train),
                "validation": len(client.validation),
                "test": len(client.test),
                "batch_size": client.batch_size,
            }
            for client in data.clients
        },
        "public": len(data.public),
        "test": len(data.test),
        "sha256": data_hash(data),
    }


def data_hash(data: FederatedDataset) -> str:
    """Of all pixels and labels in their places: two runs with the same hash saw the same federation."""
    digest = hashlib.sha256()
    for part in (
        data.public,
        data.test,
        *(part for client in data.clients for part in (client.train, client.validation)),
    ):
        digest.update(part.images.contiguous().numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()


def _arms(run: Run) -> dict[str, Any]:
    arms = {}
    for arm, settings in run.config.arms.items():
        rounds_done, history = read_journal(run.arm_folder(arm))
        if rounds_done < run.config.training.rounds:
            raise RunError(f"arm '{arm}' is not fully trained: run `shadow-defense train {run.folder}` to go on")
        kind = settings.kind()
        arms[arm] = {
            "defense": settings.defense,
            "preset": settings.preset,
            "options": dict(settings.options),
            # Of a model without batch norm there is nothing to say, but for what was asked for.
            "share_bn": settings.share_bn if settings.share_bn != "all" or _has_batch_norm(run, arm) else None,
            "summary": kind.summary,
            "acts_on": list(settings.acts_on()),
            "history": history,
            "test": history[-1]["test"],
        }
    return arms


def _has_batch_norm(run: Run, arm: str) -> bool:
    return bool(withheld_names(run.new_model(arm), "none"))


def _batch_norm_notes(run: Run) -> list[str]:
    """What it means that some arms keep batch norm on the clients; nothing where none does."""
    mode, arms = run.config.training.batch_norm, run.config.arms
    models = {name: run.new_model(name) for name, arm in arms.items() if arm.share_bn != "all"}
    without_statistics = [name for name in models if lacks_statistics(models[name], arms[name].share_bn, mode)]
    kept = {
        name: withheld_names(model, arms[name].share_bn).intersection(key for key, _ in model.named_parameters())
        for name, model in models.items()
    }
    without_parameters = [name for name, names in kept.items() if names]
    notes = []
    if without_statistics:
        notes.append(
            f"Running statistics stay with the clients in {', '.join(without_statistics)}: wherever the global model "
            "is run in eval mode, to measure its F1 too, they are estimated anew on "
            f"{min(len(run.dataset.public), MOST_PUBLIC_IMAGES)} public images."
        )
    if without_parameters:
        notes.append(
            f"Batch norm's scales and shifts stay with the clients in {', '.join(without_parameters)}: the global "
            "model keeps its first ones. Its F1 is that of the server's model, which no client uses as it is."
        )
    return notes


def _notes(run: Run, scores: list[Score]) -> list[str]:
    training, model = run.config.training, run.config.model
    mode = {
        "train": "train mode, with the statistics of each batch where the model has batch norm",
        "eval": "eval mode, with frozen batch-norm statistics",
    }[training.batch_norm]
    # Smooth activations leak more: which one is there belongs to the reading of the numbers.
    activation = f" ({model.activation})" if model.name == "convnet" else ""
    notes = [
        f"The task model is {model.name}{activation} with {model.normalisation} normalisation; "
        f"clients train in {mode}.",
        "PSNR and SSIM: higher means that the attacker sees more. LPIPS: lower means that the attacker sees more.",
        "Reconstructions are matched to the client's images one to one (optimal assignment by PSNR); 'best match' is "
        "the paper's form, in which every metric takes its own best over all of the client's images.",
        "Inside and outside refer to the foreground: "
        + (
            "the lesion's mask."
            if run.dataset.test.masks is not None
            else f"the top {run.config.metrics.foreground_share:.0%} of Grad-CAM++ of the first arm's final model."
        ),
    ]
    notes += _batch_norm_notes(run)
    spared = [part for arm in run.config.arms.values() for part in arm.parts().values()]
    if any(isinstance(arm, ShadowSettings) and arm.foreground and arm.foreground_temperature >= 1 for arm in spared):
        notes.append(
            "At the published temperature (20) the sparing of the foreground is nearly the same for every pixel: the "
            "diagnosis map is shown, but it hardly moves the noise (docs/method.md)."
        )
    assumed = {note: f"{score.attack}: {note}." for score in scores for note in score.notes}
    return notes + list(assumed.values())
