"""The directions of an image that a classifier's answer depends on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.data.dataset import ImageSet, Normalisation, measure_normalisation
from shadow_defense.errors import DataError
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import training_mode
from shadow_defense.models.settings import ModelSettings
from shadow_defense.placement import CPU, device_of
from shadow_defense.progress import Progress
from shadow_defense.protection.whitening import Whitening
from shadow_defense.seeds import named_generator, seed_for

EPOCHS, BATCH_SIZE, LEARNING_RATE = 15, 32, 1e-3
NOISE = 0.02
"""Standard deviation under which gradients are taken, on the scale of [0, 1]: at single points they are rough."""

MOVED = 3
"""Pixels: on images of 64 px twice as many did harm (docs/protect.md)."""

MODEL = ModelSettings(name="convnet", normalisation="group", activation="gelu", width=32)


@dataclass(frozen=True)
class Classifier:
    """A trained model, in eval mode, and the normalisation of the images that it reads; it computes where it lies."""

    model: nn.Module
    normalisation: Normalisation

    def answers(self, images: Float[Tensor, "n c h w"]) -> Int64[Tensor, " n"]:
        """The most probable class of each image in [0, 1]."""
        with torch.no_grad(), training_mode(self.model, False):
            device = device_of(self.model)
            parts = [
                self.model(self.normalisation.apply(part.to(device))).argmax(dim=1).cpu() for part in images.split(256)
            ]
        return torch.cat(parts)


def labels_for(
    classifier: Classifier, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None
) -> Int64[Tensor, " n"]:
    """The labels by which the margin of :func:`task_directions` is taken: those known, else the classifier's answers.

    Raises:
        DataError: where it answers the same to all images, or is right no more often than that would be: its
            directions would say nothing of the task, and its images may be normalised otherwise than it expects.
    """
    answers = classifier.answers(images)
    if len(answers.unique()) < 2:
        raise DataError(
            "the model gives all public images the same class: give one that was trained on such images, with the mean "
            "and std that it expects (data.mean and data.std of a YAML file)"
        )
    if labels is None:
        return answers
    right, always = float((answers == labels).float().mean()), float(labels.bincount().max()) / len(labels)
    if right <= always:
        raise DataError(
            f"the model is right on {right:.0%} of the public images, and whoever always says the most frequent class "
            f"on {always:.0%}: give one of these classes, with the mean and std that it expects"
        )
    return labels


def train_classifier(
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    normalisation: Normalisation,
    *,
    seed: int,
    settings: ModelSettings = MODEL,
    epochs: int = EPOCHS,
    moved: bool = False,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> nn.Module:
    """A classifier of images in [0, 1], small unless told otherwise, by Adam, from scratch or from ``settings.start``.

    Args:
        moved: each batch by up to three pixels, its edges repeated.
        device: where it is trained, and stays.

    Raises:
        DataError: when the images are all of one class.
    """
    classes = int(labels.max()) + 1
    if len(labels.unique()) < 2:
        raise DataError("the images are all of one class: give labels of two at least, or another texture")
    height, width = images.shape[2:]
    model = build_model(
        settings,
        channels=images.shape[1],
        classes=classes,
        image_size=(height, width),
        seed=seed_for(seed, "classifier"),
    ).to(device)
    inputs, labels = normalisation.apply(images.to(device)), labels.to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    task = (progress or Progress()).start("training a classifier", epochs)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=named_generator(seed, "classifier", "epoch", epoch))
        draws = named_generator(seed, "classifier", "moves", epoch)
        for chosen in order.split(BATCH_SIZE):
            batch = _moved(inputs[chosen], draws) if moved else inputs[chosen]
            loss = F.cross_entropy(model(batch), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        task.advance(note=f"loss {loss.item():.3f}")
    task.finish()
    return model.eval()


def train_public_classifier(
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    seed: int,
    moved: bool,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> Classifier:
    """As :func:`train_classifier`, of images at 256 levels that are normalised by their own mean and deviation."""
    normalisation = measure_normalisation(ImageSet(images, labels, tuple(map(str, range(len(images))))))
    model = train_classifier(
        images.float() / 255, labels, normalisation, seed=seed, moved=moved, progress=progress, device=device
    )
    return Classifier(model, normalisation)


def _moved(images: Float[Tensor, "n c h w"], draws: torch.Generator) -> Float[Tensor, "n c h w"]:
    height, width = images.shape[2:]
    top, left = (int(torch.randint(2 * MOVED + 1, (1,), generator=draws)) for _ in range(2))
    return F.pad(images, 4 * (MOVED,), mode="replicate")[:, :, top : top + height, left : left + width]


def task_directions(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    normalisation: Normalisation,
    whitening: Whitening,
    *,
    count: int,
    seed: int,
) -> Float[Tensor, "k j"]:
    """V: the leading eigenvectors of ``E[g g^T]``, ``g = D B^T grad_x (logit of the class - mean of the others)``.

    Over public images under white noise of :data:`NOISE` (docs/protect.md).

    Raises:
        DataError: when more directions are asked for than there are.
    """
    if not 1 <= count <= whitening.count:
        raise DataError(f"{count} directions were asked for: expected 1 to {whitening.count}, as many as there are")
    moment, device = torch.zeros(whitening.count, whitening.count), device_of(model)
    with training_mode(model, False):
        for index, chosen in enumerate(torch.arange(len(images)).split(256)):
            noise = torch.randn(images[chosen].shape, generator=named_generator(seed, "directions", index))
            noisy = (images[chosen] + NOISE * noise).to(device).requires_grad_(True)
            logits = model(normalisation.apply(noisy))
            own = logits.gather(1, labels[chosen, None].to(device))[:, 0]
            margin = own - (logits.sum(dim=1) - own) / (logits.shape[1] - 1)
            (gradient,) = torch.autograd.grad(margin.sum(), noisy)
            whitened = gradient.cpu().flatten(1) @ whitening.directions * whitening.deviations
            moment += whitened.T @ whitened
    return torch.linalg.eigh(moment.double()).eigenvectors.flip(1)[:, :count].float().contiguous()
