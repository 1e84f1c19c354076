"""Matching terms and priors: their values by hand, and that the matching term has a gradient at all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.objectives import cosine_distance, layer_distance, matching
from shadow_defense.attacks.priors import anisotropic_variation, average_statistics, mean_norm
from shadow_defense.errors import ConfigError
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import split_state
from shadow_defense.models.settings import ModelSettings


def build(normalisation: str) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(8, 8), seed=0).double()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cosine_by_hand() -> None:
    """Over the concatenation (3, 0 | 4) and (0, 1 | 1): 4 / (5 sqrt 2); not the mean of the layers' cosines."""
    ours, observed = (
        [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])],
        [torch.tensor([0.0, 1.0]), torch.tensor([[1.0]])],
    )
    assert cosine_distance(ours, observed).item() == pytest.approx(1 - 4 / (5 * 2**0.5))
    assert cosine_distance(ours, [-each for each in ours]).item() == pytest.approx(2)


def test_layers_by_hand() -> None:
    ours, observed = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])], [torch.zeros(2), torch.tensor([-1.0])]
    # (5 + 2) / (0 + 1)
    assert layer_distance(ours, observed).item() == pytest.approx(7)
    assert layer_distance(observed, observed).item() == 0


@pytest.mark.parametrize("name", ["cosine", "layers"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_matching_does_not_depend_on_the_learning_rate(name: str, scale: float) -> None:
    """Single precision, as in an attack: squares of 1e-12 are near its least number."""
    ours, observed = (
        [drawn(20).float(), drawn(5, seed=1).float()],
        [drawn(20, seed=2).float(), drawn(5, seed=3).float()],
    )
    distance = matching(name)
    scaled = distance([scale * each for each in ours], [scale * each for each in observed])
    torch.testing.assert_close(scaled, distance(ours, observed), rtol=1e-4, atol=1e-5)


def test_unknown_matching_term() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        matching("cosin")


@pytest.mark.parametrize("name", ["cosine", "layers"])
@pytest.mark.parametrize(("normalisation", "training"), [("none", True), ("batch", True), ("batch", False)])
@pytest.mark.parametrize("steps", [1, 3])
def test_matching_has_the_right_gradient(name: str, normalisation: str, training: bool, steps: int) -> None:
    """Against finite differences. The update that the released medical attack matches has none: it is detached."""
    model = build(normalisation).train(training)
    labels = torch.tensor([0, 1])
    parameters, buffers = split_state(model, model)
    local = LocalTraining(0.05, 2, steps, "train" if training else "eval", momentum=0.5, weight_decay=0.01)
    distance = matching(name)
    with BatchStatisticsRecorder(model) as recorder:

        def update(images: Tensor) -> list[Tensor]:
            return simulate_training(
                model, parameters, buffers, images, labels, F.cross_entropy, local, recorder
            ).update

        observed = [each.detach() for each in update(drawn(2, 1, 8, 8, seed=1))]
        images, direction = drawn(2, 1, 8, 8, seed=2), drawn(2, 1, 8, 8, seed=3)
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(update(leaf), observed), leaf)
        step = 1e-6
        numeric = (
            distance(update(images + step * direction), observed)
            - distance(update(images - step * direction), observed)
        ) / (2 * step)
    numeric = numeric.detach()
    assert abs(float(numeric)) > 1e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=0)


def test_priors_by_hand() -> None:
    image = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).view(1, 1, 2, 2)
    # |dx|: 1, 4; |dy|: 3, 6.
    assert anisotropic_variation(image).item() == pytest.approx(2.5 + 4.5)
    images = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    assert mean_norm(images).item() == pytest.approx(3)


def test_statistics_are_averaged_with_their_weights() -> None:
    steps = [{"n": BatchStatistics(torch.tensor([m]), torch.tensor([v]), 4)} for m, v in ((1.0, 2.0), (3.0, 10.0))]
    averaged = average_statistics(steps, (0.25, 0.75))["n"]
    assert averaged.mean.item() == pytest.approx(2.5) and averaged.variance.item() == pytest.approx(8)
