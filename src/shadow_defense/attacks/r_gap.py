"""R-GAP (Zhu and Blaschko 2021; docs/attacks.md): solved layer by layer, from the logits to the image."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from shadow_defense.attacks.analytic import explained, step_notes
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.layer_chain import Link, layer_chain
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.target import matching_target
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.errors import ModelError, UpdateError
from shadow_defense.federated.states import on_host
from shadow_defense.progress import Task


def solve_layer(
    layer: nn.Conv2d | nn.Linear,
    input_shape: Sequence[int],
    weight: Float64[Tensor, " o *kernel"],
    moved: Float64[Tensor, " o *kernel"],
    slope: Float64[Tensor, " o *place"],
    output: Float64[Tensor, " o *place"] | None,
) -> tuple[Float64[Tensor, "*input"], int]:
    """The input x of a linear layer, by least squares over two sets of linear equations.

    ``dW = sum over places of k x^T`` (the gradient's) and ``W x = z`` (the forward pass's); the second is left out
    where the output is unknown. Convolutions are taken apart into places by ``unfold``, padding included.

    Args:
        moved: dW, times any factor that ``slope`` carries too.
        slope: k, the loss's derivative with respect to z.
        output: z without the bias.

    Returns:
        x, and how many of its directions the equations leave open; those are zero.
    """
    inputs = torch.Size(input_shape).numel()
    basis = torch.eye(inputs, dtype=torch.float64)
    if isinstance(layer, nn.Conv2d):
        images = basis.view(inputs, *input_shape)
        # Checked by layer_chain: padding is no word.
        padding = cast("tuple[int, ...]", layer.padding)
        places = F.unfold(images, layer.kernel_size, padding=padding, stride=layer.stride)
    else:
        places = basis.unsqueeze(-1)
    equations = [(torch.einsum("ol,dpl->opd", slope.flatten(1), places).flatten(0, 1), moved.flatten())]
    if output is not None:
        equations.append((torch.einsum("op,dpl->old", weight.flatten(1), places).flatten(0, 1), output.flatten()))
    # Gradients of late rounds are tiny: without scales of their own their equations would not be heard.
    scales = [matrix.norm().clamp_min(1e-300) for matrix, _ in equations]
    matrix = torch.cat([matrix / scale for (matrix, _), scale in zip(equations, scales, strict=True)])
    values = torch.cat([values / scale for (_, values), scale in zip(equations, scales, strict=True)])
    # By singular values: torch's default driver is quicker, and gives wrong ranks for matrices of deficient rank.
    solved = torch.linalg.lstsq(matrix, values.unsqueeze(1), driver="gelsd")
    return solved.solution.view(*input_shape), inputs - int(solved.rank)


def solve_chain(
    links: Sequence[Link], state: Mapping[str, Tensor], update: Mapping[str, Tensor]
) -> tuple[Float64[Tensor, "c h w"], tuple[str, ...]]:
    """The normalised image, from the update of one step on it, and the layers that leave it open, in words.

    The last layer's ``k`` is the update of its bias. Going back, with x the input that was solved for:
    ``z = act^-1(x)``, ``k <- (W^T k) act'(z)``.
    """
    last = links[-1]
    slope = update[f"{last.name}.bias"].double().view(-1, 1)
    # Of the logits softmax leaves a constant open; the first set of equations is enough for a fully connected layer.
    output, open_layers = None, list[str]()
    for position in reversed(range(len(links))):
        link = links[position]
        weight = state[f"{link.name}.weight"].double()
        moved = update[f"{link.name}.weight"].double()
        found, missing = solve_layer(link.layer, link.input_shape, weight, moved, slope, output)
        if missing:
            open_layers.append(f"'{link.name}' leaves {missing} of {found.numel()} values of its input open")
        if position == 0:
            return found, tuple(open_layers)
        before = links[position - 1]
        with torch.enable_grad():
            passed = torch.zeros(link.input_shape, dtype=torch.float64).requires_grad_()
            forward = _apply(link.layer, weight, passed)
            (slope,) = torch.autograd.grad(forward, passed, slope.view_as(forward))
            before_activation = found if before.inverse is None else before.inverse(found)
            if before.activation is not None:
                leaf = before_activation.detach().requires_grad_()
                (slope,) = torch.autograd.grad(before.activation(leaf), leaf, slope)
        output = _by_channel(before, before_activation.detach())
        slope = _by_channel(before, slope)
        bias = state.get(f"{before.name}.bias")
        if bias is not None:
            output = output - bias.double().view(-1, *[1] * (output.dim() - 1))
    raise AssertionError("a chain has a first layer")


def _apply(layer: nn.Conv2d | nn.Linear, weight: Tensor, values: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(values.unsqueeze(0), weight, stride=layer.stride, padding=layer.padding)
    return F.linear(values, weight)


def _by_channel(link: Link, values: Tensor) -> Tensor:
    """A layer's output with its channels first and its places in one dimension."""
    return values.reshape(link.layer.weight.shape[0], -1)


class RGAP(BaseModel):
    """The attack, which has nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset()

    def steps(self) -> int:
        """Iterations of a whole attack, for progress."""
        return 1

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Solve for the one image of one local step.

        Departures: the loss is softmax cross entropy and layers have biases, so that the last k is read off the
        update instead of being searched for; padding is part of the equations instead of more of them. With more
        images or steps the equations do not hold, and a note says so.

        Raises:
            ModelError: for a model that is not such a chain (:func:`layer_chain`), or whose last layer is not fully
                connected with a bias.
            UpdateError: where the last bias did not move.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "r-gap")
        links = layer_chain(observation.model, observation.image_shape)
        last = links[-1]
        if not isinstance(last.layer, nn.Linear) or last.layer.bias is None or last.activation is not None:
            raise ModelError(f"R-GAP reads the logits' derivative off a last bias, and '{last.name}' has none")
        update = observation.update.tensors
        if not update[f"{last.name}.bias"].any():
            raise UpdateError(f"the bias of '{last.name}' did not move: the update gives nothing to start from")
        target = matching_target(observation, longest_unroll=1)
        notes = [*target.notes, *step_notes(target)]
        if target.count > 1 or observation.update.samples > 1:
            notes.append("several images: the equations hold for one; what is returned explains none of them")
        # Solvers by singular values are the host's alone.
        solved, open_layers = solve_chain(links, on_host(observation.global_state), on_host(update))
        notes.extend(open_layers)
        low, high = observation.box
        images = torch.nan_to_num(solved.float()).unsqueeze(0).to(low).clamp(low, high).expand(target.count, -1, -1, -1)
        if task:
            task.advance()
        return Reconstruction(
            observation.normalisation.invert(images).clamp(0, 1),
            target.labels,
            explained(observation, target, images, target.labels),
            1,
            time.perf_counter() - started,
            notes=tuple(notes),
        )


R_GAP = AttackKind(
    "r-gap",
    "layer by layer from the last to the image, by linear equations (Zhu and Blaschko 2021)",
    RGAP,
    "a plain chain of convolutions and fully connected layers with invertible activations, last bias included",
)
