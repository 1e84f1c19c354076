"""What fewer iterations leave of Shadow Defense's noise maps, image by image, beside what other draws do.

    python benchmarks/noise_maps.py --variants attack_iterations=2 latent_iterations=10,latent_examples=512
    python benchmarks/noise_maps.py --set data.source=retinamnist data.path=retinamnist.npz --variants ...
    python benchmarks/noise_maps.py --seeds 1 2 3

Of a configuration's clients, with its generator pre-trained as it says: the maps after all rounds with a pseudo attack,
at the global models of an undefended training, of the first Shadow arm with ``--reference`` and with each of the
variants in its options; with ``--seeds`` of the reference's options again, but for one seed: that of the generator's
pre-training, of the latent codes' starts, or of the order of images. Told is Spearman's correlation with the
reference's map of the same image, and processor seconds of protection. "another image": between the reference's maps of
two images, what a map is worth that knows nothing of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from shadow_defense.config import load_config
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.client import LocalResult, prepare_defense, train_locally
from shadow_defense.federated.server import apply_update, average_updates
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.training import pretrain

PLAIN, SHADOW = "undefended", "shadow"


class Seeds(NamedTuple):
    """What a map may depend on besides image and settings, each beside the configuration's own seed."""

    generator: int = 0
    codes: int = 0
    order: int = 0


OWN = Seeds()


def train(
    scene: Scene, defense: Defense, client: str, state: dict[str, Tensor], round: int, order: int = 0
) -> LocalResult:
    """A client's round from a global state."""
    training = scene.config.training
    return train_locally(
        scene.new_model(PLAIN),
        state,
        scene.client(client),
        defense,
        settings=training,
        round=round,
        normalisation=scene.dataset.normalisation,
        loss_fn=training.loss_function(),
        seed=scene.config.seed + order,
    )


def global_states(scene: Scene, rounds: int) -> list[dict[str, Tensor]]:
    """The global models that an undefended training begins its rounds with."""
    states = [{name: tensor.clone() for name, tensor in scene.new_model(PLAIN).state_dict().items()}]
    while len(states) < rounds:
        sent = [
            train(scene, Defense(), client.name, states[-1], len(states) - 1).update for client in scene.dataset.clients
        ]
        states.append(apply_update(states[-1], average_updates(sent)))
    return states


def noise_maps(
    scene: Scene, generator: Generator, states: list[dict[str, Tensor]], seeds: Seeds = OWN
) -> tuple[list[Tensor], float]:
    """The maps of all clients' images as their guards hold them after the last of the rounds, and seconds."""
    maps, begun = list[Tensor](), time.process_time()
    for client in scene.dataset.clients:
        defense = build_defense(scene, SHADOW, generator, client.name)
        assert isinstance(defense, ShadowDefense)
        defense.guard.seed += seeds.codes
        prepare_defense(defense, client, scene.dataset.normalisation)
        for round, state in enumerate(states):
            train(scene, defense, client.name, state, round, seeds.order)
        maps += [defense.guard.noise_maps[sample] for sample in sorted(defense.guard.noise_maps)]
    return maps, time.process_time() - begun


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of maps of which many values are equal: of the mean ranks of equals."""
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, places, counts = values.flatten().unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[places]


def options(given: str) -> dict[str, Any]:
    """``a=1,b=2`` as a mapping."""
    return {
        name: yaml.safe_load(value) for name, _, value in (part.partition("=") for part in given.split(",") if part)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="demo", help="a preset or a YAML file")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--reference", default="", metavar="NAME=VALUE,...", help="options of the long one")
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME=VALUE,...")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="added to each of three seeds, one at a time")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(given.config, given.overrides)
    arm = next(each for each in config.arms.values() if each.defense == "shadow")

    def scene_with(changed: str) -> Scene:
        shadow = DefenseSettings(
            defense="shadow", preset=arm.preset, options={**arm.options, **options(given.reference), **options(changed)}
        )
        return plain.varied(config.model_copy(update={"arms": {PLAIN: DefenseSettings(), SHADOW: shadow}}))

    plain = Scene(config.model_copy(update={"arms": {PLAIN: DefenseSettings()}}))

    def pretrained(seed: int) -> Generator:
        with tempfile.TemporaryDirectory() as folder:
            public = plain.dataset.public.images
            return pretrain(config.generator, public, seed=config.seed + seed, folder=Path(folder))

    generator = pretrained(0)
    rounds = min(int(arm.options.get("shadow_rounds", 20)), config.training.rounds)
    states = global_states(plain, rounds)
    reference, seconds = noise_maps(scene_with(""), generator, states)
    others = [rank_correlation(a, b) for a, b in pairwise(reference)]
    result: dict[str, dict[str, float]] = {"the reference": {"seconds": seconds}, "another image": told(others)}
    for variant in given.variants:
        maps, seconds = noise_maps(scene_with(variant), generator, states)
        found = [rank_correlation(a, b) for a, b in zip(maps, reference, strict=True)]
        result[variant] = {**told(found), "seconds": seconds}
    for name in Seeds._fields if given.seeds else ():
        found = list[float]()
        for seed in given.seeds:
            seeds = Seeds(**{name: seed})
            maps, _ = noise_maps(scene_with(""), pretrained(seed) if seeds.generator else generator, states, seeds)
            found += [rank_correlation(a, b) for a, b in zip(maps, reference, strict=True)]
        result[f"another seed of the {name}"] = told(found)
    if given.json:
        print(json.dumps(result))
        return
    print(f"{len(reference)} images, {rounds} rounds")
    for name, each in result.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in each.items()))


def told(found: list[float]) -> dict[str, float]:
    tenth = statistics.quantiles(found, n=10)[0]
    return {"median": statistics.median(found), "a tenth below": tenth, "least": min(found)}


if __name__ == "__main__":
    main()
