"""What one client does in one round: train locally, under a defense, and say what leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, Normalisation
from shadow_defense.defenses.base import Batch, Defense, RoundContext
from shadow_defense.errors import ModelError
from shadow_defense.federated.optimiser import local_optimiser
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.states import on_host
from shadow_defense.federated.update import ModelUpdate, state_difference
from shadow_defense.models.functional import LossFunction
from shadow_defense.placement import device_of
from shadow_defense.progress import Progress
from shadow_defense.seeds import named_generator, seed_for


@dataclass(frozen=True)
class LocalResult:
    """A client's update, the mean loss of its steps, and what its defense measured and kept.

    Attributes:
        kept: the tensors that did not leave, as the client's next round starts with them.
    """

    update: ModelUpdate
    loss: float
    measurements: Mapping[str, float]
    explanations: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]


def batch_orders(count: int, batch_size: int, epochs: int, draws: torch.Generator) -> list[Tensor]:
    """The indices of each step's batch: every epoch in a fresh random order, cut into slices."""
    return [batch for _ in range(epochs) for batch in torch.randperm(count, generator=draws).split(batch_size)]


def prepare_defense(
    defense: Defense, client: ClientData, normalisation: Normalisation, progress: Progress | None = None
) -> None:
    """Before a client's first round: its defense sees all of its normalised training images."""
    defense.prepare(normalisation.apply(client.train.unit_images()), client.train.sample_ids, progress)


def train_locally(
    model: nn.Module,
    global_state: Mapping[str, Tensor],
    client: ClientData,
    defense: Defense,
    *,
    settings: TrainingSettings,
    round: int,
    normalisation: Normalisation,
    loss_fn: LossFunction,
    seed: int,
    explain: frozenset[str] = frozenset(),
    kept: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """One round of local training from the global state, with the defense at its three places.

    Args:
        model: the architecture; its parameters and buffers are overwritten. Steps are computed where it lies; states
            and what leaves are in the host's memory.
        round: r (0-based); names the random draws, so that a round can be computed again alone.
        explain: samples whose protection is kept in pictures for the report.
        kept: by name the client's own values of the tensors that it does not share, which replace the global ones and
            are absent from the update (:mod:`shadow_defense.federated.batch_norm_policy`).

    Raises:
        Whatever the defense raises: then no update exists and nothing can leave.
        UpdateError: when the update holds NaN or infinity, or lacks a tensor of the model.
    """
    kept = kept or {}
    model.load_state_dict({**global_state, **kept})
    model.train(settings.batch_norm == "train")
    context = RoundContext(
        model, global_state, loss_fn, round, settings.rounds, settings.learning_rate_at(round), explain
    )
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    step = local_optimiser(list(trained.values()), settings, context.learning_rate)
    orders = batch_orders(
        len(client.train), client.batch_size, settings.local_epochs, named_generator(seed, "order", client.name, round)
    )
    losses, device = [], device_of(model)
    with torch.random.fork_rng(devices=[]):
        # Layers such as dropout draw from the global state, which is seeded here and restored at the end. Not
        # torch.manual_seed: it would also seed the accelerators, whose state is the caller's.
        torch.default_generator.manual_seed(seed_for(seed, "begin round", client.name, round))
        defense.begin_round(context)
        torch.default_generator.manual_seed(seed_for(seed, "layers", client.name, round))
        for order in orders:
            sample_ids = tuple(client.train.sample_ids[index] for index in order.tolist())
            images = normalisation.apply(client.train.images[order].to(device).float() / 255)
            batch = Batch(images, client.train.labels[order].to(device), sample_ids)
            with one_value_explained():
                batch = defense.protect_batch(batch, context)
                loss = loss_fn(model(batch.images), batch.labels)
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
            protected = defense.protect_gradients(dict(zip(trained, gradients, strict=True)), batch, context)
            step([protected[name] for name in trained])
            losses.append(loss.item())
    after = on_host(model.state_dict())
    shared = {name: tensor for name, tensor in global_state.items() if name not in kept}
    # The defense sees what is sent and nothing else: its norms and its noise are of that.
    sent = defense.protect_update(state_difference(shared, after), context)
    update = ModelUpdate(dict(sent), len(client.train), len(orders), round, client.name, tuple(sorted(kept)))
    update.check_against(global_state, absent=kept.keys())
    return LocalResult(
        update,
        sum(losses) / len(losses),
        defense.measurements(),
        defense.explanations(),
        {name: after[name].detach().clone() for name in kept},
    )


@contextmanager
def one_value_explained() -> Iterator[None]:
    """Turn what batch norm says of a single value a channel into a :class:`ModelError` that says how to mend it."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ModelError(
            "batch norm cannot train on a batch of one at a feature map of one pixel: use larger images, "
            "model.stem=small, model.normalisation=group, or training.batch_norm=eval"
        ) from error
