"""What the analytic attacks share: which layer reads the image, and how well a solved image explains the update."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.attacks.adaptive.expectation import expected_training
from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.target import Simulation, Target
from shadow_defense.errors import ModelError
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.models.functional import training_mode
from shadow_defense.placement import device_of
from shadow_defense.seeds import named_generator


def probe_images(model: nn.Module, image_shape: tuple[int, int, int]) -> Float[Tensor, "2 c h w"]:
    """Two images of noise where the model lies, to find out how it is put together."""
    return torch.randn(2, *image_shape, generator=named_generator(0, "probe")).to(device_of(model))


def layer_on_the_image(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """The name of the linear layer whose input is the flattened image itself, found by one probing forward pass.

    Raises:
        ModelError: where there is none, or it has no bias.
    """
    probe, found = probe_images(model, image_shape), list[str]()
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:

            def compare(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if torch.equal(inputs[0].flatten(1), probe.flatten(1)):
                    found.append(name)

            handles.append(layer.register_forward_pre_hook(compare))
    try:
        with torch.no_grad(), training_mode(model, False):
            model(probe)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ModelError(
            "no fully connected layer with a bias reads the image itself: this attack is for models that open with one"
        )
    return found[0]


def step_notes(target: Target) -> list[str]:
    """That the client's step is not the gradient which is solved for, where that is so."""
    if target.local.optimiser in (None, "sgd"):
        return []
    return [
        f"a step of {target.local.optimiser} is no gradient: where that is large, only its sign is left to solve for"
    ]


def explained(
    observation: Observation, simulation: Simulation, images: Float[Tensor, "n c h w"], labels: Tensor
) -> float:
    """``1 - cos`` of the update that normalised ``images`` would have caused and the observed one.

    Fitted to the defense where the observation says how.
    """
    fitted = observation.matching
    # As a client's own lie: Adam makes signs of gradients that are nothing but rounding, which depends on it.
    parameters = {name: each.detach().contiguous().requires_grad_() for name, each in simulation.parameters.items()}
    with BatchStatisticsRecorder(observation.model) as recorder:
        simulate = partial(
            simulate_training,
            observation.model,
            parameters,
            simulation.buffers,
            images,
            labels,
            observation.loss_fn,
            simulation.local,
            recorder,
            simulation.sent,
            last=0,
        )
        update = expected_training(simulate, fitted.draws).update
    return fitted.fitted(cosine_distance)([tensor.detach() for tensor in update], simulation.observed).item()
