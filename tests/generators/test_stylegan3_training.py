"""StyleGAN3's training: the recipe's numbers, the order of its steps, fine-tuning, and going on after a stop."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.build import (
    build_networks,
    load_generator,
    read_generator,
    save_discriminator,
    save_generator,
)
from shadow_defense.generators.recipe import plan_training, stylegan3_recipe
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.stylegan3.blur import blur
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator
from shadow_defense.generators.training import GanTraining, pretrain

TINY = "stylegan3-t-tiny"


def settings(**changes: object) -> GeneratorSettings:
    return GeneratorSettings(**{"name": TINY, "z_dim": 8, "batch_size": 4, "save_every": 2, **changes})


def public(count: int = 8, channels: int = 1) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 16, 16), generator=draws, dtype=torch.uint8)


def training(**changes: object) -> GanTraining:
    return GanTraining(settings(**changes), image_size=16, channels=1, seed=0)


@pytest.mark.parametrize(("size", "gamma"), [(128, 0.5), (256, 2.0), (512, 8.0), (1024, 32.0), (64, 0.125)])
def test_penalty_weights_of_the_spec(size: int, gamma: float) -> None:
    assert plan_training(stylegan3_recipe(fading_blur=False), settings(), size).r1_gamma == gamma


def test_adam_is_corrected_for_the_steps_it_does_not_see() -> None:
    made = training()
    (generator,), (discriminator,) = (
        made.generator_optimiser.param_groups,
        made.discriminator_optimiser.param_groups,
    )
    assert (generator["lr"], generator["betas"], generator["eps"]) == (2.5e-3, (0.0, 0.99), 1e-8)
    assert discriminator["lr"] == pytest.approx(2e-3 * 16 / 17)
    assert discriminator["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    without = training(r1_gamma=0.0).discriminator_optimiser.param_groups[0]
    assert (without["lr"], without["betas"]) == (2e-3, (0.0, 0.99))


@pytest.mark.slow
def test_the_penalty_is_a_step_of_its_own() -> None:
    """Twice as many discriminator steps where it is due, and with the gradient of weight / 2 * interval * R1."""
    made, plain = training(r1_every=1, r1_gamma=3.0), training(r1_every=2, r1_gamma=3.0)
    assert made.step(public())["r1"] > 0
    counts = {int(state["step"]) for state in made.discriminator_optimiser.state.values()}
    # The last bias has no gradient in the penalty.
    assert counts == {1, 2}
    due, between = plain.step(public())["r1"], plain.step(public())["r1"]
    assert due == between > 0  # the last one measured
    assert {int(state["step"]) for state in plain.discriminator_optimiser.state.values()} == {2, 3}
    assert {int(state["step"]) for state in plain.generator_optimiser.state.values()} == {2}


def test_only_the_discriminator_step_moves_the_averages_of_the_generator() -> None:
    made = training()
    before = copy.deepcopy(made.generator.state_dict())
    assert isinstance(made.generator, StyleGAN3Generator)
    assert made.generator.magnitude_ema_beta == pytest.approx(0.5 ** (4 / 20_000))
    made.generator.training_images(torch.randn(4, 8))
    moved = {name for name, tensor in made.generator.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"mapping.w_avg", *(name for name in before if name.endswith("magnitude_ema"))}
    made.generator.load_state_dict(before)
    made.generator(torch.randn(4, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.generator.state_dict().items())


def test_average_has_the_half_life_of_the_recipe_and_copies_buffers() -> None:
    made = training(begin_from=None)
    start = copy.deepcopy(made.average.state_dict())
    made.step(public())
    # Half-life of the first step: 5 % of the images seen, at least one.
    decay = 0.5 ** (4 / max(0.05 * 4, 1.0))
    name = "synthesis.L13_16_64.weight"
    expected = decay * start[name] + (1 - decay) * made.generator.state_dict()[name]
    torch.testing.assert_close(made.average.state_dict()[name], expected)
    torch.testing.assert_close(made.average.state_dict()["mapping.w_avg"], made.generator.state_dict()["mapping.w_avg"])


@pytest.mark.slow
def test_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    # Stopped within the four steps after which the augmentation is adapted, and where a penalty is due next.
    options = {"augmentation": "adaptive", "augmentation_probability": 0.2, "batch_size": 2, "r1_every": 3}
    whole = pretrain(settings(steps=4, **options), public(), seed=3, folder=tmp_path / "whole")
    for steps in (1, 3, 4):
        parts = pretrain(settings(steps=steps, **options), public(), seed=3, folder=tmp_path / "parts")
    for (key, left), right in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(left, right), key


@pytest.mark.slow
def test_adaptive_augmentation_moves_every_four_steps() -> None:
    made = training(augmentation="adaptive", augmentation_probability=0.5)
    for _ in range(3):
        assert made.step(public())["augmentation"] == 0.5
    assert abs(made.step(public())["augmentation"] - 0.5) == pytest.approx(4 * 4 / 500_000)


@pytest.mark.slow
def test_rotation_blurs_what_the_discriminator_sees_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def recorded(images: Tensor, sigma: float) -> Tensor:
        seen.append(sigma)
        return blur(images, sigma)

    monkeypatch.setattr("shadow_defense.generators.training.blur", recorded)
    made = GanTraining(settings(name="stylegan3-r-small"), image_size=16, channels=1, seed=0)
    made.step(public())
    made.step(public())
    # Fake and real of each step, and the penalty of step 0; the blur fades over batch * 200 000 / 32 images.
    assert seen == [10.0] * 4 + [pytest.approx(10 * (1 - 32 / 200_000))] * 3
    seen.clear()
    training().step(public())
    assert set(seen) == {0.0}


@pytest.mark.slow
def test_fine_tuning_begins_from_the_files(tmp_path: Path) -> None:
    first = training()
    save_generator(tmp_path / "g.safetensors", first.generator, TINY, {})
    save_discriminator(tmp_path / "d.safetensors", first.discriminator, TINY)
    begun = settings(
        z_dim=None,
        begin_from=tmp_path / "g.safetensors",
        begin_from_discriminator=tmp_path / "d.safetensors",
        steps=1,
        learning_rate=1e-9,
    )
    generator, discriminator = build_networks(begun, image_size=16, channels=1, seed=99)
    for made, saved in ((generator, first.generator), (discriminator, first.discriminator)):
        for name, tensor in saved.state_dict().items():
            assert torch.equal(made.state_dict()[name], tensor), name
    tuned = pretrain(begun, public(), seed=0, folder=tmp_path / "tuned")
    z = torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(tuned(z), first.generator(z), atol=1e-3, rtol=0)
    assert read_generator(tmp_path / "tuned" / "generator.safetensors")[0] == TINY
    assert load_generator(tmp_path / "tuned" / "generator.safetensors").z_dim == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "stylegan3-t-small"}, "set generator.name"),
        ({"z_dim": 8}, "leave them out"),
        ({"channels": 3}, "images of as many channels"),
        ({"begin_from_discriminator": "g.safetensors"}, "holds no discriminator"),
    ],
)
def test_fine_tuning_refuses_what_does_not_fit(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save_generator(tmp_path / "g.safetensors", training().generator, TINY, {})
    channels = int(str(changes.pop("channels", 1)))
    if "begin_from_discriminator" in changes:
        changes["begin_from_discriminator"] = tmp_path / "g.safetensors"
    chosen = settings(**{"z_dim": None, "begin_from": tmp_path / "g.safetensors", **changes})
    with pytest.raises(GeneratorError, match=message):
        build_networks(chosen, image_size=16, channels=channels, seed=0)


def test_width_is_part_of_the_name() -> None:
    with pytest.raises(GeneratorError, match="width is part of its name"):
        build_networks(settings(width=16), image_size=16, channels=1, seed=0)


def test_a_batch_that_the_discriminator_cannot_group_is_refused_at_the_first_step() -> None:
    with pytest.raises(GeneratorError, match="multiple of 4"):
        training(batch_size=6).step(public())
