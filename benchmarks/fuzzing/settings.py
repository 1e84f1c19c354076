"""Settings: YAML files of configurations and comparisons, ``--set``, and what is built from those that pass."""

from __future__ import annotations

import functools
import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fuzzing.command import command
from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import NUMBERS, TEXTS, change_bytes, change_tree, odd_value

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DOCUMENTS = (
    "", "null", "[]", "seed", "5", "seed: 2026-01-01", "seed: !!int x", "seed: !!int ''", "seed: " + "9" * 5000,
    "title: " + "9" * 5000, "seed: 0x" + "f" * 5000, "seed: 1" + "_0" * 3000, "seed: 190:20:30", "seed: 0o777",
    "seed: 0b" + "1" * 9000, "seed: !!float x", "seed: !!bool x", "seed: !!timestamp x", "seed: 2026-99-99",
    "seed: 2026-01-01 25:61:61", "seed: !!binary x", "seed: !!null x", "title: !!python/object/apply:os.getpid []",
    "title: !!python/name:os.system", "title: !!set {a, b}", "title: !!omap [a: 1]", "title: !!pairs [a: 1]",
    "!!set {seed}", "? [a, b]\n: 1", "? {a: 1}\n: 1", "1: 2", "null: 1", "2026-01-01: 1", "true: 1",
    "seed: 1\nseed: 2", "seed: 1\n---\nseed: 2", "<<: {seed: 1}", "<<: 5", "<<: [5]", "&a seed: *a", "&a [*a]",
    "a: &a {b: *a}", "arms: &a\n  x: *a", "data: &a\n  split: *a", BOMB, BOMB + "title: *i\n",
    "arms: {" + "x: {" * 500 + "}" * 501, "[" * 3000, "{a: " * 1000, "- " * 3000, "a: " + "- " * 2000,
    "seed: 1\n\tx: 2", "\x00", "seed: \x00", "seed: '\x1b[2J'", "title: \"\\e[2J\"", "title: \"\\0\"",
    "title: \"\\uD800\"", "%YAML 9.9\n---\nseed: 1", "%TAG ! tag:x,2000:\n---\nseed: !x 1", "seed: .nan",
    "seed: .inf", "seed: 1e400", "training: {rounds: .inf}", "preset: 1000000", "seed: [" + "1, " * 100_000 + "]",
    "x" * 1_000_000, "title: " + "x" * 100_000, "title: |\n" + "  x\n" * 50_000, "\ufeffseed: 1", "seed: 1\r\n",
    "seed: *x", "seed: &" + "a" * 5000 + " 1", "a: '", 'a: "', "a: |x", "!", "&", "*", "@", "`", "%", ">" * 100,
    "#" * 100, "arms: {a: {defense: 'this:x'}}", "attacks: {a: {attack: 'os:system'}}", "model: {name: 'x.y.z:'}",
    "arms: {}", "attacks: {}", "arms: {x/../../../escaped: {defense: none}}",
    "arms: {'': {defense: none}}", "arms: {'\x1b[2J': {defense: none}}", "attacks: {'a\\nb': {}}",
    "arms: {fedavg: null}", "arms: {1: {defense: none}}", "arms: {" + "a" * 5000 + ": {defense: none}}",
    "arms: {.: {defense: none}}", "arms: {null: {defense: none}}",
)  # fmt: skip

KEYS = (
    "seed", "title", "threads", "workers", "data.image_size", "data.images", "data.classes", "data.path",
    "data.source", "data.split.kind", "data.split.clients", "data.split.sizes", "data.split.alpha",
    "data.split.batch_sizes", "data.mean", "data.std", "data.limit", "data.public_fraction",
    "data.validation_fraction", "data.test_fraction", "model.name", "model.width", "model.imprint", "model.weights",
    "model.start", "generator.name", "generator.z_dim", "generator.width", "generator.steps", "generator.batch_size",
    "generator.image_size", "training.rounds", "training.milestones", "training.learning_rate",
    "training.local_epochs", "training.clients_per_round", "arms", "arms.shadow.options",
    "arms.shadow.options.strength", "arms.shadow.preset", "arms.shadow.defense", "arms.x.defense", "attacks",
    "attacks.x.attack", "attacks.x.options.iterations", "attacks.x.rounds", "attacks.x.clients", "metrics.lpips",
    "metrics.foreground_share", "", ".", "a..b", "seed.x", "title.x.y", "\x1b[2J", "data", "data.split", "model",
    "x" * 3000, "arms.a/b.defense", "arms.\x00.defense", "training", "généré",
)  # fmt: skip

LARGE = (
    "10",
    "64",
    "1000",
    "100000",
    "1000000000",
    "1e9",
    "99999999999999999999",
    "[1000000000]",
    "[1, 1]",
    "-5",
    "0.999",
)


