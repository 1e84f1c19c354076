"""One image of each model and attack, rebuilt under every defense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.plans.comparison.scores import seeded
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.attacking import RECONSTRUCTION, Attacking
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.report.records.comparison import ComparisonPictures
from shadow_defense.report.records.scores import RANDOM_UPDATE


def pictures(comparison: Comparison, scores: Mapping[str, Sequence[Score]]) -> tuple[ComparisonPictures, ...]:
    """For each model and attack, one image of the first seed under every defense, in the first attacked round."""
    shown = []
    seed = comparison.grid.seeds[0]
    for model in comparison.grid.models:
        run = comparison.scene(model, seed)
        for attack in comparison.grid.attacks:
            round, client = run.attacked_updates(attack)[0]
            place = (attack, round, seeded(seed, client.name))
            scored = {score.arm: score for score in scores[model] if (score.attack, score.round, score.client) == place}
            rebuilt = {}
            for arm in (*run.config.arms, RANDOM_UPDATE):
                index = _of_first_image(scored[arm]) if arm in scored else None
                if index is not None:
                    control = arm == RANDOM_UPDATE
                    job = Job(run.reference if control else arm, attack, round, client.name)
                    attacking = Attacking(run, job, comparison.training(run, job.arm), randomised=control)
                    path = comparison.store.place(attacking) / RECONSTRUCTION
                    rebuilt[arm] = Reconstruction.load(path).images[index]
            if rebuilt:
                data = run.dataset
                shown.append(
                    ComparisonPictures(
                        model=model,
                        attack=attack,
                        round=round + 1,
                        client=client.name,
                        class_name=data.class_names[int(client.train.labels[0])],
                        original=client.train.unit_images()[0],
                        rebuilt=rebuilt,
                    )
                )
    return tuple(shown)


def _of_first_image(score: Score) -> int | None:
    """Which reconstruction was matched to the client's first image: attacks return them in no telling order."""
    return next((row.reconstruction for row in score.rows if row.truth == 0), None)
