"""Second derivatives, on which every gradient-matching attack stands, against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shadow_defense.models.build import MODELS, build_model
from shadow_defense.models.functional import loss_gradients, split_state
from shadow_defense.models.settings import ModelSettings

# Without batch norm train and eval mode are the same function.
VARIANTS = [
    (name, kind, training)
    for name, entry in sorted(MODELS.items())
    for kind in entry.normalisations
    for training in ((True, False) if kind == "batch" else (True,))
]
STEP = 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(("name", "normalisation", "training"), VARIANTS)
def test_directional_derivative_of_the_gradient(name: str, normalisation: str, training: bool) -> None:
    """For g(x) = <v, dL/dtheta (x)>: <dg/dx, u> by double backward equals (g(x + hu) - g(x - hu)) / 2h."""
    chosen = ModelSettings(name=name, normalisation=normalisation, width=16)
    model = build_model(chosen, channels=1, classes=3, image_size=(16, 16), seed=0).double().train(training)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 1, 16, 16, generator=generator, dtype=torch.float64)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    parameters, buffers = split_state(model, model)
    weights = {
        key: torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for key, tensor in parameters.items()
    }

    def inner(images: Tensor, create_graph: bool = False) -> Tensor:
        gradients = loss_gradients(
            model, parameters, buffers, images, labels, F.cross_entropy, create_graph=create_graph
        )
        return torch.stack([(gradients[key] * weights[key]).sum() for key in gradients]).sum()

    leaf = images.clone().requires_grad_()
    (second,) = torch.autograd.grad(inner(leaf, create_graph=True), leaf)
    analytic = (second * direction).sum()
    numeric = (inner(images + STEP * direction) - inner(images - STEP * direction)) / (2 * STEP)
    assert analytic.abs() > 1e-6
    torch.testing.assert_close(analytic, numeric.detach(), rtol=1e-5, atol=0)
