"""What Shadow Defense costs: ratios to an undefended step, attack iterations per second, memory peaks.

    .venv/bin/python benchmarks/defended_step.py            (or: make benchmark)

Every ratio compares the processor time of both sides within one process, in turn, on one thread. Each line takes the
median of several repetitions. Memory is the peak of the resident set of a fresh process that does only what the line
says.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.observation import observe
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import Normalisation
from shadow_defense.experiment.provenance import peak_megabytes
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.generators.build import GENERATORS, build_networks
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import loss_gradients, split_state
from shadow_defense.models.settings import ModelSettings
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

SIZE = 32
LOSS = nn.CrossEntropyLoss()
MODELS = {
    "convnet": ModelSettings(name="convnet", activation="gelu"),
    "resnet18": ModelSettings(name="resnet18", normalisation="batch"),
}


class Case:
    """One model with one batch, and the steps to be compared on it."""

    def __init__(self, model_name: str, batch_size: int, generator_name: str) -> None:
        draws = torch.Generator().manual_seed(0)
        self.model = build_model(MODELS[model_name], channels=1, classes=2, image_size=(SIZE, SIZE), seed=0)
        self.images = torch.rand(batch_size, 1, SIZE, SIZE, generator=draws) * 2 - 1
        self.labels = torch.arange(batch_size) % 2
        self.samples = [str(index) for index in range(batch_size)]
        generator, _ = build_networks(GeneratorSettings(name=generator_name), image_size=SIZE, channels=1, seed=0)
        self.guard = ShadowGuard(generator, ShadowSettings(latent_pretraining=False))

    def train(self, images: Tensor) -> None:
        LOSS(self.model(images), self.labels).backward()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter -= 1e-6 * parameter.grad
                parameter.grad = None

    def protect(self, round: int) -> Tensor:
        return self.guard.protect(
            self.images,
            self.labels,
            self.samples,
            model=self.model,
            global_model=self.model,
            loss_fn=LOSS,
            round=round,
            rounds=100,
        )

    def steps(self) -> dict[str, Callable[[], None]]:
        return {
            "undefended": lambda: self.train(self.images),
            "shadow": lambda: self.train(self.protect(0)),
            # After the shadow's rounds: no pseudo attack, only Grad-CAM++ and the stored map.
            "stored map": lambda: self.train(self.protect(99)),
        }

    def attack_seconds(self, attack: InvertingGradients | GradInversion) -> float:
        """Seconds of processor time of one iteration of an attack on this batch's update."""
        parameters, buffers = split_state(self.model, self.model)
        gradients = loss_gradients(self.model, parameters, buffers, self.images, self.labels, LOSS)
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        update = {
            name: -0.01 * gradients[name] if name in gradients else torch.zeros_like(state[name]) for name in state
        }
        observation = observe(
            threat_model("informed server"),
            model=self.model,
            loss_fn=LOSS,
            global_state=state,
            update=ModelUpdate(update, len(self.images), 1, 0, "client-1"),
            image_shape=(1, SIZE, SIZE),
            classes=2,
            normalisation=Normalisation((0.5,), (0.5,)),
            labels=self.labels,
            local_training=LocalTraining(0.01, len(self.images), 1),
            template=torch.full((1, SIZE, SIZE), 0.5),
        )
        started = time.process_time()
        attack.reconstruct(observation, seed=0)
        return (time.process_time() - started) / attack.steps()


def median_seconds(step: Callable[[], object], repetitions: int) -> float:
    """Of processor time, after one call that warms up."""
    step()
    times = []
    for _ in range(repetitions):
        started = time.process_time()
        step()
        times.append(time.process_time() - started)
    return statistics.median(times)


def peak_memory(model_name: str, batch_size: int, mode: str, generator_name: str) -> float:
    """MB, of a fresh process."""
    command = [sys.executable, __file__, "--one", model_name, str(batch_size), mode, "--generator", generator_name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_one(model_name: str, batch_size: int, mode: str, generator_name: str) -> None:
    case = Case(model_name, batch_size, generator_name)
    if mode == "attack":
        case.attack_seconds(InvertingGradients(iterations=3))
    else:
        case.steps()[mode]()
    print(peak_megabytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--generator", choices=GENERATORS, default="dcgan")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "BATCH", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        run_one(arguments.one[0], int(arguments.one[1]), arguments.one[2], arguments.generator)
        return
    print(
        f"torch {torch.__version__}, {platform.machine()}, one thread, {SIZE} px, grey, shadow {arguments.generator}\n"
    )
    print(
        "| model | batch | undefended ms | Shadow, with pseudo attack | Shadow, stored map | Inverting Gradients it/s "
        "| GradInversion it/s | peak MB: undefended / Shadow / attack |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        for batch_size in (1, 4, 8):
            case = Case(name, batch_size, arguments.generator)
            # Leaves a map behind, which the step with a stored map uses.
            case.protect(0)
            times = {mode: median_seconds(step, arguments.repetitions) for mode, step in case.steps().items()}
            inverting = 1 / case.attack_seconds(InvertingGradients(iterations=20))
            matching = 1 / case.attack_seconds(GradInversion(iterations=20))
            memory = " / ".join(
                f"{peak_memory(name, batch_size, mode, arguments.generator):.0f}"
                for mode in ("undefended", "shadow", "attack")
            )
            base = times["undefended"]
            print(
                f"| {name} | {batch_size} | {1000 * base:.1f} | {times['shadow'] / base:.1f}x | "
                f"{times['stored map'] / base:.1f}x | {inverting:.1f} | {matching:.1f} | {memory} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