@functools.cache
def presets() -> dict[str, Any]:
    """The values of the configurations and comparisons that come with the package, by file."""
    folder = resources.files("shadow_defense") / "presets"
    with resources.as_file(folder) as place:
        return {
            str(path.relative_to(place)): yaml.safe_load(path.read_text()) for path in sorted(place.rglob("*.yaml"))
        }


def _document(random: np.random.Generator, name: str) -> tuple[bytes, str]:
    choice = random.random()
    if choice < 0.3:
        number = int(random.integers(len(DOCUMENTS)))
        return DOCUMENTS[number].encode("utf-8", "surrogatepass"), f"document {number}, {DOCUMENTS[number][:40]!a}"
    values, what = change_tree(random, presets()[name], pick(random, (1, 1, 3)))
    try:
        content = yaml.safe_dump(values, allow_unicode=bool(random.integers(2))).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        content = repr(values).encode("utf-8", "surrogatepass")
    if choice > 0.85:
        content, change = change_bytes(random, content)
        what += f"; {change}"
    elif choice > 0.82:
        encoding = pick(random, ("utf-16", "utf-32", "latin1"))
        content = content.decode("utf-8", "replace").encode(encoding, "replace")
        what += f"; {encoding}"
    return content, f"{name}: {what}"


def _path(random: np.random.Generator, folder: Path, content: bytes, suffix: str = ".yaml") -> Path | str:
    """Mostly a file with the content; now and then something else of that name."""
    path = folder / f"given{suffix}"
    how = pick(random, ("file",) * 20 + ("folder", "pipe", "loop", "device", "missing", "long", "NUL", "escape"))
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how in ("long", "NUL", "escape"):
        return {"long": "a" * 5000 + suffix, "NUL": f"a\0b{suffix}", "escape": f"\x1b[2J{suffix}"}[how]
    elif how == "file":
        path.write_bytes(content)
    return path


def make_configuration(random: np.random.Generator, folder: Path) -> Input:
    """One YAML file, shown by the command with every default filled in."""
    content, what = _document(
        random, pick(random, [name for name in presets() if "/" not in name and name != "risks.yaml"])
    )
    path = _path(random, folder, content)
    return Input(f"{what}; {Path(path).name[:40]!a}", lambda: command("config", "show", path))


def make_comparison(random: np.random.Generator, folder: Path) -> Input:
    """One YAML file of a comparison, read as far as its cells are known."""
    from shadow_defense.experiment.plans.comparison.reading import load_grid

    content, what = _document(random, pick(random, [name for name in presets() if "/" in name]))
    path = str(_path(random, folder, content))
    chosen: dict[str, Any] = {}
    if random.random() < 0.3:
        chosen = pick(
            random,
            (
                {"defenses": ["noise"]},
                {"defenses": [pick(random, TEXTS)]},
                {"seeds": [10**30]},
                {"rounds": [0]},
                {"attacks": ["x"]},
                {"clients": ["\x1b[2J"]},
                {"ablations": True},
            ),
        )

    def give() -> None:
        grid = load_grid(path, (), **chosen)
        for model in grid.models:
            grid.run_config(model, 0)

    return Input(f"{what}; {chosen!a}", give)


def make_override(random: np.random.Generator, folder: Path) -> Input:
    """``--set`` on a preset, shown by the command."""
    keys, arguments = [pick(random, KEYS) for _ in range(int(random.integers(1, 4)))], list[str]()
    for key in keys:
        if random.random() < 0.5:
            key = pick(random, tuple(VALUES))
            arguments += ["--set", f"{key}={pick(random, VALUES[key])}"]
            continue
        value = pick(
            random,
            (
                str(odd_value(random))[:5000],
                pick(random, DOCUMENTS)[:5000],
                pick(random, LARGE),
                str(pick(random, NUMBERS)),
            ),
        )
        arguments += ["--set", pick(random, (f"{key}={value}",) * 9 + (key,))]
    source = pick(
        random,
        ("demo", "demo", "pneumoniamnist", "pneumoniamnist", "imprint", "1000000", "\x1b[2J", "x" * 4000, "", "-"),
    )
    what = " ".join(argument[:60] for argument in arguments)
    return Input(f"{source[:20]!a} {what!a}", lambda: command("config", "show", source, *arguments))


