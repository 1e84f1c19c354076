"""Private and public images of one source, without overlap, and what textures are made of."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.data.dataset import ImageSet, Normalisation, measure_normalisation
from shadow_defense.data.npz import read_npz
from shadow_defense.experiment.protecting.building import gallery_for
from shadow_defense.experiment.protecting.settings import PROMISES
from shadow_defense.experiment.protecting.weakest import LEAST, weakest_strength
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.training import GanTraining
from shadow_defense.metrics.limit import Limit
from shadow_defense.protection.decoy import GeneratedDecoys
from shadow_defense.protection.directions import Classifier, labels_for, task_directions, train_classifier
from shadow_defense.protection.features import Features, told_by
from shadow_defense.protection.reader import measure_reader
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.whitening import Whitening, measure_whitening
from shadow_defense.seeds import named_generator

SEED = 0
VALIDATION = 500
"""Images that are left over, where the file has no part for it."""


@dataclass
class Material:
    """Images of one file; each thing that is made of public ones is made when it is first asked for."""

    private: ImageSet
    public: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: int
    gan_steps: int
    seed: int = SEED
    _classifiers: dict[tuple[int, bool], Classifier] = field(default_factory=dict)

    @cached_property
    def gallery(self) -> Tensor:
        return self.private.unit_images()

    @cached_property
    def pool(self) -> Tensor:
        return self.public.unit_images()

    @cached_property
    def whitening(self) -> Whitening:
        return measure_whitening(self.pool)

    @property
    def mean_image(self) -> Tensor:
        return self.whitening.mean.unflatten(0, self.whitening.shape)

    @cached_property
    def knowledge(self) -> Knowledge:
        return Knowledge(self.pool, self.public.labels, self.classes)

    @cached_property
    def decoys(self) -> GeneratedDecoys:
        settings = GeneratorSettings(name="dcgan", steps=self.gan_steps, width=16, z_dim=64)
        training = GanTraining(
            settings, image_size=self.public.image_size[0], channels=self.public.channels, seed=self.seed
        )
        for _ in range(self.gan_steps):
            training.step(self.public.images)
        return GeneratedDecoys(training.average)

    def classifier(self, labelled: int | None = None, moved: bool = False) -> Classifier:
        """Of public images, or of the first ``labelled`` of them, as they are or moved."""
        known = len(self.public) if labelled is None else labelled
        if (known, moved) not in self._classifiers:
            told = self.public.subset(range(known))
            normalisation = measure_normalisation(told)
            model = train_classifier(told.unit_images(), told.labels, normalisation, seed=self.seed, moved=moved)
            self._classifiers[known, moved] = Classifier(model, normalisation)
        return self._classifiers[known, moved]

    def spared(self, count: int, labelled: int | None = None, moved: bool = False) -> Tensor:
        """Directions of that classifier."""
        told, found = self.public.subset(range(len(self.public))[:labelled]), self.classifier(labelled, moved)
        return task_directions(
            found.model,
            told.unit_images(),
            told.labels,
            found.normalisation,
            self.whitening,
            count=count,
            seed=self.seed,
        )

    def read(self, count: int, labelled: int | None = None) -> Features:
        """What a classifier of moved images sees, at the weakest strength that keeps the promises of `recommended`."""
        reader = measure_reader(self.classifier(labelled, moved=True), self.pool, count)
        told = told_by(reader, self.whitening, self.pool)
        make = partial(Features, self.whitening, reader, told, self.spared(count, labelled, moved=True))
        return make(self.weakest(make))

    def directions_of(self, model: nn.Module, normalisation: Normalisation, count: int) -> Tensor:
        """Directions of a model that somebody trained, on public images without their labels."""
        classifier = Classifier(model, normalisation)
        answers = labels_for(classifier, self.pool, None)
        return task_directions(model, self.pool, answers, normalisation, self.whitening, count=count, seed=self.seed)

    def weakest(self, make: Callable[[float], Texture], targets: Sequence[Limit] = PROMISES["recommended"]) -> float:
        """The weakest strength for so many private images that meets the targets."""
        strength, gallery = LEAST, gallery_for(len(self.private))
        for target in targets:
            strength = weakest_strength(make, self.pool, target, gallery=gallery, least=strength)
        return strength

    def principal(self, count: int) -> Tensor:
        """A control: the directions along which public images differ most."""
        return torch.eye(self.whitening.count)[:, :count]

    def random(self, count: int) -> Tensor:
        """A control: directions that say nothing."""
        drawn = torch.randn(self.whitening.count, count, generator=named_generator(self.seed, "random directions"))
        return torch.linalg.qr(drawn).Q


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="an npz file of MedMNIST")
    parser.add_argument("--size", type=int, default=32, help="side in pixels to which images are brought")
    parser.add_argument("--private", type=int, default=1800, help="images to protect, all in the gallery")
    parser.add_argument("--public", type=int, default=1800)
    parser.add_argument("--audited", type=int, default=300, help="of the private images")
    parser.add_argument("--gan-steps", type=int, default=1000, help="of the generator of decoys")
    parser.add_argument("--only", default="", help="rows whose name begins so; several after commas")
    parser.add_argument("--json", type=Path, help="a file for all numbers")


def read_material(data: Path, size: int, private: int, public: int, gan_steps: int, seed: int = SEED) -> Material:
    """Private and public images dealt by ``seed``."""
    parts = read_npz(path=data, image_size=size, channels=None)
    order = torch.randperm(len(parts.train), generator=named_generator(seed, "benchmark")).numpy()
    left = order[private + public :]
    assert parts.test is not None
    return Material(
        private=parts.train.subset(order[:private]),
        public=parts.train.subset(order[private:][:public]),
        validation=parts.validation or parts.train.subset(left[:VALIDATION]),
        test=parts.test,
        classes=len(parts.class_names),
        gan_steps=gan_steps,
        seed=seed,
    )


def wanted(name: str, only: str) -> bool:
    """Whether a row was asked for."""
    return any(name.startswith(each.strip()) for each in only.split(","))
