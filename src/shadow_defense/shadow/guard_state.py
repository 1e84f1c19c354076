"""A guard's state as nested dicts of tensors, and back: checked as a whole before any of it is taken."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DefenseError
from shadow_defense.generators.interface import Generator, LatentSpace
from shadow_defense.models.functional import training_mode
from shadow_defense.models.simulated_gradient import DERIVATIVES, Derivative
from shadow_defense.shadow.sample_store import pack_samples, unpack_samples

HINT = "give all of what state_dict gave, unchanged, or start anew"


@dataclass
class GuardState:
    """All that a guard needs to go on.

    Attributes:
        generator: as it was given; codes are sought with it, in every round.
        synthesis: its synthesis parameters as the rounds moved them.
        latents, noise_maps, thumbnails: by sample id: step 2's codes, step 7's maps, and what images are known by.
        frozen: by sample id the noise that stays, where the schedule is frozen.
        batches_protected: a counter.
        derivative: how step 4 differentiates the update, which its first batch decides.
        draws: of the control placements.
    """

    generator: Generator
    synthesis: dict[str, Tensor]
    latents: dict[str, Tensor]
    noise_maps: dict[str, Tensor]
    thumbnails: dict[str, Tensor]
    frozen: dict[str, Tensor]
    batches_protected: int
    derivative: Derivative
    draws: torch.Generator


def pack_state(state: GuardState, space: LatentSpace, normalisation: Normalisation) -> dict[str, Any]:
    """``state``, and the latent space and normalisation without which its codes and maps mean nothing."""
    return {
        "generator": _tensors(state.generator),
        "latent_space": torch.tensor(list(space.encode()), dtype=torch.uint8),
        "mean": torch.tensor(normalisation.mean, dtype=torch.float64),
        "std": torch.tensor(normalisation.std, dtype=torch.float64),
        "synthesis": dict(state.synthesis),
        "latents": pack_samples(state.latents),
        "noise_maps": pack_samples(state.noise_maps),
        "thumbnails": pack_samples(state.thumbnails),
        "frozen": pack_samples(state.frozen),
        # Nothing frozen leaves no trace in a file, where groups of tensors lie flat; what was lost must be missed.
        "frozen_images": torch.tensor(len(state.frozen)),
        "batches_protected": torch.tensor(state.batches_protected),
        "derivative": torch.tensor(DERIVATIVES.index(state.derivative)),
        "random_state": state.draws.get_state(),
    }


def unpack_state(
    saved: Mapping[str, Any], now: GuardState, space: LatentSpace, normalisation: Normalisation
) -> GuardState:
    """The inverse of :func:`pack_state`; shares nothing with ``saved`` or ``now``.

    Args:
        now: of the guard that is to go on: a generator of the same architecture, whose tensors are replaced.

    Raises:
        DefenseError: when the state is of another generator, latent space or normalisation, or not whole.
    """
    # Earlier versions asked in every batch how the update is differentiated.
    saved = {"frozen": {}, "derivative": torch.tensor(DERIVATIVES.index("unknown")), **saved}
    lacking = next((name for name in pack_state(now, space, normalisation) if name not in saved), None)
    if lacking is not None:
        raise DefenseError(f"the saved state lacks '{lacking}': {HINT}")
    try:
        _check_belonging(saved, now, space, normalisation)
        generator = copy.deepcopy(now.generator).cpu()
        generator.load_state_dict(saved["generator"], strict=False)
        draws = type(now.draws)()
        draws.set_state(saved["random_state"])
        state = GuardState(
            generator,
            {name: saved["synthesis"][name].clone() for name in now.synthesis},
            unpack_samples(saved["latents"]),
            unpack_samples(saved["noise_maps"]),
            unpack_samples(saved["thumbnails"]),
            unpack_samples(saved["frozen"]),
            int(saved["batches_protected"]),
            DERIVATIVES[int(saved["derivative"])],
            draws,
        )
        with torch.no_grad(), training_mode(generator, False):
            code = generator.encode(torch.zeros(1, generator.z_dim), space).shape[1:]
        _check_contents(state, code)
        if len(state.frozen) != int(saved["frozen_images"]):
            raise DefenseError(f"the saved state is damaged (frozen noise is lost): {HINT}")
    except DefenseError:
        raise
    except Exception as error:
        raise DefenseError(f"the saved state is damaged ({(str(error).splitlines() or [''])[0]}): {HINT}") from error
    return state


def _tensors(generator: Generator) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in generator.state_dict().items() if isinstance(tensor, Tensor)}


def _shapes(tensors: Any) -> dict[str, torch.Size]:
    named = tensors.items() if isinstance(tensors, Mapping) else ()
    return {name: tensor.shape for name, tensor in named if isinstance(tensor, Tensor)}


def _check_belonging(
    saved: Mapping[str, Any], now: GuardState, space: LatentSpace, normalisation: Normalisation
) -> None:
    if _shapes(saved["synthesis"]) != _shapes(now.synthesis) or _shapes(saved["generator"]) != _shapes(
        _tensors(now.generator)
    ):
        raise DefenseError("the saved state belongs to another generator: give the guard the one it was saved with")
    own = pack_state(now, space, normalisation)
    if not torch.equal(saved["latent_space"], own["latent_space"]):
        given = bytes(saved["latent_space"].tolist()).decode(errors="replace")
        raise DefenseError(
            f"the saved state holds latent codes of {given} but latent_space is {space}: set latent_space to {given}, "
            "or start anew"
        )
    for name in ("mean", "std"):
        if not torch.equal(saved[name], own[name]):
            raise DefenseError(
                f"the saved state is of images with {name} {saved[name].tolist()} but the guard has "
                f"{own[name].tolist()}: give the guard the normalisation it was saved with, or start anew"
            )


def _check_contents(state: GuardState, code: torch.Size) -> None:
    kinds = {"code": state.latents, "noise map": state.noise_maps, "thumbnail": state.thumbnails}
    kinds |= {"noise": state.frozen}
    if not state.frozen.keys() <= state.noise_maps.keys():
        raise DefenseError(f"the saved state is damaged (noise of images without maps): {HINT}")
    if state.latents.keys() != state.thumbnails.keys() or not state.noise_maps.keys() <= state.latents.keys():
        raise DefenseError(f"the saved state is damaged (codes, maps and thumbnails of different images): {HINT}")
    for kind, samples in kinds.items():
        for sample, tensor in samples.items():
            shaped = tensor.shape == code if kind == "code" else tensor.dim() == 3
            if not shaped or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise DefenseError(f"the saved state is damaged (the {kind} of image '{sample}'): {HINT}")
    for name, tensor in (*_tensors(state.generator).items(), *state.synthesis.items()):
        if not torch.isfinite(tensor).all():
            raise DefenseError(f"the saved state is damaged (the generator's tensor '{name}'): {HINT}")
    if state.batches_protected < 0:
        raise DefenseError(f"the saved state is damaged (a negative number of batches): {HINT}")
