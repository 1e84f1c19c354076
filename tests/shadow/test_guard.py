"""The guard as a user meets it: what it adds, what each switch changes, what it leaves alone, how it goes on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.errors import ConfigError
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.simulated_gradient import SimulatedGradient
from shadow_defense.progress import Progress, Task
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.guard import Protection, ShadowGuard
from shadow_defense.shadow.latents import invert_latents
from shadow_defense.shadow.settings import ShadowSettings, shadow_preset

SIDE = 16
QUICK = {"latent_iterations": 8, "attack_iterations": 2}


class TinyGenerator(nn.Module):
    """Not one of the project's: the guard takes any module."""

    def __init__(self, z_dim: int = 6, channels: int = 1, size: int = SIDE) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.linear = nn.Linear(z_dim, channels * size * size)
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z)).view(-1, *self.shape)


def build(normalisation: str = "batch", *, channels: int = 1, seed: int = 0) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    return build_model(chosen, channels=channels, classes=2, image_size=(SIDE, SIDE), seed=seed)


def guard(generator: nn.Module | None = None, *, seed: int = 0, z_dim: int | None = 6, **changes: Any) -> ShadowGuard:
    settings = ShadowSettings(**{**QUICK, **changes})
    return ShadowGuard(generator or TinyGenerator(), settings, mean=(0.5,), std=(0.25,), seed=seed, z_dim=z_dim)


IDS = ("a", "b", "c", "d")


def images_of(*indices: int, channels: int = 1) -> Tensor:
    drawn = torch.rand(len(IDS), channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 4 - 2
    return drawn[list(indices)]


def examine(
    guard: ShadowGuard,
    *indices: int,
    round: int = 0,
    rounds: int = 100,
    model: nn.Module | None = None,
    global_model: nn.Module | Mapping[str, Tensor] | None = None,
    channels: int = 1,
) -> Protection:
    indices = indices or (0, 1)
    model = model or build(channels=channels)
    return guard.protect_with_details(
        images_of(*indices, channels=channels),
        torch.tensor([index % 2 for index in indices]),
        [IDS[index] for index in indices],
        model=model,
        global_model=model if global_model is None else global_model,
        loss_fn=F.cross_entropy,
        round=round,
        rounds=rounds,
    )


def equal_states(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        equal_states(value, second[name]) if isinstance(value, Mapping) else torch.equal(value, second[name])
        for name, value in first.items()
    )


@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_protects_a_batch(normalisation: str) -> None:
    model = build(normalisation)
    protection = examine(guard(), model=model)
    assert torch.equal(protection.images, images_of(0, 1) + protection.noise)
    # The peak of the noise is 0.19 of the image's in round 0.
    peaks = protection.noise.amax(dim=(1, 2, 3)) / images_of(0, 1).amax(dim=(1, 2, 3))
    torch.testing.assert_close(peaks, torch.full((2,), 0.19))
    torch.testing.assert_close(protection.noise_map.sum(dim=(1, 2, 3)), torch.ones(2))
    assert protection.cam is not None and protection.rebuilt is not None
    assert protection.rebuilt.shape == protection.images.shape


def test_protect_is_the_images_of_examine() -> None:
    model, images, labels = build(), images_of(0, 1), torch.tensor([0, 1])
    protected = guard().protect(
        images, labels, IDS[:2], model=model, global_model=model, loss_fn=F.cross_entropy, round=0, rounds=100
    )
    assert torch.equal(protected, examine(guard(), model=model).images)


def test_most_noise_where_the_generator_rebuilds_best() -> None:
    """In the very pixel: an equalisation that moves pixels, as in the authors' code, would put it elsewhere."""
    protection = examine(guard(foreground=False))
    assert protection.rebuilt is not None
    error = (protection.images - protection.noise - protection.rebuilt).square()
    for each_error, each_noise in zip(error, protection.noise, strict=True):
        assert each_noise.flatten()[each_error.argmin()] == each_noise.max()
        ranks = torch.stack([each_error.flatten().argsort().argsort(), each_noise.flatten().argsort().argsort()])
        assert torch.corrcoef(ranks.double())[0, 1] < -0.95


def test_colour_gets_one_map_for_all_channels() -> None:
    colour = guard(TinyGenerator(channels=3))
    noise = examine(colour, channels=3).noise
    assert noise.shape == (2, 3, SIDE, SIDE)
    assert torch.equal(noise, noise[:, :1].expand_as(noise))


@pytest.mark.parametrize("training", [True, False])
def test_generator_and_models_stay_as_they_were(training: bool) -> None:
    generator = DCGANGenerator(image_size=16, channels=1, z_dim=6, width=4).train(training)
    local, global_model = build(seed=0), build(seed=1).eval()
    modules = (generator, local, global_model)
    F.cross_entropy(local(images_of(0, 1)), torch.tensor([0, 1])).backward()
    states = [copy.deepcopy(module.state_dict()) for module in modules]
    gradients = {name: parameter.grad.clone() for name, parameter in local.named_parameters()}
    modes = [{name: each.training for name, each in module.named_modules()} for module in modules]
    random_state = torch.get_rng_state()
    chosen = guard(generator, z_dim=None)
    for round in (0, 1):
        examine(chosen, round=round, model=local, global_model=global_model)
    for module, state, mode in zip(modules, states, modes, strict=True):
        assert equal_states(module.state_dict(), state)
        assert {name: each.training for name, each in module.named_modules()} == mode
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in local.named_parameters())
    assert all(parameter.grad is None for module in (generator, global_model) for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    # And yet the guard's own copy has moved.
    assert any(not torch.equal(chosen.synthesis[name], own) for name, own in generator.named_parameters())


def test_an_adapted_generator_in_train_mode_keeps_its_statistics() -> None:
    """Probing its output shape must not write the probe into the running statistics, or fail on a batch of one."""
    normalised = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Unflatten(1, (1, 8, 8)), nn.BatchNorm2d(1))
    before = copy.deepcopy(normalised.state_dict())
    ShadowGuard(normalised, z_dim=6)
    assert equal_states(normalised.state_dict(), before)
    assert all(module.training for module in normalised.modules())


