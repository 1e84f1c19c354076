"""A run directory: its configuration, its data, and where each stage puts its files."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.config import RunConfig, config_from
from shadow_defense.data.build import load_dataset
from shadow_defense.data.dataset import ClientData, FederatedDataset
from shadow_defense.errors import ConfigError, RunError, ShadowDefenseError, shown
from shadow_defense.experiment.averaged_clients import as_one_client
from shadow_defense.federated.rounds import kept_updates
from shadow_defense.federated.sampling import taking_part
from shadow_defense.federated.update import ALL_CLIENTS
from shadow_defense.files import LOCK, is_empty, path_name, remove_leftovers, write_text
from shadow_defense.models.build import build_model
from shadow_defense.plain_yaml import as_mapping, read_yaml


class Run:
    """One run: a folder and the configuration in it.

    Attributes:
        folder: where everything is written.
        config: what decides the numbers.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config = folder, config

    @classmethod
    def create(
        cls, folder: Path, config: RunConfig, *, restart: bool = False, check: Callable[[Run], None] | None = None
    ) -> Run:
        """Make the folder, or go on in one that holds the same configuration.

        Args:
            restart: delete what a run directory holds and begin anew.
            check: raises for a run that cannot be carried out, before anything is written or deleted.

        Raises:
            RunError: when the folder holds another configuration, or files that no run wrote.
        """
        config = with_absolute_paths(config)
        made = cls(folder, config)
        if check is not None:
            check(made)
        written = folder / "config.yaml"
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file: choose another folder with --out")
        if restart and written.exists():
            _delete_run(folder)
        if written.exists():
            earlier = cls.open(folder)
            if earlier.config.fingerprint() != config.fingerprint():
                key = _first_difference(earlier.config.as_dict(), config.as_dict())
                raise RunError(
                    f"{folder} holds a run with another {key}: choose another folder with --out, or give --restart to "
                    "delete that run"
                )
            return made
        if folder.exists() and not is_empty(folder):
            raise RunError(f"{folder} exists and holds files that no run wrote: choose another folder with --out")
        write_text(written, yaml.safe_dump(config.as_dict(), sort_keys=False))
        return made

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run directory. Raises :class:`RunError` when there is none."""
        written = folder / "config.yaml"
        if not written.is_file():
            raise RunError(f"{folder} is no run directory (it has no config.yaml): give one, or --config to create it")
        try:
            return cls(folder, config_from(as_mapping(read_yaml(written), str(written))))
        except ShadowDefenseError as error:
            raise RunError(
                f"{written} cannot be read as a configuration: {error}; write the run's "
                "configuration there again (`shadow-defense config show` prints one), or begin anew with --restart"
            ) from error

    @cached_property
    def dataset(self) -> FederatedDataset:
        return load_dataset(self.config.data, self.config.seed)

    @cached_property
    def mean_image(self) -> Tensor:
        """The mean of the public images, (c, h, w) in [0, 1]; mid-grey where there are none."""
        public = self.dataset.public
        if len(public) == 0:
            return torch.full((self.dataset.channels, *self.dataset.image_size), 0.5)
        return public.images.float().mean(0) / 255

    @cached_property
    def brightness(self) -> tuple[float, float]:
        """Mean and standard deviation of the public images' mean normalised pixel; 0 and 1 where none is needed.

        An imprint needs them; of fewer than two images there is no deviation.
        """
        public = self.dataset.public
        if self.config.model.imprint is None or len(public) < 2:
            return 0.0, 1.0
        # Sums of floats differ in their last digit with the number of threads; these do not.
        sums = public.images.sum(dim=(2, 3), keepdim=True, dtype=torch.int64)
        pixels = sums.double() / math.prod(public.image_size)
        each = self.dataset.normalisation.apply(pixels / 255).mean(dim=(1, 2, 3)).tolist()
        return statistics.fmean(each), statistics.stdev(each)

    def new_model(self, arm: str) -> nn.Module:
        """The task model as an arm starts it: the same weights for all, but where a defense changes the model."""
        data = self.dataset
        model = build_model(
            self.config.model,
            channels=data.channels,
            classes=data.classes,
            image_size=data.image_size,
            seed=self.config.seed,
            brightness=self.brightness,
        )
        return self.config.arms[arm].adapt_model(model, self.config.seed)

    @property
    def shows_averages(self) -> bool:
        """Whether the server saw averages and no single update (secure aggregation): they are attacked then."""
        return any(
            sender == ALL_CLIENTS for arm in self.config.arms for _, sender in kept_updates(self.arm_folder(arm))
        )

    @cached_property
    def all_clients(self) -> ClientData:
        """All clients as one, with batches of all their batches together: an average is nearly this one's update."""
        return as_one_client(self.dataset.clients)

    def client(self, name: str) -> ClientData:
        if name == ALL_CLIENTS:
            return self.all_clients
        return next(client for client in self.dataset.clients if client.name == name)

    @property
    def generator_path(self) -> Path:
        return self.folder / "shadow" / "generator.safetensors"

    def arm_folder(self, arm: str) -> Path:
        return self.folder / "arms" / arm

    def reconstruction_path(self, arm: str, attack: str, round: int, client: str) -> Path:
        """``round`` is 0-based."""
        return self.folder / "attacks" / arm / attack / f"round-{round:04d}-{path_name(client)}.safetensors"

    @property
    def results_path(self) -> Path:
        return self.folder / "results.json"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    def kept(self) -> dict[int, frozenset[str]]:
        """For each round (0-based) that some attack asks for, or uses besides, the clients that it asks for."""
        kept: dict[int, frozenset[str]] = {}
        for attack, settings in self.config.attacks.items():
            clients = frozenset(client.name for client in self._chosen_clients(attack))
            for attacked in self.config.attacked_rounds(attack):
                for round in (*earlier_rounds(settings, attacked), attacked):
                    kept[round] = kept.get(round, frozenset()) | clients
        return kept

    def attacked_clients(self, attack: str) -> list[ClientData]:
        """The clients that an attack is tried on, or all as one where the server saw averages.

        Raises :class:`RunError` for a client that does not exist.
        """
        if self.shows_averages:
            self.check_attack_on_averages(attack)
            return [self.all_clients]
        return self._chosen_clients(attack)

    def _chosen_clients(self, attack: str) -> list[ClientData]:
        settings = self.config.attacks[attack]
        names = [client.name for client in self.dataset.clients]
        for name in settings.clients or ():
            if name not in names:
                raise RunError(f"attacks.{attack}.clients names '{name}': the clients are {', '.join(names)}")
        chosen = [
            client
            for client in self.dataset.clients
            if (settings.clients is None or client.name in settings.clients)
            and (settings.longest_client is None or len(client.train) <= settings.longest_client)
        ]
        if not chosen:
            raise RunError(
                f"attack '{attack}' has no client to attack: raise attacks.{attack}.longest_client or name clients"
            )
        return chosen

    def attacked_updates(self, attack: str) -> list[tuple[int, ClientData]]:
        """The rounds (0-based) and clients whose updates an attack is tried on: of clients that take part in the round.

        Raises :class:`RunError` where there are none, and as :meth:`attacked_clients`.
        """
        clients, averages = self.attacked_clients(attack), self.shows_averages
        rounds = {round: self.taking_part(round) for round in self.config.attacked_rounds(attack)}
        updates = [
            (round, client) for round, names in rounds.items() for client in clients if averages or client.name in names
        ]
        if not updates:
            raise RunError(
                f"attack '{attack}' has no update to attack: none of its clients is drawn for round "
                f"{', '.join(str(round + 1) for round in rounds)}; name others in attacks.{attack}.rounds or clients"
            )
        return updates

    def taking_part(self, round: int) -> frozenset[str]:
        """The names of the clients of a round (0-based). Raises :class:`ConfigError` where there are too few."""
        clients = self.dataset.clients
        drawn = taking_part(len(clients), self.config.training.clients_per_round, seed=self.config.seed, round=round)
        return frozenset(clients[number].name for number in drawn)

    def check_attack_on_averages(self, attack: str) -> None:
        """Raise :class:`RunError` where an attack cannot be tried on the average of all clients."""
        settings, images = self.config.attacks[attack], sum(len(client.train) for client in self.dataset.clients)
        if settings.longest_client is not None and settings.longest_client < images:
            raise RunError(
                f"attack '{attack}' is for at most {settings.longest_client} images and secure aggregation shows the "
                f"server averages over {images} only: begin a run with attacks.{attack}.longest_client={images}"
            )
        learns = "public images" in settings.build().needs
        if learns and "data distribution" in threat_model(settings.threat_model).granted:
            raise RunError(
                f"attack '{attack}' learns from other clients' images and an average is of all clients: begin a run "
                "with another threat_model, or with another engine"
            )


