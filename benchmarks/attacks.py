"""Attack iterations per second of processor time, and peak memory; with --against, a public implementation beside it.

    .venv/bin/python benchmarks/attacks.py                          (or: make benchmark)
    .venv/bin/python benchmarks/attacks.py --against breaching      (pip install breaching, which brings its own needs)

One thread, random images of 32 px, one local step, labels known. Memory is the peak of the resident set of a fresh
process that makes the case and runs the attack; what a process holds before it attacks is in the first column. Against
breaching both sides get the same model, images, update, start, weight of smoothness and number of iterations, in turn
in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import Attack, Observation, observe
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.build import load_dataset
from shadow_defense.data.dataset import Normalisation
from shadow_defense.data.settings import DataSettings
from shadow_defense.experiment.provenance import peak_megabytes
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.generators.build import build_networks
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import loss_gradients, split_state
from shadow_defense.models.settings import ModelSettings
from shadow_defense.seeds import named_generator

SIZE = 32
RATE = 0.01
LOSS = nn.CrossEntropyLoss()
MODELS = {
    "convnet": ModelSettings(name="convnet", activation="gelu"),
    # Of this one alone an update tells an image's contrast (docs/attacks.md).
    "convnet, not normalised": ModelSettings(name="convnet", activation="gelu", normalisation="none"),
    "resnet18": ModelSettings(name="resnet18", normalisation="group"),
    "preactresnet18": ModelSettings(name="preactresnet18", normalisation="group"),
    "resnet18, batch norm": ModelSettings(name="resnet18", normalisation="batch"),
}
# One restart, so that an iteration is one simulated client; the group has its least number of members, two.
ATTACKS = {
    "inverting-gradients": {},
    "gradinversion": {},
    "gradinversion-group": {"seeds": 2},
    "gias": {"restarts": 1, "weight_iterations": 0},
    "gifd": {"restarts": 1, "stages": 1},
}
BATCHES = (1, 4, 8)
SMOOTHNESS = 0.2


def coloured_faces(count: int) -> Tensor:
    """(count, 3, 32, 32) in [0, 1]: faces that come with scikit-image, red, green and blue each from another one.

    breaching's smoothness wants three channels.
    """
    grey = load_dataset(DataSettings(source="faces", image_size=SIZE), 0).test.unit_images()[: 3 * count]
    return grey.view(count, 3, SIZE, SIZE)


def attack(name: str, iterations: int) -> Attack:
    return AttackSettings(attack=name, options={**ATTACKS[name], "iterations": iterations}).build()


def observation(model: nn.Module, images: Tensor) -> Observation:
    """The update of one local step on ``images``, seen by the informed server."""
    labels, channels = torch.arange(len(images)) % 2, images.shape[1]
    parameters, buffers = split_state(model, model)
    gradients = loss_gradients(model, parameters, buffers, normalisation(channels).apply(images), labels, LOSS)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    update = {name: -RATE * gradients[name] if name in gradients else torch.zeros_like(state[name]) for name in state}
    generator, _ = build_networks(
        GeneratorSettings(name="dcgan", z_dim=128, width=16), image_size=SIZE, channels=channels, seed=0
    )
    return observe(
        threat_model("informed server"),
        model=model,
        loss_fn=LOSS,
        global_state=state,
        update=ModelUpdate(update, len(images), 1, 0, "client-1"),
        image_shape=(channels, SIZE, SIZE),
        classes=2,
        normalisation=normalisation(channels),
        labels=labels,
        local_training=LocalTraining(RATE, len(images), 1),
        template=torch.full((channels, SIZE, SIZE), 0.5),
        generator=lambda: generator,
    )


def normalisation(channels: int) -> Normalisation:
    return Normalisation((0.5,) * channels, (0.25,) * channels)


def up_to_contrast(images: Tensor, truths: Tensor) -> Tensor:
    """Each image at the contrast at which it is nearest to the true one that it is most like.

    Of a network that normalises every layer an update does not tell it (docs/attacks.md): what a search found is all
    but that.
    """
    by = normalisation(images.shape[1])
    found, true = by.apply(images).flatten(1), by.apply(truths).flatten(1)
    alike = F.normalize(found) @ F.normalize(true).T
    nearest = true[alike.argmax(dim=1)]
    factors = (found * nearest).sum(dim=1) / found.square().sum(dim=1)
    return by.invert((factors.clamp_min(0).unsqueeze(1) * found).view_as(images)).clamp(0, 1)


def make_model(name: str, channels: int = 1) -> nn.Module:
    return build_model(MODELS[name], channels=channels, classes=2, image_size=(SIZE, SIZE), seed=0)


def iterations_per_second(name: str, seen: Observation, iterations: int, repetitions: int) -> float:
    """The median, after one attack that warms up."""
    chosen = attack(name, iterations)
    done = []
    for _ in range(repetitions + 1):
        started = time.process_time()
        chosen.reconstruct(seen, seed=0)
        done.append(chosen.steps() / (time.process_time() - started))
    return statistics.median(done[1:])


def peak_memory(model_name: str, batch_size: int, mode: str) -> float:
    """MB, of a fresh process."""
    command = [sys.executable, __file__, "--one", model_name, str(batch_size), mode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_one(model_name: str, batch_size: int, mode: str) -> None:
    seen = observation(make_model(model_name), torch.rand(batch_size, 1, SIZE, SIZE))
    if mode != "nothing":
        attack(mode, 3).reconstruct(seen, seed=0)
    print(peak_megabytes())


def speeds(models: list[str], iterations: int, repetitions: int) -> None:
    print(
        f"| model | batch | {' | '.join(f'{name} it/s' for name in ATTACKS)} | MB before | {' | '.join(ATTACKS)} MB |"
    )
    print("|" + "---|" * (2 * len(ATTACKS) + 3))
    for model_name in models:
        for batch_size in BATCHES:
            seen = observation(make_model(model_name), torch.rand(batch_size, 1, SIZE, SIZE))
            rates = [f"{iterations_per_second(name, seen, iterations, repetitions):.1f}" for name in ATTACKS]
            memory = [f"{peak_memory(model_name, batch_size, mode):.0f}" for mode in ("nothing", *ATTACKS)]
            print(f"| {model_name} | {batch_size} | {' | '.join((*rates, *memory))} |", flush=True)


def breaching_attack(
    seen: Observation, iterations: int, seed: int, smoothness: float = SMOOTHNESS
) -> Callable[[], Tensor]:
    """breaching's Inverting Gradients on the same update from the same start, published but for the iterations."""
    import breaching

    # It prints what it loads, and where `--json` is given nothing else may stand beside it.
    with contextlib.redirect_stdout(sys.stderr):
        settings = breaching.get_attack_config("invertinggradients")
    settings.optim.max_iterations, settings.optim.callback = iterations, iterations
    settings.regularization.total_variation.scale = smoothness
    attacker = breaching.attacks.prepare_attack(seen.model, LOSS, settings)

    class Data:
        modality, size, classes, shape = "vision", (1,), 2, list(seen.image_shape)
        normalize, mean, std = True, seen.normalisation.mean, seen.normalisation.std

    payload = {"parameters": list(seen.model.parameters()), "buffers": list(seen.model.buffers()), "metadata": Data}
    gradients = [seen.update.tensors[name] / -RATE for name, _ in seen.model.named_parameters()]
    known = {"num_data_points": len(seen.labels), "labels": seen.labels, "local_hyperparams": None}
    shared = {"gradients": gradients, "buffers": None, "metadata": known}

    shape = (len(seen.labels), *seen.image_shape)
    start = torch.randn(shape, generator=named_generator(seed, "inverting gradients", 0))

    def run() -> Tensor:
        found, _ = attacker.reconstruct([payload], [shared], {}, initial_data=start, dryrun=False)
        return seen.normalisation.invert(found["data"].detach()).clamp(0, 1)

    return run