def test_encoding_beforehand_changes_nothing() -> None:
    """Codes come from the generator as it was given: the second batch's do not depend on the first's attack."""
    # Everything moves far, so that a code found with the moved generator would be another one.
    far = {"latent_learning_rate": 0.05, "latent_iterations": 30, "attack_learning_rate": 0.1, "generator_decay": 0.0}
    early, late, at_once = guard(**far), guard(**far), guard(**far)
    batches, model = ((0, 1), (2, 3)), build()
    # A batch of four rounds otherwise in its last bits, on which hangs which pixels come next to a threshold.
    for indices in batches:
        early.encode(images_of(*indices), [IDS[index] for index in indices])
    at_once.encode(images_of(0, 1, 2, 3), IDS)
    for indices in batches:
        first, second = examine(early, *indices, model=model), examine(late, *indices, model=model)
        torch.testing.assert_close(first.images, second.images, rtol=0, atol=1e-4)
    for sample in IDS:
        torch.testing.assert_close(early.latents[sample], late.latents[sample], rtol=0, atol=1e-5)
        torch.testing.assert_close(at_once.latents[sample], late.latents[sample], rtol=0, atol=1e-5)


def test_codes_do_not_depend_on_the_order_of_samples() -> None:
    forwards, backwards = guard(), guard()
    forwards.encode(images_of(0, 1), IDS[:2])
    backwards.encode(images_of(1, 0), IDS[1::-1])
    for sample in IDS[:2]:
        torch.testing.assert_close(forwards.latents[sample], backwards.latents[sample], rtol=0, atol=1e-6)
    assert not torch.equal(forwards.latents["a"], forwards.latents["b"])
    other_seed = guard(seed=1)
    other_seed.encode(images_of(0, 1), IDS[:2])
    assert not torch.equal(forwards.latents["a"], other_seed.latents["a"])


class Counting(Progress, Task):
    def __init__(self) -> None:
        self.steps = 0

    def start(self, name: str, total: int) -> Task:
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps += steps


def test_encoding_knows_what_it_has_seen() -> None:
    chosen = guard()
    chosen.encode(images_of(0, 1), IDS[:2])
    assert set(chosen.latents) == {"a", "b"}
    known = dict(chosen.latents)
    progress = Counting()
    chosen.encode(images_of(3, 2, 1), ("d", "c", "b"), progress)
    assert set(chosen.latents) == set(IDS) and progress.steps == 2
    assert all(chosen.latents[sample] is code for sample, code in known.items())


def test_encoding_in_chunks_keeps_codes_with_their_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, chunked = guard(), guard()
    at_once.encode(images_of(0, 1, 2, 3), IDS)
    monkeypatch.setattr("shadow_defense.shadow.encoding.ENCODED_AT_ONCE", 2)
    # The first is known already, so that places in the batch and among the new ones differ.
    chunked.encode(images_of(0), IDS[:1])
    progress = Counting()
    chunked.encode(images_of(0, 1, 2, 3), IDS, progress)
    assert progress.steps == 3
    for sample in IDS:
        torch.testing.assert_close(chunked.latents[sample], at_once.latents[sample], rtol=0, atol=1e-6)


