"""A saved state: taken whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.shadow.little_guard import SIDE, Z, guard, images, step
from torch import Tensor, nn

from shadow_defense.errors import DefenseError
from shadow_defense.files import flatten_tensors, nest_tensors
from shadow_defense.shadow.guard import ShadowGuard


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    chosen = guard()
    chosen.protect(**step())
    return chosen.state_dict()


def flat(state: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {prefix: state.clone()}
    return {name: tensor for key, value in state.items() for name, tensor in flat(value, f"{prefix}/{key}").items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(each, second[name]) for name, each in first.items())


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__setitem__(name, value)


def spoil(part: str, name: str, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda state: state[part].__setitem__(name, change(state[part][name].clone()))


def holding_nan(tensor: Tensor) -> Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            (lambda state, name=name: state.pop(name), f"lacks '{name}'")
            for name in ("generator", "synthesis", "latents", "noise_maps", "thumbnails", "random_state", "mean")
        ],
        (
            put("mean", torch.tensor([0.1], dtype=torch.float64)),
            r"images with mean \[0\.1\] but the guard has \[0\.5\]",
        ),
        (put("std", torch.tensor([0.5, 0.5], dtype=torch.float64)), "images with std"),
        (put("latent_space", torch.tensor(list(b"w"), dtype=torch.uint8)), "latent codes of w but latent_space is z"),
        (put("random_state", torch.zeros(3, dtype=torch.uint8)), "damaged"),
        (put("random_state", "text"), "damaged"),
        (put("batches_protected", torch.tensor(-1)), "a negative number of batches"),
        (put("frozen_images", torch.tensor(1)), "frozen noise is lost"),
        (put("latents", {}), "codes, maps and thumbnails of different images"),
        (spoil("latents", "names", lambda names: names[:-2]), "damaged"),
        (spoil("latents", "values", lambda values: values[:, :-1]), "the code of image 'i0'"),
        (spoil("latents", "values", holding_nan), "the code of image 'i0'"),
        (spoil("noise_maps", "values", holding_nan), "the noise map of image 'i0'"),
        (spoil("noise_maps", "values", lambda values: values[:-1]), "damaged"),
        (spoil("synthesis", "module.0.bias", holding_nan), r"the generator's tensor 'module\.0\.bias'"),
        (spoil("generator", "module.0.bias", holding_nan), r"the generator's tensor 'module\.0\.bias'"),
        (spoil("synthesis", "module.0.bias", lambda bias: bias[:-1]), "another generator"),
        (spoil("generator", "module.0.bias", lambda bias: bias[:-1]), "another generator"),
        (spoil("generator", "module.0.bias", lambda bias: 7), "another generator"),
    ],
)
def test_a_state_that_is_not_whole_changes_nothing(
    saved: dict[str, Any], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    chosen, broken = guard(), copy.deepcopy(saved)
    change(broken)
    chosen.encode(images()[:1] * 0.5, ["other"])
    before, generator = flat(chosen.state_dict()), chosen.generator
    with pytest.raises(DefenseError, match=message) as raised:
        chosen.load_state_dict(broken)
    assert "\n" not in str(raised.value)
    assert equal(flat(chosen.state_dict()), before) and chosen.generator is generator
    chosen.load_state_dict(saved)
    assert equal(flat(chosen.state_dict()), flat(saved))


def test_the_guard_goes_on_with_the_generator_of_its_state(saved: dict[str, Any]) -> None:
    """Codes of samples that come late are sought with the generator that the earlier ones were sought with."""
    untouched = flat(saved)
    straight, resumed = guard(), ShadowGuard(other_weights(), guard().settings, z_dim=Z)
    straight.load_state_dict(saved)
    resumed.load_state_dict(saved)
    late = step(images(6)[4:], sample_ids=["late", "later"], round=1)
    assert torch.equal(straight.protect(**late), resumed.protect(**late))
    assert equal(flat(straight.state_dict()), flat(resumed.state_dict()))
    assert equal(flat(saved), untouched)


def other_weights() -> nn.Module:
    torch.manual_seed(99)
    return nn.Sequential(nn.Linear(Z, SIDE * SIDE), nn.Tanh(), nn.Unflatten(1, (1, SIDE, SIDE)))


def test_a_restored_guard_still_knows_its_images(saved: dict[str, Any]) -> None:
    chosen = guard()
    chosen.load_state_dict(saved)
    assert chosen.protect(**step(round=1)).shape == images().shape
    with pytest.raises(Exception, match="another image was protected under the id 'i0'"):
        chosen.protect(**step(images().flip(3), round=1))


def test_a_state_survives_a_file(saved: dict[str, Any], tmp_path: Any) -> None:
    torch.save(saved, tmp_path / "guard.pt")
    chosen = guard()
    chosen.load_state_dict(torch.load(tmp_path / "guard.pt", weights_only=True))
    assert equal(flat(chosen.state_dict()), flat(saved))


def test_a_state_survives_lying_flat_as_a_run_keeps_it(saved: dict[str, Any]) -> None:
    """Nothing is frozen here, and of an empty group nothing is left."""
    chosen = guard()
    chosen.load_state_dict(nest_tensors(flatten_tensors(saved)))
    assert equal(flat(chosen.state_dict()), flat(saved))