def earlier_rounds(attack: AttackSettings, attacked: int) -> range:
    """The rounds (0-based) before ``attacked`` that an adaptive attack uses, as far as there are any."""
    used = 1 if attack.adaptive is None else attack.adaptive.rounds
    return range(max(attacked - used + 1, 0), attacked)


WRITTEN = frozenset(
    {"config.yaml", "shadow", "arms", "attacks", "scores.json", "results.csv", "results.json", "report.html"}
)
"""All that a run writes into its folder."""


def _delete_run(folder: Path) -> None:
    """Delete a run directory. Raises :class:`RunError` when anything else lies in it: that is the user's."""
    remove_leftovers(folder)
    entries = [entry for entry in sorted(folder.iterdir()) if entry.name != LOCK]
    for entry in entries:
        if entry.name not in WRITTEN:
            raise RunError(f"{entry} was written by no run: move it away, or choose another folder with --out")
    # The lock stays: who deletes a run goes on to write it.
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """So that a run goes on from any working directory."""

    def absolute(path: Path | None) -> Path | None:
        try:
            return None if path is None else path.expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{shown(path)} is no path: {error}; give another") from error

    data = config.data.model_copy(
        update={"path": absolute(config.data.path), "public_path": absolute(config.data.public_path)}
    )
    return config.model_copy(
        update={
            "data": data,
            "model": config.model.model_copy(
                update={name: absolute(getattr(config.model, name)) for name in ("weights", "start")}
            ),
            "generator": config.generator.model_copy(
                update={
                    name: absolute(getattr(config.generator, name))
                    for name in ("path", "begin_from", "begin_from_discriminator")
                }
            ),
            "metrics": config.metrics.model_copy(update={"lpips_weights": absolute(config.metrics.lpips_weights)}),
        }
    )


def _first_difference(earlier: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    for key in sorted(set(earlier) | set(new)):
        if key in ("workers", "title") and not prefix:
            continue
        old_value, new_value = earlier.get(key), new.get(key)
        if old_value != new_value:
            if isinstance(old_value, dict) and isinstance(new_value, dict):
                return _first_difference(old_value, new_value, f"{prefix}{key}.")
            return f"{prefix}{key} ({old_value!r}, not {new_value!r})"
    return "configuration"
