"""What an experiment plays on: data, models, clients, and which updates are attacked; no folder anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.config import RunConfig
from shadow_defense.data.dataset import ClientData, FederatedDataset
from shadow_defense.devices import resolved_device
from shadow_defense.errors import RunError
from shadow_defense.experiment.images import Images, shared_images
from shadow_defense.federated.sampling import taking_part
from shadow_defense.federated.update import ALL_CLIENTS
from shadow_defense.models.build import build_model


@dataclass(frozen=True)
class Job:
    """One attack on one update; ``round`` is 0-based."""

    arm: str
    attack: str
    round: int
    client: str


class Scene:
    """A configuration with its data and models.

    Attributes:
        config: what decides the numbers.
        images: may be shared by scenes of the same data and seed.
    """

    def __init__(self, config: RunConfig, images: Images | None = None) -> None:
        self.config = config
        self.images = Images(config.data, config.seed) if images is None else images

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process loads the images itself, once.
        return opened_scene, (self.config.model_dump_json(),)

    def varied(self, config: RunConfig) -> Scene:
        """The scene of another configuration, on the same images where they are the same."""
        same = (config.data, config.seed) == (self.config.data, self.config.seed)
        return Scene(config, self.images if same else None)

    @property
    def dataset(self) -> FederatedDataset:
        return self.images.dataset

    @property
    def mean_image(self) -> Tensor:
        return self.images.mean_image

    @property
    def usual_contrast(self) -> float | None:
        return self.images.usual_contrast

    @property
    def reference(self) -> str:
        """The first arm, which the others are compared with."""
        return next(iter(self.config.arms))

    @cached_property
    def device(self) -> torch.device:
        """Where models compute. Raises :class:`ConfigError` where what is asked for is not there."""
        return resolved_device(self.config.device)

    def new_model(self, arm: str) -> nn.Module:
        """The task model as an arm starts it, on the CPU: the same weights for all, but where a defense changes it."""
        data = self.dataset
        model = build_model(
            self.config.model,
            channels=data.channels,
            classes=data.classes,
            image_size=data.image_size,
            seed=self.config.seed,
            # An imprint alone needs them.
            brightness=(0.0, 1.0) if self.config.model.imprint is None else self.images.brightness,
        )
        return self.config.arms[arm].whole_model(model, self.config.seed, data.public, data.normalisation)

    @property
    def shows_averages(self) -> bool:
        """Whether the server saw averages and no single update (secure aggregation): they are attacked then."""
        return self.config.engine.endswith("secure-aggregation")

    def client(self, name: str) -> ClientData:
        if name == ALL_CLIENTS:
            return self.images.all_clients
        return next(client for client in self.dataset.clients if client.name == name)

    @cached_property
    def kept(self) -> dict[int, frozenset[str]]:
        """For each round (0-based) that some attack asks for, or uses besides, the clients that it asks for."""
        kept: dict[int, frozenset[str]] = {}
        for attack, settings in self.config.attacks.items():
            clients = frozenset(client.name for client in self._chosen_clients(attack))
            for attacked in self.config.attacked_rounds(attack):
                for round in (*settings.earlier_rounds(attacked), attacked):
                    kept[round] = kept.get(round, frozenset()) | clients
        return kept

    def attacked_clients(self, attack: str) -> list[ClientData]:
        """The clients that an attack is tried on, or all as one where the server saw averages.

        Raises :class:`RunError` for a client that does not exist.
        """
        if self.shows_averages:
            self.check_attack_on_averages(attack)
            return [self.images.all_clients]
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

    def jobs(self) -> list[Job]:
        """Every attack that the configuration asks for."""
        updates = {attack: self.attacked_updates(attack) for attack in self.config.attacks}
        return [
            Job(arm, attack, round, client.name)
            for attack in updates
            for arm in self.config.arms
            for round, client in updates[attack]
        ]


@lru_cache(maxsize=8)
def opened_scene(config: str) -> Scene:
    """The scene of a configuration in JSON; kept in each process, since its images take seconds to load."""
    parsed = RunConfig.model_validate_json(config)
    return Scene(parsed, shared_images(parsed.data.model_dump_json(), parsed.seed))