def against_breaching(models: list[str], iterations: int, images: int) -> None:
    """Both on the same cases, with breaching's weight of smoothness."""

    # On random images breaching's total variation is ours but for its borders, which it pads with zeros.
    options = {"iterations": iterations, "total_variation": SMOOTHNESS}
    ours = AttackSettings(attack="inverting-gradients", options=options).build()
    print(f"| model | batch | {iterations} iterations of | it/s, median | PSNR dB, mean of {images} cases |")
    print("|---|---|---|---|---|")
    for model_name in models:
        for batch_size in (1, 4):
            outcomes: dict[str, list[tuple[float, float]]] = {}
            for case in range(images):
                truth = coloured_faces((case + 1) * batch_size)[case * batch_size :]
                seen = observation(make_model(model_name, channels=3), truth)

                def run_ours(seen: Observation = seen, case: int = case) -> Tensor:
                    return ours.reconstruct(seen, seed=case).images

                sides = {"this project": run_ours, "breaching": breaching_attack(seen, iterations, case)}
                for side, run in sides.items():
                    torch.manual_seed(case)
                    started = time.process_time()
                    found = run()
                    seconds = time.process_time() - started
                    outcomes.setdefault(side, []).append((iterations / seconds, max_assignment(found, truth)))
            for side, values in outcomes.items():
                rates, qualities = zip(*values, strict=True)
                rate, quality = statistics.median(rates), statistics.fmean(qualities)
                print(f"| {model_name} | {batch_size} | {side} | {rate:.2f} | {quality:.2f} |", flush=True)


def max_assignment(found: Tensor, truth: Tensor) -> float:
    """Mean PSNR under the best order."""
    from scipy.optimize import linear_sum_assignment

    from shadow_defense.metrics.psnr import pairwise_psnr

    rows, columns = linear_sum_assignment(pairwise_psnr(found, truth).numpy(), maximize=True)
    return float(psnr(found[rows], truth[columns]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--against", choices=("breaching",), help="compare speed and PSNR with a public implementation")
    parser.add_argument("--cases", type=int, default=3, help="updates attacked by both sides")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "BATCH", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        run_one(arguments.one[0], int(arguments.one[1]), arguments.one[2])
        return
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, {SIZE} px\n")
    compare = partial(against_breaching, arguments.models, arguments.iterations, arguments.cases)
    compare() if arguments.against else speeds(arguments.models, arguments.iterations, arguments.repetitions)


if __name__ == "__main__":
    main()
