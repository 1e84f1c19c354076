"""What a malicious server plants to read numbers of an image off a client's update, and how it goes back from updates
to images, whatever a defense does to them (docs/attacks.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation
from shadow_defense.protection.whitening import Whitening

GAIN = 1e4
"""Of what is planted: beside it the gradient of the agreed model is nothing."""

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""Of the regression from updates to numbers, in units of the updates' mean square."""

LEAST_ERROR = 1e-9

PLANTED = "planted."
"""Before the names of the weights."""


def sign_of(label: int) -> int:
    """v of a class: 1 and -1 in turn."""
    return -1 if label % 2 else 1


class PlantedReader(nn.Module):
    """``GAIN (w . h(x)) v + b``, h the leading whitened principal components over public images, w trained from 0.

    b makes the classes of either sign of v equally probable at w = 0, so that of an image of class y the gradient of w
    by the cross entropy is ``-GAIN v_y h(x)``. Each of the k weights is a tensor of its own: what keeps the largest
    entries of a tensor keeps all of them. The agreed model is there, and has no say.

    Args:
        reads: the normalisation of the images that come in.
    """

    def __init__(self, agreed: nn.Module, whitening: Whitening, count: int, classes: int, reads: Normalisation) -> None:
        super().__init__()
        self.agreed, self.normalisation = agreed, reads
        self.register_buffer("mean", whitening.mean)
        self.register_buffer("directions", whitening.directions[:, :count] / whitening.deviations[:count])
        self.planted = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(count)])
        signs = torch.tensor([float(sign_of(label)) for label in range(classes)])
        self.register_buffer("answer", GAIN * signs)
        self.register_buffer("bias", -(signs[:, None] == signs).sum(dim=1).log())

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        centred = self.normalisation.invert(images).flatten(1) - self.get_buffer("mean")
        read = centred @ self.get_buffer("directions") @ torch.cat(list(self.planted))
        planted = read.unsqueeze(1) * self.get_buffer("answer") + self.get_buffer("bias")
        return planted + 0 * self.agreed(images)

    def as_sent(self) -> dict[str, Tensor]:
        """The state that clients get, in every round."""
        state = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        return state | {name: torch.zeros_like(each) for name, each in state.items() if name.startswith(PLANTED)}


@dataclass(frozen=True)
class Regression:
    """From updates u to the numbers of an image, ``u M``, with the mean squared error of each number."""

    back: Float64[Tensor, "k k"]
    errors: Float64[Tensor, " k"]

    def numbers(self, updates: Float[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        return updates.double() @ self.back

    def left(self, whitening: Whitening) -> float:
        """Of the variance of images what the estimate leaves, all pixels together."""
        variance, count = whitening.deviations.double().square(), len(self.errors)
        return float((variance[:count] * self.errors).sum() + variance[count:].sum())


def learn(updates: Float[Tensor, "n k"], numbers: Float[Tensor, "n k"]) -> Regression:
    """``M = (U^T U + r d I)^-1 U^T H``, d the mean of the diagonal of ``U^T U``, of two thirds of the images.

    Updates U of images with numbers H, which the server makes with its own copy of the defense; r is the ridge that
    errs least on the other third, and the errors are those.
    """
    given, wanted, kept = updates.double(), numbers.double(), 2 * len(updates) // 3
    gram, found = given[:kept].T @ given[:kept], list[Regression]()
    for ridge in RIDGES:
        loaded = gram + (ridge * gram.diagonal().mean()).clamp_min(LEAST_ERROR) * torch.eye(len(gram))
        back = torch.linalg.solve(loaded, given[:kept].T @ wanted[:kept])
        errors = (given[kept:] @ back - wanted[kept:]).square().mean(dim=0).clamp_min(LEAST_ERROR)
        found.append(Regression(back, errors))
    return min(found, key=lambda each: float(each.errors.sum()))
