"""The attacks on a real face and a small model: they rebuild it, and only from an update that holds it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.attacks.inverting_gradients import InvertingGradients
from shadow_defense.attacks.observation import Observation, Reconstruction, observe
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.progress import Task

SIDE = 16
SUBJECT = 3


@cache
def faces() -> Tensor:
    """The hundred faces of Labeled Faces in the Wild that scikit-image carries, (100, 1, 16, 16) in [0, 1]."""
    crops = pytest.importorskip("skimage.data").lfw_subset()[:100]
    images = torch.as_tensor(crops, dtype=torch.float32).unsqueeze(1)
    return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def mean_image() -> Tensor:
    """Of all faces but the subject: what can be said without an attack."""
    return torch.cat([faces()[:SUBJECT], faces()[SUBJECT + 1 :]]).mean(0)


def truth() -> Tensor:
    """As the client holds it, in bytes."""
    return (faces()[[SUBJECT]] * 255).round() / 255


def observation(
    name: str, normalisation: str = "none", *, width: int = 8, epochs: int = 1, learning_rate: float = 0.01
) -> Observation:
    units = Normalisation((float(faces().mean()),), (float(faces().std()),))
    images = (truth() * 255).byte()
    data = ImageSet(images, torch.tensor([1]), ("face",))
    chosen = ModelSettings(name=name, normalisation=normalisation, width=width, activation="gelu")
    model = build_model(chosen, channels=1, classes=2, image_size=(SIDE, SIDE), seed=0)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    result = train_locally(
        model,
        state,
        ClientData("site-9", data, data, data, 1),
        Defense(),
        settings=TrainingSettings(learning_rate=learning_rate, local_epochs=epochs),
        round=0,
        normalisation=units,
        loss_fn=F.cross_entropy,
        seed=0,
    )
    return observe(
        threat_model("informed server"),
        model=model,
        loss_fn=F.cross_entropy,
        global_state=state,
        update=result.update,
        image_shape=(1, SIDE, SIDE),
        classes=2,
        normalisation=units,
        labels=data.labels,
        local_training=LocalTraining(learning_rate, 1, result.update.steps),
        template=mean_image(),
    )


def quality(attack: Any, seen: Observation, seed: int = 0) -> float:
    return psnr(attack.reconstruct(seen, seed=seed).images, truth()).item()


def baseline() -> float:
    return psnr(mean_image().unsqueeze(0), truth()).item()


INVERTING = InvertingGradients(iterations=180, total_variation=1e-3)


def test_inverting_gradients_rebuilds_a_face() -> None:
    seen = observation("lenet")
    found = INVERTING.reconstruct(seen, seed=0)
    start = quality(INVERTING.model_copy(update={"iterations": 1, "learning_rate": 1e-9}), seen)
    reached = psnr(found.images, truth()).item()
    assert reached > baseline() + 5
    assert reached > start + 10
    assert found.matching_loss < 1e-3 < found.history[0]
    assert found.labels.tolist() == [1] and found.notes == ()


@pytest.mark.slow
def test_a_random_update_gives_no_face() -> None:
    """The control: the same energy in every tensor, but nothing of the client in it."""
    seen = observation("lenet")
    draws = torch.Generator().manual_seed(0)
    noise = {}
    for name, tensor in seen.update.tensors.items():
        drawn = torch.randn(tensor.shape, generator=draws)
        noise[name] = drawn * tensor.norm() / drawn.norm()
    assert quality(INVERTING, replace(seen, update=replace(seen.update, tensors=noise))) < baseline()


@pytest.mark.slow
@pytest.mark.parametrize("grants", ["honest-but-curious server", "eavesdropper"])
def test_less_knowledge_is_enough_for_one_image(grants: str) -> None:
    """The label comes from the update, and one step is one step without being told."""
    full = observation("lenet")
    seen = observe(
        threat_model(grants),
        model=full.model,
        loss_fn=full.loss_fn,
        global_state=full.global_state,
        update=full.update,
        image_shape=full.image_shape,
        classes=2,
        normalisation=full.normalisation,
        labels=full.labels,
        local_training=full.local_training,
        template=full.template,
    )
    found = INVERTING.reconstruct(seen, seed=0)
    assert found.labels.tolist() == [1] and found.notes
    assert psnr(found.images, truth()).item() > baseline() + 5


@pytest.mark.slow
def test_two_local_epochs_are_unrolled() -> None:
    assert quality(INVERTING, observation("lenet", epochs=2, learning_rate=0.1)) > baseline() + 5


@pytest.mark.slow
def test_restarts_are_chosen_by_the_matching_loss() -> None:
    """More restarts never match worse, and the image that is returned is the one that has the returned loss."""
    seen = observation("lenet")
    attack = INVERTING.model_copy(update={"iterations": 15})
    found = [attack.model_copy(update={"restarts": restarts}).reconstruct(seen, seed=2) for restarts in range(1, 6)]
    losses = [each.matching_loss for each in found]
    # Batches of other sizes differ by rounding, which the gradient's sign makes larger.
    assert all(more <= 1.01 * fewer for fewer, more in pairwise(losses)) and losses[-1] < losses[0]
    for each in found:
        assert matching_loss(seen, each) == pytest.approx(each.matching_loss, rel=1e-3)
    assert torch.equal(attack.model_copy(update={"restarts": 5}).reconstruct(seen, seed=2).images, found[-1].images)
    assert not torch.equal(attack.reconstruct(seen, seed=1).images, found[0].images)


@pytest.mark.parametrize("name", ["lenet", "convnet"])
def test_restarts_in_one_batch_are_the_restarts_one_after_the_other(name: str) -> None:
    """ConvNet with batch norm in train mode cannot be mapped and takes them in turn all the same."""
    seen = observation(name, "none" if name == "lenet" else "batch")
    attack = InvertingGradients(iterations=8, restarts=3, signed=False)
    together = attack.reconstruct(seen, seed=0)
    assert attack.steps() == 8
    for at_once in (1, 2):
        apart = attack.model_copy(update={"restarts_at_once": at_once})
        assert apart.steps() == 8 * (3 if at_once == 1 else 2)
        found = apart.reconstruct(seen, seed=0)
        torch.testing.assert_close(found.images, together.images, rtol=0, atol=1e-4)
        assert found.matching_loss == pytest.approx(together.matching_loss, rel=1e-4)
        assert found.history == pytest.approx(together.history, rel=1e-4)


def test_a_stalled_search_ends_early() -> None:
    """Steps of no length: nothing falls, and the second look ends it; the task is told of all iterations."""
    seen = observation("lenet")
    told: list[int] = []

    class Told(Task):
        def __init__(self) -> None:
            pass

        def advance(self, steps: int = 1, note: str = "") -> None:
            told.append(steps)

    attack = InvertingGradients(iterations=100, learning_rate=1e-12, patience=5)
    found = attack.reconstruct(seen, seed=0, task=Told())
    assert len(found.history) == 10 and sum(told) == 100


def matching_loss(seen: Observation, found: Reconstruction) -> float:
    """1 - cosine, from the images as they are returned and one plain backward pass."""
    model = copy.deepcopy(seen.model)
    model.load_state_dict(dict(seen.global_state))
    F.cross_entropy(model(seen.normalisation.apply(found.images)), found.labels).backward()
    ours = torch.cat([-parameter.grad.flatten() for parameter in model.parameters()]).double()
    observed = torch.cat([seen.update.tensors[name].flatten() for name, _ in model.named_parameters()]).double()
    return 1 - F.cosine_similarity(ours, observed, dim=0).item()


GRADINVERSION = GradInversion(iterations=300, batch_norm=0.1)


@pytest.mark.slow
def test_gradinversion_improves_on_the_template() -> None:
    seen = observation("convnet", "batch", width=16)
    found = GRADINVERSION.reconstruct(seen, seed=0)
    reached = psnr(found.images, truth()).item()
    assert reached > baseline() + 3
    assert found.history[-1] < 0.2 * found.history[0]
    assert found.notes == ()
    # The statistics of the buffers are what it gains most from, and without the update it gains nothing.
    assert reached > quality(GRADINVERSION.model_copy(update={"batch_norm": 0.0}), seen) + 2
    assert reached > quality(GRADINVERSION.model_copy(update={"matching_weight": 0.0}), seen) + 3


def test_gradinversion_matches_the_statistics_of_all_steps() -> None:
    """At the truth nothing but the priors is left of the loss, after one and after three local steps."""
    for epochs in (1, 3):
        seen = observation("convnet", "batch", epochs=epochs, learning_rate=0.05)
        weights = {"total_variation": 0.0, "norm": 0.0, "start_noise": 1e-9, "iterations": 1, "learning_rate": 1e-9}
        attack = GRADINVERSION.model_copy(update={**weights, "batch_norm": 1.0})
        at_truth = attack.reconstruct(replace(seen, _template=truth()[0]), seed=0)
        elsewhere = attack.reconstruct(seen, seed=0)
        assert at_truth.history[0] < 1e-2 * elsewhere.history[0]


def test_gradinversion_says_where_there_are_no_statistics() -> None:
    found = GradInversion(iterations=2).reconstruct(observation("convnet", "group"), seed=0)
    assert any("no batch-norm statistics" in note for note in found.notes)


@pytest.mark.parametrize("attack", [InvertingGradients(iterations=3), GradInversion(iterations=3)])
def test_the_observation_is_left_alone(attack: Any) -> None:
    seen = observation("convnet", "batch")
    state = {name: tensor.clone() for name, tensor in seen.global_state.items()}
    update = {name: tensor.clone() for name, tensor in seen.update.tensors.items()}
    own = {name: tensor.clone() for name, tensor in seen.model.state_dict().items()}
    first = attack.reconstruct(seen, seed=0)
    for before, now in ((state, seen.global_state), (update, seen.update.tensors), (own, seen.model.state_dict())):
        assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in seen.model.modules())
    assert all(parameter.grad is None for parameter in seen.model.parameters())
    assert torch.equal(attack.reconstruct(seen, seed=0).images, first.images)
