"""One image of each model and attack, rebuilt under every defense."""

from __future__ import annotations

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE
from shadow_defense.experiment.comparison.running import Comparison
from shadow_defense.report.comparison.content import ComparisonPictures


def pictures(comparison: Comparison) -> tuple[ComparisonPictures, ...]:
    """For each model and attack, one image of the first seed under every defense, in the first attacked round."""
    shown = []
    for model in comparison.grid.models:
        run = comparison.of(model, comparison.grid.seeds[0])
        for attack in comparison.grid.attacks:
            round, client = run.config.attacked_rounds(attack)[0], run.attacked_clients(attack)[0]
            rebuilt = {}
            for arm in (*run.config.arms, RANDOM_UPDATE):
                path = run.reconstruction_path(arm, attack, round, client.name)
                if path.exists():
                    rebuilt[arm] = Reconstruction.load(path).images[0]
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
