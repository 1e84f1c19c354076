"""Which labels a client's images have, from what its training did to the last linear layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.attacks.label_rules import LABEL_RULES, HeadGradient
from shadow_defense.attacks.observation import Observation
from shadow_defense.errors import ModelError, ThreatModelError
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.functional import functional_call, split_state
from shadow_defense.models.losses import ClassLoss
from shadow_defense.seeds import named_generator

PROBES = 32
"""Images by which the mean predicted probabilities are estimated."""


def last_linear_layer(model: nn.Module) -> str:
    """The name of the last ``nn.Linear`` in definition order; raises :class:`ModelError` for a model without one."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ModelError("the model has no linear layer to recover labels from: use a threat model that grants labels")
    return names[-1]


def head_gradient(model: nn.Module, gradients: Mapping[str, Tensor]) -> HeadGradient:
    """The part of ``gradients``, by parameter name, that the label rules read.

    Raises:
        ModelError: for a model without a linear layer.
    """
    layer = last_linear_layer(model)
    weight, bias = gradients[f"{layer}.weight"], gradients.get(f"{layer}.bias")
    return HeadGradient(weight, weight.sum(dim=1) if bias is None else bias)


def label_rule(observation: Observation) -> str:
    """Which of :data:`LABEL_RULES` fits what is known.

    multi-step where the local training is known and has several steps of SGD on cross entropy, for a last layer with a
    bias; bias-corrected elsewhere, which needs no scale and reads off signs what it can.
    """
    has_bias = observation.model.get_submodule(last_linear_layer(observation.model)).bias is not None
    if not observation.grants("local training") or not has_bias:
        return "bias-corrected"
    local, loss = observation.local_training, observation.loss_fn
    softmax = not isinstance(loss, ClassLoss) or loss.name == "ce"
    several = local.steps > 1 and local.optimiser in (None, "sgd") and softmax
    return "multi-step" if several else "bias-corrected"


def rule_in_words(observation: Observation) -> str:
    """How :func:`recover_labels` reads this observation."""
    rule = label_rule(observation)
    if rule != "multi-step":
        return f"taken as one step (rule {rule})"
    seen = "noise" if _public_images(observation) is None else "public images"
    return f"averaged over the local steps, with the model's answers to {seen} (rule {rule})"


def recover_labels(observation: Observation, update: Mapping[str, Tensor], count: int) -> Int64[Tensor, " count"]:
    """Labels of ``count`` of the client's images, sorted, by the rule that :func:`label_rule` names.

    Where fewer are sought than the client has, the multi-step rule counts all and ``count`` are taken evenly.

    Args:
        update: of the parameters that the client sent, by name.
    """
    rule = label_rule(observation)
    # The gradient points against the update.
    head = head_gradient(observation.model, {name: -tensor for name, tensor in update.items()})
    if rule != "multi-step":
        return LABEL_RULES[rule](head, count)
    start = observation.global_state[f"{last_linear_layer(observation.model)}.bias"]
    mean = HeadGradient(
        head.weight,
        mean_gradient(-head.bias, start, observation.local_training),
        mean_probabilities(observation, update),
    )
    return evenly(LABEL_RULES[rule](mean, observation.update.samples), count)


def evenly(labels: Int64[Tensor, " n"], count: int) -> Int64[Tensor, " count"]:
    """``count`` of sorted labels, in the mixture of all.

    >>> evenly(torch.tensor([0, 0, 0, 0, 1, 1]), 3).tolist()
    [0, 0, 1]
    """
    return labels[(torch.arange(count) * len(labels)) // count]


def mean_gradient(
    update: Float[Tensor, "*shape"], start: Float[Tensor, "*shape"], local: LocalTraining
) -> Float[Tensor, "*shape"]:
    """The loss's gradient, averaged over the local steps: ``-U / (eta K) - lambda theta_0``.

    ``K = sum_{s=1}^k (1 - mu^s) / (1 - mu)`` is how often momentum mu lets k gradients enter the update; k without
    it. Exact for one step; for more, late gradients count a little less than early ones, and theta_0 stands in for
    the weights that decayed.

    >>> local = LocalTraining(learning_rate=0.1, batch_size=4, steps=2, momentum=0.5)
    >>> mean_gradient(torch.tensor([-0.5]), torch.zeros(1), local).item()
    2.0
    """
    steps, momentum = range(1, local.steps + 1), local.momentum
    entered = sum((1 - momentum**step) / (1 - momentum) for step in steps)
    return -update / (local.learning_rate * entered) - local.weight_decay * start


@torch.no_grad()
def mean_probabilities(observation: Observation, update: Mapping[str, Tensor]) -> Float[Tensor, " k"]:
    """What the client's model answered on the average of its training, estimated on images of the attacker's.

    The mean over ``PROBES`` public images, where they are granted, or images of noise, and over two models: the global
    one, and the one that the update leads to. With the global one alone, the probability that moves to the labels
    while the client trains would be missing, which is worse than taking all steps as one. Noise serves nearly as well
    where the model is untrained.
    """
    before, buffers = split_state(observation.model, observation.global_state)
    after = {name: tensor + update[name] if name in update else tensor for name, tensor in before.items()}
    probes = _public_images(observation)
    if probes is None:
        probes = torch.randn(PROBES, *observation.image_shape, generator=named_generator(0, "label probes"))
    probes = probes.to(next(iter(before.values())))
    answers = [functional_call(observation.model, {**model, **buffers}, (probes,)) for model in (before, after)]
    return torch.cat(answers).softmax(dim=1).mean(dim=0)


def _public_images(observation: Observation) -> Float[Tensor, "n c h w"] | None:
    """As many as are needed, normalised; None where they are not granted, or granted and not there."""
    try:
        images = observation.auxiliary
    except ThreatModelError:
        return None
    chosen = evenly(torch.arange(len(images)), min(PROBES, len(images)))
    return observation.normalisation.apply(images.images[chosen].float() / 255)
