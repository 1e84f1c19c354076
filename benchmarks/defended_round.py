"""What rounds under defenses cost beside undefended ones, and which step of Shadow Defense takes how much of them.

    python benchmarks/defended_round.py                 (the demo's federation; --json)
    python benchmarks/defended_round.py pneumoniamnist --set data.path=pneumoniamnist.npz --rounds 4

Of a configuration's clients and arms, its first arm undefended; beside them its first Shadow arm again with images that
are drawn once (`schedule: frozen`). Every client of every round is trained in all arms in turn, on one thread; told is
processor time. The generator is untrained: what it costs does not depend on its weights. The evaluation of the global
model, which costs all arms the same, is left out. "prepared" is what every defense does once, before the first round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from shadow_defense.config import RunConfig, load_config
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.client import prepare_defense, train_locally
from shadow_defense.generators.build import build_networks
from shadow_defense.shadow import guard

STEPS = {
    "2, encoding": ("encode_samples",),
    "3, the victim's signals": ("victim_signals",),
    "4, pseudo attack": ("attack_batch",),
    "5 to 7, noise map": ("reconstruction_error", "vulnerability_map", "spread", "blend"),
    "8, Grad-CAM++": ("diagnosed_foreground", "find_cam_layer"),
    "9, noise": ("spare_foreground", "scale_noise", "place_noise", "check_noise"),
}
"""The functions of the guard by the step of docs/method.md that they are."""

FROZEN = "drawn once"


def with_frozen(config: RunConfig) -> RunConfig:
    """The configuration with one more arm, its first Shadow arm with ``schedule: frozen``."""
    shadow = next((each for each in config.arms.values() if each.defense == "shadow"), None)
    if shadow is None:
        return config
    frozen = DefenseSettings(defense="shadow", preset=shadow.preset, options={**shadow.options, "schedule": "frozen"})
    return config.model_copy(update={"arms": {**config.arms, FROZEN: frozen}})


@contextmanager
def timed_steps(seconds: dict[str, float]) -> Iterator[None]:
    """Adds to ``seconds`` what each step of every guard takes within the block."""

    def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return function(*given, **named)
            finally:
                seconds[step] += time.process_time() - begun

        return call

    with patch.multiple(
        guard, **{name: timed(step, getattr(guard, name)) for step, names in STEPS.items() for name in names}
    ):
        yield


def measured(config: RunConfig, rounds: int) -> dict[str, dict[str, Any]]:
    """By arm: seconds once, seconds of each round, and of each step of Shadow Defense."""
    scene = Scene(config)
    data, training = scene.dataset, config.training.model_copy(update={"rounds": rounds})
    generator, _ = build_networks(
        config.generator, image_size=data.image_size[0], channels=data.channels, seed=config.seed
    )
    models = {arm: scene.new_model(arm) for arm in config.arms}
    states = {arm: {name: each.clone() for name, each in models[arm].state_dict().items()} for arm in models}
    defenses, found = dict[tuple[str, str], Any](), dict[str, dict[str, Any]]()
    for arm in config.arms:
        steps: dict[str, float] = defaultdict(float)
        begun = time.process_time()
        with timed_steps(steps):
            for client in data.clients:
                defenses[arm, client.name] = build_defense(scene, arm, generator, client.name)
                prepare_defense(defenses[arm, client.name], client, data.normalisation)
        found[arm] = {"prepared": time.process_time() - begun, "rounds": [0.0] * rounds, "steps": steps}
    for round in range(rounds):
        for client in data.clients:
            for arm, model in models.items():
                begun = time.process_time()
                with timed_steps(found[arm]["steps"]):
                    train_locally(
                        model,
                        states[arm],
                        client,
                        defenses[arm, client.name],
                        settings=training,
                        round=round,
                        normalisation=data.normalisation,
                        loss_fn=training.loss_function(),
                        seed=config.seed,
                    )
                found[arm]["rounds"][round] += time.process_time() - begun
    return found


def told(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Ratios to the first arm, of each round, of all rounds, and with what is done once; shares of the steps."""
    plain = next(iter(found.values()))["rounds"]
    told = {}
    for arm, each in found.items():
        whole = each["prepared"] + sum(each["rounds"])
        told[arm] = {
            "prepared_seconds": round(each["prepared"], 3),
            "seconds": round(sum(each["rounds"]), 3),
            "ratios": [round(ours / theirs, 2) for ours, theirs in zip(each["rounds"], plain, strict=True)],
            "ratio_of_rounds": round(sum(each["rounds"]) / sum(plain), 3),
            "ratio": round(whole / sum(plain), 3),
            "shares": {step: round(seconds / whole, 3) for step, seconds in each["steps"].items()},
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="demo", help="a preset or a YAML file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, help="default the configuration's")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(given.config, given.overrides)
    result = told(measured(with_frozen(config), given.rounds or config.training.rounds))
    if given.json:
        print(json.dumps(result))
        return
    for arm, each in result.items():
        print(
            f"{arm}: rounds take {each['ratio_of_rounds']:.2f} times the undefended ones ({each['ratios']}), with the "
            f"{each['prepared_seconds']:.2f} s before the first {each['ratio']:.2f}"
        )
        for step, share in each["shares"].items():
            print(f"    step {step}: {share:.1%}")


if __name__ == "__main__":
    main()