@pytest.mark.parametrize("placement", ["targeted", "shuffled", "uniform"])
def test_restored_guard_goes_on_to_the_bit(placement: str) -> None:
    model = build()
    straight = guard(placement=placement)
    for round, indices in enumerate(((0, 1), (1, 2))):
        examine(straight, *indices, round=round, model=model)
    saved = copy.deepcopy(straight.state_dict())
    resumed = guard(placement=placement)
    resumed.load_state_dict(saved)
    for round, indices in enumerate(((0, 3), (1, 2), (0, 1)), start=2):
        first = examine(straight, *indices, round=round, model=model)
        second = examine(resumed, *indices, round=round, model=model)
        assert torch.equal(first.images, second.images)
    assert equal_states(straight.state_dict(), resumed.state_dict())
    # The saved state was not changed under our hands by either.
    again = guard(placement=placement)
    again.load_state_dict(saved)
    assert equal_states(again.state_dict(), saved)


def test_how_the_update_is_differentiated_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, model = guard(), build()
    examine(chosen, 0, model=model)
    assert chosen.derivative == "difference"
    restored = guard()
    restored.load_state_dict(chosen.state_dict())
    # No later batch takes an exact derivative to compare with, and none of a restored guard does.
    monkeypatch.setattr(SimulatedGradient, "_exact_derivative", None)
    assert torch.equal(examine(restored, 1, model=model).images, examine(chosen, 1, model=model).images)
    earlier = chosen.state_dict()
    del earlier["derivative"]
    restored.load_state_dict(earlier)
    assert restored.derivative == "unknown"


def test_map_of_a_later_round_remembers_the_first() -> None:
    model = build()
    remembering, forgetting = guard(momentum=0.9), guard(momentum=0.0)
    first = examine(remembering, model=model).noise_map
    assert torch.equal(examine(forgetting, model=model).noise_map, first)
    new = examine(forgetting, round=1, model=model).noise_map
    assert not torch.equal(new, first)
    blended = examine(remembering, round=1, model=model).noise_map
    torch.testing.assert_close(blended, 0.9 * first + 0.1 * new)


def test_generator_moves_halfway_to_the_tuned_one() -> None:
    start = TinyGenerator().linear.weight.detach()
    moved = {}
    for decay in (0.0, 0.5, 1.0):
        chosen = guard(generator_decay=decay)
        examine(chosen)
        moved[decay] = chosen.synthesis["module.linear.weight"]
    assert torch.equal(moved[1.0], start)
    assert (moved[0.0] - start).abs().max() > 1e-5
    torch.testing.assert_close(moved[0.5], (start + moved[0.0]) / 2, rtol=0, atol=1e-7)


def test_after_the_shadow_rounds_generator_and_maps_are_left_alone() -> None:
    chosen, model = guard(shadow_rounds=1), build()
    examine(chosen, model=model)
    synthesis, maps = copy.deepcopy(chosen.synthesis), copy.deepcopy(chosen.noise_maps)
    # Another local model: only a pseudo attack would notice.
    late = examine(chosen, round=1, model=build(seed=1), global_model=model)
    assert late.rebuilt is None
    assert equal_states(chosen.synthesis, synthesis) and equal_states(chosen.noise_maps, maps)
    assert late.noise.abs().max() > 0


def test_sample_first_seen_after_the_shadow_rounds() -> None:
    """Its map comes from the generator as it was left; the maps of the others in its batch stay."""
    chosen, model = guard(shadow_rounds=1), build()
    examine(chosen, 0, 1, model=model)
    synthesis, known = copy.deepcopy(chosen.synthesis), chosen.noise_maps["b"].clone()
    protection = examine(chosen, 1, 2, round=5, model=model)
    assert equal_states(chosen.synthesis, synthesis)
    assert torch.equal(chosen.noise_maps["b"], known)
    assert protection.rebuilt is not None
    torch.testing.assert_close(protection.noise_map.sum(dim=(1, 2, 3)), torch.ones(2))
    assert protection.noise[1].abs().max() > 0


def test_no_strength_is_the_identity() -> None:
    assert torch.equal(examine(guard(strength=0.0)).images, images_of(0, 1))


@pytest.mark.parametrize(("schedule", "exponent"), [("growing", 1.0), ("decaying", -1.0)])
def test_the_schedule_is_by_exp_of_the_round(schedule: str, exponent: float) -> None:
    model = build()
    changing, constant = (guard(foreground=False, shadow_rounds=0, schedule=name) for name in (schedule, "constant"))
    for round in (0, 50, 99):
        ratio = examine(changing, round=round, model=model).noise / examine(constant, round=round, model=model).noise
        torch.testing.assert_close(ratio, torch.full_like(ratio, float(torch.tensor(exponent * round / 100).exp())))


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"shadow.schedule = 'rising': input should be 'growing', 'constant', 'decaying' or"
    ):
        shadow_preset("paper", schedule="rising")


