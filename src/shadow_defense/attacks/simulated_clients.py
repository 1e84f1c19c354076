"""Clients that an attacker makes up of images of its own: what they would have sent, defended or not."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import vmap

from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.matching_objective import can_be_mapped, mapped_constants
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.target import Target
from shadow_defense.data.dataset import ClientData, ImageSet
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.states import on_host
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.seeds import named_generator

# Bounds the simulated updates that are held at once to some 64 MiB.
_ENTRIES_AT_ONCE = 1 << 24
_CLIENTS_AT_ONCE = 32


@dataclass(frozen=True)
class Pool:
    """The images, by their indices, that some places of a client are filled with."""

    places: Int64[Tensor, " k"]
    images: Int64[Tensor, " m"]

    def split(self, share: float, draws: torch.Generator) -> tuple[Pool, Pool]:
        """All but a random ``share`` of the images, and the rest; each gets at least one of two or more."""
        order = self.images[torch.randperm(len(self.images), generator=draws)]
        held_out = min(max(1, round(share * len(order))), len(order) - 1)
        return Pool(self.places, order[held_out:]), Pool(self.places, order[:held_out])


def image_pools(available: Int64[Tensor, " m"], wanted: Int64[Tensor, " n"]) -> tuple[list[Pool], bool]:
    """A pool for each class of ``wanted``, and whether there were two images of each; if not, one pool of everything.

    Args:
        available: labels of the attacker's images.
        wanted: labels of the client's images, one a place.

    >>> pools, own = image_pools(torch.tensor([0, 1, 0, 1, 1]), torch.tensor([0, 1, 1]))
    >>> [(pool.places.tolist(), pool.images.tolist()) for pool in pools], own
    ([([0], [0, 2]), ([1, 2], [1, 3, 4])], True)
    """
    pools = [
        Pool((wanted == label).nonzero().flatten(), (available == label).nonzero().flatten())
        for label in wanted.unique()
    ]
    if all(len(pool.images) > 1 for pool in pools):
        return pools, True
    return [Pool(torch.arange(len(wanted)), torch.arange(len(available)))], False


def draw_clients(pools: Sequence[Pool], count: int, draws: torch.Generator) -> Int64[Tensor, "count n"]:
    """The image at each place of ``count`` clients; no image comes back before its pool is used up."""
    clients = torch.empty(count, sum(len(pool.places) for pool in pools), dtype=torch.int64)
    for pool in pools:
        needed = count * len(pool.places)
        passes = -(-needed // len(pool.images))
        order = torch.cat([torch.randperm(len(pool.images), generator=draws) for _ in range(passes)])
        clients[:, pool.places] = pool.images[order[:needed]].view(count, -1)
    return clients


def simulated_defense(observation: Observation) -> tuple[DefenseSettings | None, tuple[str, ...]]:
    """The defense to simulate, None for none, and in words what that leaves out."""
    if not observation.grants("defense"):
        return None, ("defense unknown: learned from undefended updates",)
    chosen = observation.defense
    if not chosen.acts_on():
        return None, ()
    searching = [part for part in chosen.parts() if DEFENSES[part].searches]
    if searching:
        return None, (f"learned from undefended updates: {min(searching)} searches in every batch",)
    return chosen, (f"learned from updates under {chosen.defense}",)


def simulated_updates(
    observation: Observation,
    target: Target,
    auxiliary: ImageSet,
    clients: Int64[Tensor, "m n"],
    defense: DefenseSettings | None,
    seed: int,
) -> Iterator[Float[Tensor, "k d"]]:
    """What each of ``clients`` would send, flattened to rows in the order of ``target.sent``, some clients at a time.

    A client holds the images ``auxiliary[clients[i]]`` with the labels ``target.labels`` and trains from the global
    model in a random order. A whole batch is simulated, never single images: batch norm makes gradients of a batch
    other than the mean of its images'.

    Args:
        defense: None: undefended clients, in one batch (``torch.func.vmap``) where the model can be mapped. Else each
            client runs the project's own local training with a fresh defense: as in a first round, without what a
            defense keeps from round to round.
    """
    if defense is not None:
        yield from (
            _defended(observation, target, auxiliary.subset(client.numpy()), defense, index, seed).unsqueeze(0)
            for index, client in enumerate(clients)
        )
        return
    entries = sum(tensor.numel() for tensor in target.observed)
    mapped = can_be_mapped(observation.model)
    at_once = max(1, min(_CLIENTS_AT_ONCE, _ENTRIES_AT_ONCE // entries))
    draws = named_generator(seed, "simulated order")
    recorder = BatchStatisticsRecorder(observation.model)
    single = partial(_undefended, observation, target, recorder)
    for part in clients.split(at_once):
        orders = torch.stack([torch.randperm(part.shape[1], generator=draws) for _ in part])
        chosen = part.gather(1, orders)
        images = auxiliary.images[chosen.flatten()].to(observation.device).float() / 255
        images = observation.normalisation.apply(images)
        images, labels = images.unflatten(0, chosen.shape), target.labels[orders]
        if mapped:
            buffers = {name: tensor.expand(len(part), *tensor.shape) for name, tensor in target.buffers.items()}
            parameters = mapped_constants(target.parameters)
            both = vmap(partial(single, parameters, mapped=True), randomness="different")
            yield both(images, labels, buffers).detach()
        else:
            rows = [
                single(
                    target.parameters,
                    image,
                    label,
                    {name: tensor.clone() for name, tensor in target.buffers.items()},
                    mapped=False,
                ).detach()
                for image, label in zip(images, labels, strict=True)
            ]
            yield torch.stack(rows)


def _undefended(
    observation: Observation,
    target: Target,
    recorder: BatchStatisticsRecorder,
    parameters: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    buffers: Mapping[str, Tensor],
    *,
    mapped: bool,
) -> Float[Tensor, " d"]:
    simulated = simulate_training(
        observation.model,
        parameters,
        buffers,
        images,
        labels,
        observation.loss_fn,
        target.local,
        recorder,
        target.sent,
        mapped=mapped,
    )
    return torch.cat([tensor.flatten() for tensor in simulated.update])


def _defended(
    observation: Observation, target: Target, images: ImageSet, chosen: DefenseSettings, index: int, seed: int
) -> Float[Tensor, " d"]:
    local, update, count = target.local, observation.update, len(target.labels)
    state = on_host(observation.global_state)
    # An image may have been drawn twice; names must not repeat.
    data = ImageSet(images.images, target.labels.cpu(), tuple(f"{index}/{place}" for place in range(count)))
    client = ClientData(f"simulated-{index}", data, data, data, local.batch_size)
    resources = Resources(
        None, observation.normalisation, observation.auxiliary, observation.classes, client.name, seed
    )
    defense = chosen.build(resources)
    defense.prepare(observation.normalisation.apply(data.unit_images()), data.sample_ids)
    result = train_locally(
        copy.deepcopy(observation.model),
        state,
        client,
        defense,
        settings=TrainingSettings(
            rounds=update.round + 1,
            local_epochs=max(1, round(local.steps / -(-count // local.batch_size))),
            learning_rate=local.learning_rate,
            momentum=local.momentum,
            weight_decay=local.weight_decay,
            optimiser=local.optimiser or "sgd",
            betas=local.betas,
            epsilon=local.epsilon,
            smoothing=local.smoothing,
            milestones=(),
            batch_norm=local.batch_norm,
        ),
        round=update.round,
        normalisation=observation.normalisation,
        loss_fn=observation.loss_fn,
        seed=seed,
        kept={name: state[name] for name in update.withheld},
    )
    return torch.cat([result.update.tensors[name].flatten() for name in target.sent]).to(observation.device)
