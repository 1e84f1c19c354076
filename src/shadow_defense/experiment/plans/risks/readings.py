"""What the measures read from finished runs: scores image by image, and what the models are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from shadow_defense.experiment.plans.risks.intervals import f1_difference
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks.training import predict
from shadow_defense.federated.batch_norm_policy import evaluable_state
from shadow_defense.federated.rounds import state_folder, train_again
from shadow_defense.files import read_json, read_tensors
from shadow_defense.metrics.confidence import Estimate, mean_interval, paired_difference

Image = tuple[int, str, str]
"""What measurements are paired by: seed, client and sample id."""

Values = Mapping[Image, float]


def image_values(
    runs: Sequence[Run], *, arm: str, attack: str, column: str, round: int | None = None
) -> dict[Image, float]:
    """A column of ``scores.json`` for each image; the mean over its attacked rounds, or that of one ``round``.

    Args:
        runs: one a seed.
        column: such as ``psnr_whole``.
        round: counted from 1, as people do.
    """
    found: dict[Image, list[float]] = {}
    for run in runs:
        mend = f"delete {run.results_path} and give the same command again"
        for score in read_json(run.folder / "scores.json", mend):
            if score["arm"] == arm and score["attack"] == attack and round in (None, score["round"] + 1):
                for row in score["rows"]:
                    if row["sample_id"] is not None and row[column] is not None:
                        image = (run.config.seed, score["client"], row["sample_id"])
                        found.setdefault(image, []).append(row[column])
    return {image: sum(values) / len(values) for image, values in found.items()}


def mean_of(values: Values) -> Estimate:
    """The mean over images."""
    return mean_interval(list(values.values()))


def differences(first: Values, second: Values) -> dict[Image, float]:
    """``first - second`` for the images that both have."""
    return {image: value - second[image] for image, value in first.items() if image in second}


def mean_over(tables: Sequence[Values]) -> dict[Image, float]:
    """The mean over several measurements of each image, for the images that all have."""
    common = [image for image in tables[0] if all(image in table for table in tables)]
    return {image: sum(table[image] for table in tables) / len(tables) for image in common}


def final_f1(runs: Sequence[Run], arm: str) -> Estimate:
    """Macro F1 of an arm's final model on the test images, averaged over seeds."""
    results = [read_json(run.results_path, "delete it and give the same command again") for run in runs]
    return mean_interval([result["arms"][arm]["test"]["f1_macro"] for result in results])


def f1_change(runs: Sequence[Run], arm: str, reference: str) -> Estimate:
    """Macro F1 of one arm minus another's: over seeds where there are several, else over the test images."""
    if len(runs) > 1:
        values = [[final_f1([run], name).mean for run in runs] for name in (arm, reference)]
        return paired_difference(*values)
    (run,) = runs
    data = run.dataset
    first, second = (final_predictions(run, name) for name in (arm, reference))
    return f1_difference(first, second, data.test.labels, data.classes, run.config.seed)


def final_predictions(run: Run, arm: str) -> Int64[Tensor, "n"]:
    """The classes that an arm's final model gives to the test images."""
    model, folder = run.new_model(arm), run.arm_folder(arm)
    state, _ = read_tensors(
        state_folder(folder, run.config.training.rounds) / "global.safetensors", train_again(folder)
    )
    share_bn, mode = run.config.arms[arm].share_bn, run.config.training.batch_norm
    model.load_state_dict(evaluable_state(model, state, share_bn, mode, run.dataset))
    return torch.argmax(predict(model, run.dataset.test, run.dataset.normalisation), dim=1)
