"""Options that several commands have."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as data.image_size=64.")
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="What carries the training: in-process, flower-simulation, or flower-secure-aggregation (extra `flower`).",
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        metavar="SEEDS",
        help="Whole experiments, each with a seed of its own, such as 0,1,2; a single one: 3,",
    ),
]


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A model by name, of your own as package.module:factory, or a file: an exported program (.pt2), "
        "TorchScript (.pt, .ts).",
    ),
]


def typed() -> str:
    """The command as it was typed, which a page names."""
    return shlex.join(["shadow-defense", *sys.argv[1:]])


def with_choices(overrides: list[str] | None, engine: str | None = None, model: str | None = None) -> list[str]:
    """The overrides of a configuration, with what ``--engine`` and ``--model`` name among them.

    >>> with_choices(["seed=1"], model="lenet")
    ['seed=1', 'model.name=lenet']
    """
    named = {"engine": engine, "model.name": model}
    return [*(overrides or ()), *(f"{key}={value}" for key, value in named.items() if value is not None)]


def seed_list(text: str | None) -> list[int] | None:
    """The seeds that ``--seeds`` names; None where it was not given.

    Raises:
        ConfigError: for none, what is no such number, one that is there twice, and one number alone that could be
            meant as how many.

    >>> seed_list("0,1,2"), seed_list("3,"), seed_list("0"), seed_list(None)
    ([0, 1, 2], [3], [0], None)
    """
    from shadow_defense.cli.comma_lists import whole_numbers
    from shadow_defense.errors import ConfigError

    seeds = whole_numbers(text, "--seeds")
    if text is None or seeds is None:
        return None
    if len(seeds) == 1 and seeds[0] > 0 and "," not in text:
        counted = ",".join(map(str, range(min(seeds[0], 5))))
        raise ConfigError(
            f"--seeds {text}: expected the seeds themselves with commas between them, such as {counted}; or {text}, "
            f"with a comma for seed {text} alone"
        )
    if len(set(seeds)) < len(seeds) or max(seeds) >= 2**63:
        raise ConfigError(f"--seeds {text}: expected different numbers below 2^63, such as 0,1,2")
    return seeds