SMALL: dict[str, Any] = {
    "data": {"source": "chest_phantom", "images": 40, "image_size": 16, "split": {"kind": "iid", "clients": 2}},
    "model": {"name": "convnet", "width": 8},
    "generator": {"z_dim": 8, "width": 4, "steps": 1, "batch_size": 4},
    "training": {"rounds": 2},
    "arms": {"fedavg": {"defense": "none"}, "shadow": {"defense": "shadow", "options": {"latent_iterations": 1}}},
    "attacks": {"ig": {"attack": "inverting-gradients", "options": {"iterations": 2}}},
    "metrics": {"lpips": None},
}
VALUES: dict[str, tuple[Any, ...]] = {
    "data.source": ("chest_phantom", "fundus_phantom", "faces", "npz", "image_folder", "manifest"),
    # Drawn images take some milliseconds each: thousands are work that was asked for, not a fault.
    "data.images": (8, 9, 100, 500), "data.image_size": (None, 8, 9, 28, 64, 128), "data.channels": (1, 3),
    "data.limit": (4, 5, 10**9), "data.split.kind": ("paper", "sizes", "iid", "dirichlet", "patient", "given"),
    "data.split.clients": (1, 20, 39, 1000, 10**6, 10**9),
    "data.split.sizes": ([], [0], [-1], [1], [10**9], [1] * 30, [10**30]),
    "data.split.batch_sizes": ([], [0], [-3], [1], [4, 10**12]), "data.split.alpha": (1e-300, 1e-9, 1e9, 1e308),
    "data.public_fraction": (0, 1e-9, 0.999999), "data.validation_fraction": (1e-9, 0.9999),
    "data.test_fraction": (1e-9, 0.9999), "data.mean": ([], [0.5], [0.5] * 3, [1e308]),
    "data.std": ([0], [-1], [1e-300], [1e308]), "data.classes": ([], ["a"], ["a", "a"]),
    "data.path": ("/", "/dev/zero", "/etc/passwd", "~", "x"), "data.public_source": ("faces", "fundus_phantom", "x"),
    "model.name": ("convnet", "lenet", "resnet18", "densenet121", "mlp", "x"),
    "model.width": (1, 4, 512, 10**5, 10**9), "model.imprint": (1, 2, 100, 10**6, 10**9),
    "model.activation": ("relu", "gelu", "x"), "model.normalisation": ("none", "batch", "group"),
    "model.weights": ("/dev/zero", "/etc/passwd", "x.pt"), "model.start": ("/dev/zero", "x.safetensors"),
    "generator.name": ("dcgan", "stylegan3-t-tiny", "stylegan3-t"), "generator.z_dim": (1, 4096),
    "generator.width": (4, 512), "generator.batch_size": (2, 10**9), "generator.image_size": (1, 16, 64, 10**6),
    "generator.path": ("/dev/zero", "x"), "training.rounds": (1, 10**4, 10**9),
    "training.clients_per_round": (1, 2, 10**9), "training.local_epochs": (1, 10**9), "seed": (0, 2**63, 10**30),
    "arms.shadow.options.strength": (0, 1e308), "arms.shadow.options.alpha_low": (0, 1e308),
    "attacks.ig.options.iterations": (1, 10**12), "attacks.ig.rounds": ([1], [1] * 1000, [10**9]),
    "attacks.ig.clients": (["client-1"], ["x"], []),
}  # fmt: skip


def make_small(random: np.random.Generator, folder: Path) -> Input:
    """A configuration of valid and extreme values: its data set, model and networks are built."""
    from shadow_defense.config import config_from
    from shadow_defense.data.summary import summarise
    from shadow_defense.experiment.run import Run
    from shadow_defense.generators.build import build_networks, covering_size

    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SMALL))
    done = []
    for _ in range(int(random.integers(1, 4))):
        key = pick(random, tuple(VALUES))
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value = pick(random, VALUES[key])
        done.append(f"{key}={str(value)[:30]}")

    def give() -> None:
        config = config_from(values)
        run = Run.create(folder / "run", config)
        summarise(run.dataset)
        for arm in config.arms:
            run.new_model(arm)
        for attack in config.attacks:
            config.attacks[attack].build()
            run.attacked_clients(attack)
        size = config.generator.image_size or covering_size(config.generator.name, max(run.dataset.image_size))
        build_networks(config.generator, image_size=size, channels=run.dataset.channels, seed=0)

    return Input(" ".join(done), give)


def _prepare(_: Path) -> None:
    command("config", "show", "demo")


MODULES = (
    "shadow_defense.cli.app",
    "shadow_defense.experiment.plans.comparison.reading", "shadow_defense.experiment.plans.run",
    "shadow_defense.generators.stylegan3.discriminator", "shadow_defense.generators.stylegan3.generator",
)  # fmt: skip
CONFIGURATION = Kind(make_configuration, MODULES, _prepare)
COMPARISON = Kind(make_comparison, MODULES, _prepare)
OVERRIDE = Kind(make_override, MODULES, _prepare)
SMALL_RUN = Kind(make_small, MODULES, _prepare)
