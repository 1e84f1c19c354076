"""Labels and losses of every kind: the same protection whatever the form, and the right map for each kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.shadow.little_guard import COUNT, SIDE, guard, images, net, step
from torch import Tensor, nn

from shadow_defense.errors import DataError, ModelError
from shadow_defense.models.class_activation import class_activation_maps, positive_classes
from shadow_defense.shadow.targets import training_loss

CLASSES = torch.tensor([0, 1, 0, 1])
BCE = nn.BCEWithLogitsLoss()


def protected(**given: Any) -> Tensor:
    return guard().protect(**step(**given))


@pytest.mark.parametrize(
    "labels",
    [
        CLASSES.to(torch.uint8),
        CLASSES.int(),
        CLASSES.bool(),
        CLASSES.unsqueeze(1),
        CLASSES.unsqueeze(1).to(torch.uint8),
        CLASSES.tolist(),
        CLASSES.numpy(),
        CLASSES.unsqueeze(1).numpy().astype(np.uint8),
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')} {np.shape(labels)}",
)
def test_every_form_of_class_indices_is_the_same(labels: Any) -> None:
    assert torch.equal(protected(labels=labels), protected(labels=CLASSES))


def test_one_image_has_a_label_without_dimensions() -> None:
    one = images()[:1]
    assert torch.equal(protected(given=one, labels=torch.tensor(1)), protected(given=one, labels=[1]))
    assert torch.equal(protected(given=one, labels=1), protected(given=one, labels=[1]))


def test_one_hot_targets_are_their_classes() -> None:
    hot = F.one_hot(CLASSES, 2).float()
    torch.testing.assert_close(protected(labels=hot), protected(labels=CLASSES))


@pytest.mark.parametrize("labels", [CLASSES, CLASSES.float(), CLASSES.unsqueeze(1), CLASSES.unsqueeze(1).float()])
@pytest.mark.parametrize("flat", [False, True])
def test_one_logit(labels: Tensor, flat: bool) -> None:
    """In every shape of labels and outputs the protection of the plainest."""
    model = net(1)
    given = nn.Sequential(*model, nn.Flatten(0)) if flat else model
    expected = protected(labels=CLASSES.unsqueeze(1).float(), model=model, loss_fn=BCE)
    torch.testing.assert_close(protected(labels=labels, model=given, loss_fn=BCE, global_model=given), expected)


def test_the_loss_gets_the_labels_as_they_were_given() -> None:
    seen = []

    def squeezing(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels.shape)
        return F.cross_entropy(logits, labels[:, 0])

    assert torch.equal(protected(labels=CLASSES.unsqueeze(1), loss_fn=squeezing), protected(labels=CLASSES))
    assert set(seen) == {(COUNT, 1)}


def test_reductions() -> None:
    """none counts as the mean; a sum is another step, whose gradient is n times as long."""
    plain = protected()
    torch.testing.assert_close(protected(loss_fn=nn.CrossEntropyLoss(reduction="none")), plain)
    assert not torch.equal(protected(loss_fn=nn.CrossEntropyLoss(reduction="sum")), plain)
    outputs = torch.randn(COUNT, 2)
    for reduction in ("none", "mean"):
        loss = training_loss(nn.CrossEntropyLoss(reduction=reduction))(outputs, CLASSES)
        torch.testing.assert_close(loss, F.cross_entropy(outputs, CLASSES))


def test_each_positive_class_has_its_map_and_the_largest_is_kept() -> None:
    model, batch = net(5), images()
    labels = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]).float()
    found = class_activation_maps(model, model, batch, labels, "0")
    one_class = [class_activation_maps(model, model, batch, torch.full((COUNT,), c), "0") for c in range(5)]
    for index, target in enumerate(labels):
        expected = torch.zeros(SIDE, SIDE)
        for c in range(5):
            if target[c]:
                expected = torch.maximum(expected, one_class[c][index])
        torch.testing.assert_close(found[index], expected)
    assert found[0].max() == 1 and not torch.equal(found[0], one_class[0][0])


def test_multi_label_images_are_protected() -> None:
    labels = (torch.rand(COUNT, 14, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    for given in (labels, labels.long()):
        protection = guard().protect_with_details(**step(labels=given, model=net(14), loss_fn=BCE))
        assert protection.cam is not None and (protection.noise.flatten(1).abs().amax(1) > 0).all()
        expected = class_activation_maps(net(14), net(14), images(), labels, "1")
        torch.testing.assert_close(protection.cam, expected)
    for labels_of in (labels, torch.zeros(COUNT, 14)):
        chosen = guard(cam_class=3).protect_with_details(**step(labels=labels_of, model=net(14), loss_fn=BCE)).cam
        expected = class_activation_maps(net(14), net(14), images(), torch.full((COUNT,), 3), "1")
        torch.testing.assert_close(chosen, expected)


def test_what_counts_as_positive() -> None:
    smoothed = torch.tensor([[0.95, 0.05], [0.05, 0.95]])
    assert positive_classes(smoothed, 2).tolist() == [[True, False], [False, True]]
    mixed = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.5, 0.5]])
    assert positive_classes(mixed, 3).tolist() == [[True, True, False], [False, True, True]]
    uncertain = torch.tensor([[1.0, -1.0, 0.0]])
    assert positive_classes(uncertain, 3).tolist() == [[True, False, False]]
    assert positive_classes(torch.tensor([[0.9], [0.1]]), 1).tolist() == [[True], [False]]


class Wrapped(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


@pytest.mark.parametrize(
    ("wrap", "take"),
    [(lambda out: {"logits": out}, lambda out: out["logits"]), (lambda out: (out, out), lambda out: out[0])],
    ids=["dict", "tuple"],
)
def test_outputs_that_are_no_logits(wrap: Any, take: Any) -> None:
    given = step(model=Wrapped(wrap), loss_fn=lambda out, labels: F.cross_entropy(take(out), labels))
    assert torch.equal(guard(logits=take).protect(**given), protected())
    with pytest.raises(ModelError, match=r"Grad-CAM\+\+ needs logits .n, classes.: give ShadowGuard.logits="):
        guard().protect(**given)
    # Where nothing is spared, nobody asks for logits.
    assert torch.equal(guard(foreground=False).protect(**given), guard(foreground=False).protect(**step()))


def test_segmentation_takes_a_map_or_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 2, 1))
    masks = (images()[:, 0] > 0).long()
    given = step(labels=masks, model=model)
    with pytest.raises(ModelError, match="for segmentation a map as `foreground`, or switch `foreground` off"):
        guard().protect(**given)
    assert guard(foreground=False).protect_with_details(**given).cam is None
    with pytest.raises(DataError, match="a foreground was given but the settings spare none"):
        guard(foreground=False).protect_with_details(**given, foreground=masks)
    for foreground in (masks, masks.unsqueeze(1).float(), masks.numpy()):
        protection = guard().protect_with_details(**given, foreground=foreground)
        assert protection.cam is not None and torch.equal(protection.cam, masks.float())
    for foreground, message in ((masks[:2], "expected .4, 16, 16."), (masks / 0.0, "NaN or infinity")):
        with pytest.raises(DataError, match=message):
            guard().protect(**given, foreground=foreground)


@pytest.mark.parametrize(
    ("labels", "model", "message"),
    [
        (["a", "b", "a", "b"], net(), "labels of type list are no numbers"),
        ([0, 1], net(), "4 images with 2 labels"),
        (torch.tensor([0.0, float("nan"), 0.0, 1.0]), net(1), "labels hold NaN or infinity"),
        (torch.zeros(COUNT, 3), net(2), r"labels of shape \(4, 3\) for Grad-CAM\+\+ with 2 logits"),
        (torch.tensor([0, 1, 2, 0]), net(), r"classes 0 to 2 for Grad-CAM\+\+: the model has 0 to 1"),
    ],
)
def test_labels_that_fit_nothing_are_refused_in_words(labels: Any, model: nn.Module, message: str) -> None:
    chosen = guard()
    with pytest.raises(DataError, match=message) as raised:
        chosen.protect(**step(labels=labels, model=model))
    assert "\n" not in str(raised.value) and chosen.latents == {}


def test_a_loss_that_takes_no_form_of_the_labels_says_so() -> None:
    with pytest.raises(
        DataError, match=r"the loss takes no labels of shape \(4, 2\) with the model's outputs of shape"
    ):
        guard(foreground=False).protect(**step(labels=torch.zeros(COUNT, 2), model=net(3)))
    with pytest.raises(ModelError, match="the loss gave a float"):
        guard().protect(**step(loss_fn=lambda logits, labels: 0.5))