def test_without_foreground_the_map_is_used_as_it_is() -> None:
    spared, plain = examine(guard()), examine(guard(foreground=False))
    assert plain.cam is None
    assert torch.equal(spared.noise_map, plain.noise_map)
    assert not torch.equal(spared.noise, plain.noise)
    ratio = plain.noise / plain.noise_map
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))


def test_foreground_follows_label_or_one_class() -> None:
    model = build()
    by_label, all_one = examine(guard(), model=model), examine(guard(cam_class=1), model=model)
    assert by_label.cam is not None and all_one.cam is not None
    # Image a has label 0, image b label 1.
    assert not torch.equal(by_label.cam[0], all_one.cam[0])
    assert torch.equal(by_label.cam[1], all_one.cam[1])


def test_foreground_of_the_global_model() -> None:
    local, global_model = build(seed=0), build(seed=1)
    ours = examine(guard(), model=local, global_model=global_model).cam
    alone = examine(guard(), model=global_model).cam
    assert ours is not None and alone is not None
    assert torch.equal(ours, alone)


def test_equalisation_changes_the_map() -> None:
    equalised, plain = examine(guard()).noise_map, examine(guard(equalise=False)).noise_map
    assert not torch.allclose(equalised, plain)


def test_without_latent_pretraining_the_starting_code_stays() -> None:
    plain, encoded = guard(latent_pretraining=False), guard(latent_iterations=60, latent_learning_rate=0.05)
    plain.encode(images_of(0), IDS[:1])
    encoded.encode(images_of(0), IDS[:1])
    start = torch.randn(6, generator=named_generator(0, "latent", "a"))
    assert torch.equal(plain.latents["a"], start)

    def error(code: Tensor) -> float:
        found = invert_latents(
            lambda z: (TinyGenerator()(z) + 1) / 2 / 0.25 - 2, images_of(0), code.unsqueeze(0), iterations=1
        )
        return float(found.error)

    assert error(encoded.latents["a"]) < error(plain.latents["a"])


@pytest.mark.parametrize("placement", ["shuffled", "uniform"])
def test_controls_have_the_energy_of_the_targeted_noise(placement: str) -> None:
    targeted, control = examine(guard()), examine(guard(placement=placement))
    torch.testing.assert_close(control.noise.square().sum(dim=(1, 2, 3)), targeted.noise.square().sum(dim=(1, 2, 3)))
    assert not torch.allclose(control.noise, targeted.noise, atol=1e-3)
    assert torch.equal(control.noise_map, targeted.noise_map)


def test_controls_draw_anew_for_every_batch() -> None:
    chosen, model = guard(placement="uniform", shadow_rounds=0), build()
    first, second = (examine(chosen, model=model).noise for _ in range(2))
    assert not torch.equal(first, second)


def test_a_state_dict_stands_for_the_global_model() -> None:
    local, global_model = build(), build(seed=1)
    by_module = examine(guard(), model=local, global_model=global_model)
    by_state = examine(guard(), model=local, global_model=global_model.state_dict())
    assert torch.equal(by_module.images, by_state.images)


def test_a_larger_generator_is_resized() -> None:
    protection = examine(guard(TinyGenerator(size=24)))
    assert protection.rebuilt is not None and protection.rebuilt.shape == (2, 1, SIDE, SIDE)


def test_one_image_of_one_client() -> None:
    assert examine(guard(), 0).noise.abs().max() > 0


def test_presets() -> None:
    paper, authors, article = (shadow_preset(name) for name in ("paper", "authors", "article"))
    assert (paper.momentum, paper.vulnerability_temperature, paper.cam_class) == (0.1, 20.0, "label")
    assert authors == paper.model_copy(update={"cam_class": 1})
    assert (article.momentum, article.vulnerability_temperature) == (0.9, 1.0)
    # The paper's formula is exact where it is named; everywhere else there is a floor.
    assert paper.floor == authors.floor == shadow_preset("article").floor == 0 < ShadowSettings().floor
    assert shadow_preset("article", momentum=0.5).vulnerability_temperature == 1.0
    with pytest.raises(ConfigError, match="did you mean 'article'"):
        shadow_preset("artikel")
    with pytest.raises(ConfigError, match="did you mean 'momentum'"):
        shadow_preset("paper", momentun=0.5)
