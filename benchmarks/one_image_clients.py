"""Clients that hold one face each, the models that they train, and what a server sees of one round of theirs."""

from __future__ import annotations

import copy
import statistics
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shadow_defense.attacks.observation import Observation, observe
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import ClientData, measure_normalisation
from shadow_defense.data.faces import read_faces
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.federated.client import prepare_defense, train_locally
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.generators.build import load_generator
from shadow_defense.generators.interface import Generator
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.training import pretrain
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.seeds import named_generator, seed_for

SIDE, CLASSES = 16, 2
SHAPE = (1, SIDE, SIDE)
TRAINING = TrainingSettings(rounds=10, learning_rate=0.1)
GENERATOR = GeneratorSettings(name="dcgan", z_dim=64, width=8, steps=1000, save_every=1000)
MOST_IMAGES = 10
"""Faces that are kept from the public images, however many of them are attacked."""

LOSS = nn.CrossEntropyLoss()


def perceptron(seed: int) -> nn.Module:
    """256 - 64 - 2 with ReLU: what opens with a fully connected layer."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(seed, "model"))
        layers = (nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        names = ("flatten", "hidden", "activation", "classifier")
        return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))


def registered(settings: ModelSettings, seed: int, brightness: tuple[float, float]) -> nn.Module:
    sizes: dict[str, Any] = {"channels": 1, "classes": CLASSES, "image_size": (SIDE, SIDE)}
    return build_model(settings, **sizes, seed=seed, brightness=brightness)


LENET, BATCH, GROUP, PERCEPTRON, IMPRINT = (
    "LeNet",
    "ConvNet, batch norm",
    "ConvNet, group norm",
    "perceptron",
    "imprint",
)
MODELS: dict[str, Callable[[int, tuple[float, float]], nn.Module]] = {
    LENET: partial(registered, ModelSettings(name="lenet", normalisation="none")),
    BATCH: partial(registered, ModelSettings(name="convnet", normalisation="batch", activation="gelu", width=16)),
    GROUP: partial(registered, ModelSettings(name="convnet", normalisation="group", activation="gelu", width=16)),
    PERCEPTRON: lambda seed, brightness: perceptron(seed),
    IMPRINT: partial(registered, ModelSettings(name="convnet", normalisation="group", width=8, imprint=64)),
}


class Federation:
    """The faces, the shadow generator, and what a client of one face sends under a defense."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self._folder = seed, folder
        everything = read_faces(image_size=SIDE, channels=1).train
        faces = everything.labels.nonzero().flatten()
        held = faces[torch.randperm(len(faces), generator=named_generator(seed, "clients"))[:MOST_IMAGES]]
        rest = [index for index in range(len(everything)) if index not in set(held.tolist())]
        self.private, self.public = everything.subset(held.numpy()), everything.subset(rest)
        self.faces = self.public.subset(self.public.labels.nonzero().flatten().numpy())
        self.normalisation = measure_normalisation(self.public)
        self.mean_face = self.faces.unit_images().mean(0)
        each = self.normalisation.apply(self.public.unit_images()).mean(dim=(1, 2, 3)).tolist()
        self._brightness = (statistics.fmean(each), statistics.stdev(each))

    @cached_property
    def generator_path(self) -> Path:
        path = self._folder / f"generator-{self.seed}"
        pretrain(GENERATOR, self.faces.images, seed=self.seed, folder=path)
        return path / "generator.safetensors"

    def generator(self) -> Generator:
        return load_generator(self.generator_path)

    def model(self, name: str, defense: DefenseSettings) -> nn.Module:
        return defense.adapt_model(MODELS[name](self.seed, self._brightness), self.seed)

    def send(self, image: int, model: nn.Module, settings: DefenseSettings) -> ModelUpdate:
        """One round of the client that holds this private face. Raises what the defense raises."""
        data = self.private.subset([image])
        client = ClientData(f"client-{image}", data, data, data, batch_size=1)
        generator = self.generator() if settings.kind().needs_generator else None
        resources = Resources(generator, self.normalisation, self.public, CLASSES, client.name, self.seed)
        defense = settings.build(resources)
        defense.check_model(model)
        prepare_defense(defense, client, self.normalisation)
        state = copy.deepcopy(model.state_dict())
        try:
            return train_locally(
                model,
                state,
                client,
                defense,
                settings=TRAINING,
                round=0,
                normalisation=self.normalisation,
                loss_fn=LOSS,
                seed=self.seed,
            ).update
        finally:
            model.load_state_dict(state)

    def observation(
        self, image: int, model: nn.Module, update: ModelUpdate, settings: DefenseSettings, threat: str
    ) -> Observation:
        return observe(
            threat_model(threat),
            model=model,
            loss_fn=LOSS,
            global_state=copy.deepcopy(model.state_dict()),
            update=update,
            image_shape=SHAPE,
            classes=CLASSES,
            normalisation=self.normalisation,
            labels=self.private.subset([image]).labels,
            local_training=LocalTraining(TRAINING.learning_rate, 1, update.steps),
            template=self.mean_face,
            generator=self.generator,
            public=self.public,
            defense=settings,
            rounds=TRAINING.rounds,
        )

    def truth(self, image: int) -> Tensor:
        return self.private.subset([image]).unit_images()
