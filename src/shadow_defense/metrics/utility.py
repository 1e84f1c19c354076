"""What the trained model is worth for its task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from shadow_defense.data.dataset import FederatedDataset, ImageSet, Normalisation, check_labels
from shadow_defense.errors import DataError
from shadow_defense.models.functional import training_mode
from shadow_defense.placement import device_of

# Rounding of a softmax in half precision.
_SUM_TOLERANCE = 1e-2


def utility_from_logits(logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> dict[str, float | None]:
    """:func:`utility` of ``softmax(logits)``, where the model has one output per class (two or more)."""
    return utility(torch.softmax(logits.double(), dim=1), labels)


def utility(probabilities: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> dict[str, float | None]:
    """Accuracy, F1 and AUROC of predicted class probabilities.

    Args:
        probabilities: rows in [0, 1] that sum to 1; the prediction is the most probable class.
        labels: 0 to classes - 1.

    Returns:
        ``accuracy``; ``f1_micro`` (equal to accuracy where every image has one label); ``f1_class_{i}``, 0 for a
        class neither present nor predicted; ``f1_macro``, the mean over the classes present or predicted;
        ``auroc``, one class against the rest averaged over classes, None where a class is absent.

    Raises:
        DataError: without images, with labels out of range, or when rows are not probabilities.

    >>> result = utility(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]), torch.tensor([0, 1, 1, 1]))
    >>> {name: round(value, 3) for name, value in result.items()}
    {'accuracy': 0.75, 'f1_micro': 0.75, 'f1_macro': 0.733, 'f1_class_0': 0.667, 'f1_class_1': 0.8, 'auroc': 1.0}
    """
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_auroc,
        multiclass_f1_score,
    )

    if len(labels) == 0:
        raise DataError("no images to measure utility on: give at least one")
    classes = probabilities.shape[1]
    check_labels(labels.cpu().numpy(), classes, "labels")
    _check_probabilities(probabilities)
    predicted = probabilities.argmax(dim=1)
    per_class = multiclass_f1_score(predicted, labels, classes, average="none")
    result: dict[str, float | None] = {
        "accuracy": float(multiclass_accuracy(predicted, labels, classes, average="micro")),
        "f1_micro": float(multiclass_f1_score(predicted, labels, classes, average="micro")),
        "f1_macro": float(multiclass_f1_score(predicted, labels, classes, average="macro")),
    }
    result.update({f"f1_class_{i}": float(score) for i, score in enumerate(per_class)})
    absent = (torch.bincount(labels, minlength=classes) == 0).any()
    result["auroc"] = None if absent else float(multiclass_auroc(probabilities, labels, classes))
    return result


def best_threshold(probabilities: Float[Tensor, " n"], labels: Int64[Tensor, " n"]) -> float:
    """The probability of class 1 from which on to say 1, of two classes, for the greatest macro F1 on these images.

    Half-way between the two images that it separates, 0.5 where no image lies on either side.

    Raises:
        DataError: without images.

    >>> round(best_threshold(torch.tensor([0.1, 0.2, 0.3, 0.7]), torch.tensor([0, 0, 1, 1])), 6)
    0.25
    """
    if len(labels) == 0:
        raise DataError("no images to set a threshold on: give at least one")
    order = probabilities.double().argsort(descending=True)
    ranked, positive = probabilities.double()[order], (labels[order] == 1).double()
    # After the first i are called 1, for i = 1 to n.
    hits, called, positives = positive.cumsum(0), torch.arange(1, len(order) + 1), positive.sum()
    rest = len(order) - called
    right = rest - (positives - hits)
    f1 = hits / (called + positives) + right / (rest + len(order) - positives).clamp_min(1)
    # Between equal probabilities lies no threshold.
    possible = torch.cat([ranked[:-1] > ranked[1:], torch.tensor([False])])
    if not possible.any():
        return 0.5
    place = int(torch.where(possible, f1, -1.0).argmax())
    return float((ranked[place] + ranked[place + 1]) / 2)


def _check_probabilities(probabilities: Float[Tensor, "n classes"]) -> None:
    if probabilities.shape[1] < 2:
        raise DataError("probabilities have one column: give one per class, two for a binary task")
    if not torch.isfinite(probabilities).all():
        raise DataError("a prediction is NaN or infinite: the model has diverged; lower its learning rate")
    off = (probabilities.sum(dim=1) - 1).abs().max()
    if probabilities.min() < 0 or off > _SUM_TOLERANCE:
        raise DataError("predictions are not rows of probabilities that sum to 1: use utility_from_logits for logits")


@torch.no_grad()
def predict(
    model: nn.Module, images: ImageSet, normalisation: Normalisation, batch_size: int = 256
) -> Float[Tensor, "n classes"]:
    """Logits of a whole set, in eval mode, computed where the model lies and given on the CPU."""
    device = device_of(model)
    with training_mode(model, False):
        chunks = (chunk.to(device).float() / 255 for chunk in images.images.split(batch_size))
        return torch.cat([model(normalisation.apply(chunk)) for chunk in chunks]).cpu()


@dataclass(frozen=True)
class Classified:
    """What a model says of images.

    Attributes:
        probabilities: of each class.
        classes: the class that each image is called: of two at ``threshold``, else the most probable one.
        threshold: of class 1, for the greatest macro F1 on validation images; None without them.
    """

    probabilities: Float64[Tensor, "n classes"]
    classes: Int64[Tensor, " n"]
    threshold: float | None


def probabilities_of(model: nn.Module, images: ImageSet, normalisation: Normalisation) -> Float64[Tensor, "n classes"]:
    """What a model says of a whole set, as :func:`predict`."""
    return torch.softmax(predict(model, images, normalisation).double(), dim=1)


def classify(
    probabilities: Float64[Tensor, "n classes"],
    validated: tuple[Float64[Tensor, "v classes"], Int64[Tensor, " v"]] | None,
) -> Classified:
    """The classes of images, by what a model says of them and of validation images, whose labels are known.

    Raises:
        DataError: without validation images where they are asked for.
    """
    if validated is None or probabilities.shape[1] != 2:
        return Classified(probabilities, probabilities.argmax(dim=1), None)
    threshold = best_threshold(validated[0][:, 1], validated[1])
    return Classified(probabilities, (probabilities[:, 1] > threshold).long(), threshold)


def evaluate(model: nn.Module, data: FederatedDataset) -> dict[str, dict[str, float | None]]:
    """:func:`utility` on all clients' ``validation`` images, and on the ``test`` images, as far as there are any."""
    sets = {"validation": [client.validation for client in data.clients], "test": [data.test]}
    measured = {}
    for name, parts in sets.items():
        present = [part for part in parts if len(part)]
        if present:
            logits = torch.cat([predict(model, part, data.normalisation) for part in present])
            measured[name] = utility_from_logits(logits, torch.cat([part.labels for part in present]))
    return measured
