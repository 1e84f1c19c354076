"""DP-SGD (Abadi et al. 2016): every sample's gradient is clipped before the sum, which then gets noise."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext
from shadow_defense.defenses.clipping import NORM_SLACK
from shadow_defense.defenses.gaussian_mechanism import gaussian_epsilon
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.noise import add_gaussian
from shadow_defense.errors import DefenseError
from shadow_defense.models.functional import LossFunction, functional_call
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator

ORDERS = (
    *(1.0001, 1.0003, 1.001, 1.003, 1.01, 1.02, 1.04, 1.07, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.75),
    *(step / 4 for step in range(8, 40)),
    *(float(order) for order in (*range(10, 64), 64, 128, 256, 512, 1024)),
)
"""Orders of Renyi divergence to choose from: further out than Opacus's own, for very small and very large noise."""


class DPSGDSettings(BaseModel):
    """Clip, noise, and the delta at which epsilon is reported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: float = Field(1.0, gt=0, description="C, largest L2 norm of one sample's gradient")
    noise_multiplier: float = Field(1.0, gt=0, description="z: the sum's noise has standard deviation z C")
    delta: float = Field(1e-5, gt=0, lt=1, description="at which epsilon is reported; below 1 / number of images")
    chunk: int = Field(
        16, ge=1, le=65_536, description="samples whose gradients are in memory at once; moves last digits only"
    )


DP_SGD_PRESETS: dict[str, dict[str, Any]] = {
    # Ours: noise that training survives, and an epsilon that promises nothing.
    "weak": {"noise_multiplier": 0.1},
    # The default of GradAttack. What the Shadow Defense paper used is unknown.
    "paper": {},
    "strong": {"noise_multiplier": 2.0},
}


def per_sample_gradients(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | Float[Tensor, "n k"],
    loss_fn: LossFunction,
) -> dict[str, Tensor]:
    """For each parameter the gradient of every sample's own loss, shape (n, *parameter).

    Args:
        model: in whatever mode it is; no layer of it may mix samples or keep running statistics.
        parameters: by name; the rest is taken from ``model``.
    """

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return loss_fn(functional_call(model, parameters, (image[None],)), label[None])

    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    # Dropout draws anew for every sample, as it does in a batch.
    return vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(detached, images, labels)


def clipped_sum(
    gradients: Mapping[str, Float[Tensor, "n ..."]], clip: float
) -> tuple[dict[str, Tensor], Float[Tensor, " n"]]:
    """``sum_j g_j min(1, C / ||g_j||)`` over samples j, and the norms before clipping.

    The norm of a sample is taken over all of its tensors together.
    """
    squares = [gradient.double().square().reshape(len(gradient), -1).sum(1) for gradient in gradients.values()]
    norms = torch.stack(squares).sum(0).sqrt()
    factors = (clip / (norms + NORM_SLACK)).clamp(max=1)
    return {
        name: torch.einsum("n,n...->...", factors.to(gradient.dtype), gradient) for name, gradient in gradients.items()
    }, norms


@cache
def _divergences(noise_multiplier: float, sample_rate: float) -> tuple[float, ...]:
    # Takes a tenth of a second, and is asked for after every round of every client.
    from opacus.accountants.analysis.rdp import compute_rdp

    return tuple(compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS))


def poisson_epsilon(noise_multiplier: float, steps: Mapping[float, int], delta: float) -> float:
    """Epsilon at ``delta`` of DP-SGD on Poisson-sampled batches, by Opacus's Renyi accounting.

    Args:
        noise_multiplier: z, the same in all steps.
        steps: number of steps by sample rate, in (0, 1].
    """
    from opacus.accountants.analysis.rdp import get_privacy_spent

    spent = [
        sum(count * _divergences(noise_multiplier, rate)[index] for rate, count in steps.items())
        for index in range(len(ORDERS))
    ]
    return float(get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)[0])


class DPSGDDefense(ParameterDefense):
    """DP-SGD in place of each step's gradient, and the privacy spent over all rounds.

    Per-sample gradients come from torch.func, not from Opacus's GradSampleModule: a pure function of the model
    leaves no hooks on it, handles every layer, and needs memory for a chunk only.

    The guarantee is that of the parameters sent: one sample against a null sample, whose gradient is zero, so that
    the number of images stays public. Against replacing a sample by any other, mu doubles.

    Args:
        seed: the client's own. In a deployment it is a secret of the client's: it reproduces the noise.
    """

    def __init__(self, settings: DPSGDSettings, seed: int) -> None:
        super().__init__("gradients")
        self.settings = settings
        self.seed = seed
        self._samples = 0
        self._passes_before = 0
        self._steps: Counter[int] = Counter()
        self._seen: Counter[str] = Counter()
        self._norms: list[Tensor] = []

    def check_model(self, model: nn.Module) -> None:
        """Raises :class:`DefenseError` on batch norm, where a sample's gradient is not its own."""
        mixing = next((name for name, module in model.named_modules() if isinstance(module, _BatchNorm)), None)
        if mixing is not None:
            raise DefenseError(
                f"dp-sgd cannot protect a model with batch norm ('{mixing}'), which mixes the samples of a batch: "
                "set model.normalisation=group"
            )

    def prepare(
        self, images: Float[Tensor, "n c h w"], sample_ids: tuple[str, ...], progress: Progress | None = None
    ) -> None:
        self._samples = len(images)

    def begin_round(self, context: RoundContext) -> None:
        super().begin_round(context)
        if not self._samples:
            raise DefenseError("dp-sgd does not know the number of the client's images: call prepare first")
        self._passes_before = self.passes
        self._seen.clear()
        self._norms = []

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        """``(sum_j g_j min(1, C / ||g_j||) + N(0, z^2 C^2)) / B`` (docs/defenses.md), computed from the batch.

        Of ``tensors``, the batch's gradient, only names are read.
        """
        assert batch is not None
        parameters = {name: parameter for name, parameter in context.model.named_parameters() if name in tensors}
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for images, labels in zip(
            batch.images.split(self.settings.chunk), batch.labels.split(self.settings.chunk), strict=True
        ):
            part, norms = clipped_sum(
                per_sample_gradients(context.model, parameters, images, labels, context.loss_fn), self.settings.clip
            )
            total = {name: tensor + part[name] for name, tensor in total.items()}
            self._norms.append(norms)
        draws = named_generator(self.seed, "dp-sgd", context.round, self.step)
        noisy = add_gaussian(total, self.settings.noise_multiplier * self.settings.clip, draws)
        self._steps[len(batch.images)] += 1
        self._seen.update(batch.sample_ids)
        return {name: tensor / len(batch.images) for name, tensor in noisy.items()}

    @property
    def passes(self) -> int:
        """The most steps that any one sample can have been in, over all rounds so far."""
        return self._passes_before + max(self._seen.values(), default=0)

    def epsilon_spent(self) -> float:
        """Epsilon at the settings' delta for batches as they are drawn here, with no gain from sampling claimed.

        A pass over shuffled data shows each sample to one step: one Gaussian release of mu = 1 / z. Passes compose
        exactly (:mod:`shadow_defense.defenses.gaussian_mechanism`). Batch orders may be known to the attacker.
        """
        return gaussian_epsilon(math.sqrt(self.passes) / self.settings.noise_multiplier, self.settings.delta)

    def epsilon_if_poisson(self) -> float:
        """Epsilon as papers report it: Opacus's Renyi accountant, as if every step drew its batch at random.

        It holds for batches to which each image belongs with probability B / n, independently. Shuffled batches, here
        as in most code, are not such: this number is for comparison, :meth:`epsilon_spent` is the guarantee.
        """
        noise, delta = self.settings.noise_multiplier, self.settings.delta
        return poisson_epsilon(noise, {size / self._samples: steps for size, steps in self._steps.items()}, delta)

    def measurements(self) -> dict[str, float]:
        """Privacy spent in all rounds so far; of this round the share of samples clipped and their mean norm.

        What papers report is left out without Opacus (extra ``dp``): the guarantee needs none.
        """
        norms = torch.cat(self._norms)
        reported = (
            {} if importlib.util.find_spec("opacus") is None else {"epsilon_if_poisson": self.epsilon_if_poisson()}
        )
        return {
            "epsilon_spent": self.epsilon_spent(),
            **reported,
            "clipped_share": float((norms + NORM_SLACK > self.settings.clip).double().mean()),
            "norm": float(norms.mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "samples": torch.tensor(self._samples),
            "passes": torch.tensor(self.passes),
            "steps": torch.tensor(sorted(self._steps.items()), dtype=torch.int64).reshape(-1, 2),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._samples, self._passes_before = int(state["samples"]), int(state["passes"])
        self._steps = Counter(dict(state["steps"].tolist()))
        self._seen.clear()


DP_SGD = DefenseKind(
    "dp-sgd",
    "each sample's gradient clipped, then Gaussian noise: DP-SGD (Abadi et al. 2016), epsilon reported",
    DPSGDSettings,
    lambda settings, resources: DPSGDDefense(settings, resources.seed_of("dp-sgd")),
    DP_SGD_PRESETS,
    acts_on=("gradients",),
    private_at="gradients",
    computes_anew=lambda settings: True,
)
