"""The plan of one run: its generator, trainings, attacks and scores; then numbers, CSV and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shadow_defense.errors import RunError
from shadow_defense.experiment.analysis import score_table, shown_rounds, sights_of, training_row
from shadow_defense.experiment.described import arm_titles, attack_of, data_of, defense_of, made, rounds_of
from shadow_defense.experiment.exhibits import collect_patients, evaluate_again, write_scores
from shadow_defense.experiment.forecast import training_seconds
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import Attacking
from shadow_defense.experiment.tasks.checking import CHECKING, check_defense, check_scene
from shadow_defense.experiment.tasks.costing import Costing
from shadow_defense.experiment.tasks.pretraining import Pretraining
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.experiment.tasks.training import Training
from shadow_defense.experiment.work import Workers
from shadow_defense.federated.batch_norm_policy import MOST_PUBLIC_IMAGES, lacks_statistics, withheld_names
from shadow_defense.files import write_text
from shadow_defense.progress import Progress, duration
from shadow_defense.report.pages.run import render_run, run_numbers
from shadow_defense.report.records.reading import load_record, write_record
from shadow_defense.report.records.run import Arm, RunRecord
from shadow_defense.report.records.scores import MEAN_IMAGE, Row
from shadow_defense.report.sentences.noted import noted_once
from shadow_defense.report.sentences.run import run_verdict
from shadow_defense.shadow.settings import ShadowSettings

FORECAST_FROM = 128
"""Side of images, in pixels, from which on it is measured before a training how long it will take."""


def pretrain_stage(run: Run, progress: Progress | None = None) -> None:
    """Train the shadow generator on the public images, or take the one that the configuration names."""
    if run.config.needs_generator:
        with (progress or Progress()).during(CHECKING):
            check_scene(run)
        _pretrain(run, progress)


def train_stage(run: Run, progress: Progress | None = None) -> None:
    """Train the arms that are not finished, each in a process of its own."""
    with (progress or Progress()).during(CHECKING):
        run.check()
    waiting = [arm for arm, training in run.trainings.items() if not run.store.has(training)]
    if not waiting:
        return
    if run.config.needs_generator:
        _pretrain(run, progress)
    for arm in run.config.arms:
        check_defense(run, arm, run.generator_path)
    for arm in run.config.arms:
        run.name_training(arm)
    forecast = forecast_text(run, waiting, progress)
    _carry_out(run, list(run.trainings.values()), progress, f"training {len(waiting)} arms{forecast}, rounds")


def attack_stage(run: Run, progress: Progress | None = None) -> None:
    """Run the attacks whose reconstruction is not there yet."""
    attacks, removals = _attacks(run)
    for arm, training in run.trainings.items():
        if attacks and not run.store.has(training):
            raise RunError(f"arm '{arm}' is not fully trained: run `shadow-defense train {run.folder}` to go on")
    waiting = sum(not run.store.has(attack) for attack in attacks)
    _carry_out(run, attacks, progress, f"attacking {waiting} updates")
    _carry_out(run, removals, progress, "handing protected images to removers")
    for attack in (*attacks, *removals):
        run.name_reconstruction(attack)


def whole_run(run: Run, progress: Progress | None = None) -> RunRecord:
    """All stages, with nothing that waits for what it does not need: an attack begins where its arm's training ends.

    Trainings of large images come first, for the sake of the forecast of how long they will take.
    """
    with (progress or Progress()).during(CHECKING):
        for arm, settings in run.config.arms.items():
            if not settings.kind().needs_generator:
                check_defense(run, arm, run.generator_path)
            run.name_training(arm)
    if run.config.needs_generator:
        run.name_generator()
    if max(run.dataset.image_size) >= FORECAST_FROM:
        train_stage(run, progress)
    attacks, removals = _attacks(run)
    tasks = [*run.trainings.values(), *attacks, *removals, *run.scorings, *run.worst_cases]
    _carry_out(run, tasks, progress, f"training {len(run.trainings)} arms, attacks, scores", _worth)
    for attack in (*attacks, *removals):
        run.name_reconstruction(attack)
    record = evaluate_stage(run, progress)
    report_stage(run, progress)
    return record


def _attacks(run: Run) -> tuple[list[Attacking], list[Attacking]]:
    """On updates, and on protected images themselves."""
    return [run.attacking(job) for job in run.jobs()], [scoring.attack for scoring in run.worst_cases]


def _worth(task: Task) -> float:
    """About as many iterations of an attack take as long, for a bar over tasks of several kinds."""
    if isinstance(task, Training):
        training, clients = task.scene.config.training, task.scene.dataset.clients
        return 10.0 * task.steps() * sum(training.steps(len(each.train), each.batch_size) for each in clients)
    return 3.0 * task.steps() if isinstance(task, Pretraining) else max(10.0, task.steps())


def evaluate_stage(run: Run, progress: Progress | None = None) -> RunRecord:
    """Score every reconstruction and write ``results.json``, ``results.csv`` and ``scores.json`` (image by image)."""
    scorings = [*run.scorings, *run.worst_cases]
    for scoring in scorings:
        if not run.store.has(scoring.attack):
            path = run.reconstruction_path(scoring.job)
            raise RunError(f"{path} is missing: run `shadow-defense attack {run.folder}` first")
    arms = _arms(run)
    _carry_out(run, scorings, progress, "scoring reconstructions")
    scores = [scoring.load(run.store) for scoring in scorings]
    command = f"shadow-defense run {run.folder / 'config.yaml'} --out {run.folder}-again"
    utilities = _utilities(run, arms)
    rows = [*utilities, Row(arm=MEAN_IMAGE, images=0, metrics={})]
    record = RunRecord(
        **vars(
            made(run.config.title, command, run.config.threads, run.store.origins([*run.tasks(), *run.worst_cases]))
        ),
        seed=run.config.seed,
        config=run.config.as_dict(),
        data=data_of(run),
        arms=arms,
        attacks={name: attack_of(run, name) for name in run.config.attacks},
        utilities=utilities,
        tables=tuple(
            score_table(scores, rows, attack, round)
            for attack in run.config.attacks
            for round in shown_rounds(run.config.attacked_rounds(attack))
        ),
        sights=sights_of(scores),
        notes=tuple(_notes(run, scores)),
    )
    record = replace(record, verdict=tuple(run_verdict(record)))
    write_scores(run, scores)
    write_text(run.folder / "results.csv", run_numbers(record).csv())
    write_record(run.results_path, record)
    return record


def report_stage(run: Run, progress: Progress | None = None) -> None:
    """Write ``report.html`` from the results and the stored pictures."""
    record = read_results(run)
    with (progress or Progress()).during("writing the report"):
        write_text(run.report_path, render_run(record, collect_patients(run, record)))


def forecast_text(run: Run, waiting: Sequence[str], progress: Progress | None) -> str:
    """How long arms will take, as a step of each is measured to take; nothing for small images, which take minutes."""
    if max(run.dataset.image_size) < FORECAST_FROM:
        return ""
    costs = [Costing(run, arm) for arm in waiting]
    workers = Workers(run.config.workers, run.config.threads)
    carry_out(costs, run.store, workers, progress, name="measuring what a step of each arm takes", isolate=True)
    seconds = [training_seconds(run, cost.load(run.store)) for cost in costs if run.store.has(cost)]
    return f", about {duration(sum(seconds) / workers.at_once(len(waiting)))}" if seconds else ""


def read_results(run: Run) -> RunRecord:
    """What the stage `evaluate` found. Raises :class:`RunError` where it has not run, or in another version."""
    if not run.results_path.exists():
        raise RunError(f"{run.folder} has no results yet: run `shadow-defense evaluate {run.folder}` first")
    return load_record(RunRecord, run.results_path, evaluate_again(run))


STAGES: dict[str, Callable[[Run, Progress], Any]] = {
    "pretrain": pretrain_stage,
    "train": train_stage,
    "attack": attack_stage,
    "evaluate": evaluate_stage,
    "report": report_stage,
}
"""The stages by name, in their order."""


def _pretrain(run: Run, progress: Progress | None) -> None:
    run.name_generator()
    _carry_out(run, [run.pretraining], progress, "pre-training the shadow generator, steps")


def _carry_out(
    run: Run,
    tasks: Sequence[Task],
    progress: Progress | None,
    name: str,
    weight: Callable[[Task], float] | None = None,
) -> None:
    workers = Workers(run.config.workers, run.config.threads)
    carry_out(tasks, run.store, workers, progress, name=name, weight=weight)


def _arms(run: Run) -> dict[str, Arm]:
    arms, titles = {}, arm_titles(run.config.arms)
    for arm, settings in run.config.arms.items():
        history = rounds_of(run.arm_folder(arm))
        if len(history) < run.config.training.rounds:
            raise RunError(f"arm '{arm}' is not fully trained: run `shadow-defense train {run.folder}` to go on")
        described = defense_of(settings)
        # Of a model without batch norm there is nothing to say, but for what was asked for.
        shown = settings.share_bn if settings.share_bn != "all" or _has_batch_norm(run, arm) else None
        arms[arm] = Arm(**vars(replace(described, share_bn=shown)), title=titles[arm], history=history)
    return arms


def _utilities(run: Run, arms: Mapping[str, Arm]) -> tuple[Row, ...]:
    trainings = {name: {run.config.seed: arm.history} for name, arm in arms.items()}
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm.test))
    return tuple(
        training_row(name, run.config.arms[name], trainings[name], trainings[run.reference], names) for name in arms
    )


def _has_batch_norm(run: Run, arm: str) -> bool:
    return bool(withheld_names(run.new_model(arm), "none"))


def _foreground_note(run: Run, scores: Sequence[Score]) -> str:
    if run.dataset.test.masks is not None:
        return "Inside and outside refer to the foreground: the lesion's mask."
    if scores and not any("psnr_inside" in row.metrics for score in scores for row in score.rows):
        return (
            "Nothing is said of a foreground: no lesion is marked, and Grad-CAM++ finds no feature map in this model."
        )
    share = run.config.metrics.foreground_share
    return (
        f"Inside and outside refer to the foreground: the top {share:.0%} of Grad-CAM++ of the first arm's final model."
    )


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
        _foreground_note(run, scores),
    ]
    notes += _batch_norm_notes(run)
    spared = [part for arm in run.config.arms.values() for part in arm.parts().values()]
    if any(isinstance(arm, ShadowSettings) and arm.foreground and arm.foreground_temperature >= 1 for arm in spared):
        notes.append(
            "At the published temperature (20) the sparing of the foreground is nearly the same for every pixel: the "
            "diagnosis map is shown, but it hardly moves the noise (docs/method.md)."
        )
    assumed = {note: f"{score.attack}: {note}." for score in scores for note in score.notes}
    return notes + noted_once(assumed.values())
