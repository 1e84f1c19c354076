"""The adaptive attack: refused where the defense is not granted, and worth something where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.attacks.clients import SHAPE, baseline, lenet, normalisation, observation, private
from torch import nn

from shadow_defense.attacks.adaptive.attack import AdaptiveAttack
from shadow_defense.attacks.adaptive.expectation import expected_training
from shadow_defense.attacks.adaptive.settings import AdaptiveSettings
from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.fully_connected_leak import leaked_input
from shadow_defense.attacks.local_steps import SimulatedTraining
from shadow_defense.attacks.observation import Attack, Observation, Reconstruction, randomised
from shadow_defense.attacks.threat_model import THREAT_MODELS
from shadow_defense.data.dataset import ImageSet
from shadow_defense.defenses.build import DefenseSettings, Resources
from shadow_defense.errors import ConfigError, ThreatModelError
from shadow_defense.metrics.psnr import psnr
from shadow_defense.progress import Task
from shadow_defense.validation import validated


def settings(attack: str, adaptive: dict[str, Any] | None = None, **options: Any) -> AttackSettings:
    values = {"attack": attack, "options": options, "threat_model": "adaptive server", "adaptive": adaptive}
    return validated(AttackSettings, values, ConfigError)


def defended(model: nn.Module, name: str, **options: Any) -> Observation:
    chosen = DefenseSettings(defense=name, options=options)
    nothing = ImageSet(torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ())
    defense = chosen.build(Resources(None, normalisation(), nothing, 2, "site-1", 0))
    seen, _ = observation(model, (1,), threat="adaptive server", defense=defense)
    return replace(seen, _defense=chosen)


def quality(found: Reconstruction) -> float:
    return psnr(found.images, private(1)).mean().item()


class Counting(Task):
    def __init__(self) -> None:
        self.steps = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps += steps


@pytest.mark.parametrize("threat", ["informed server", "eavesdropper"])
def test_refused_before_it_starts_where_the_defense_is_not_granted(threat: str) -> None:
    with pytest.raises(ThreatModelError, match=r"attack 'inverting-gradients' reads defense, which threat model"):
        AttackSettings(adaptive=AdaptiveSettings(), threat_model=threat)
    with pytest.raises(ThreatModelError, match=r"reads defense, earlier rounds, which"):
        AttackSettings(adaptive=AdaptiveSettings(rounds=2), threat_model=threat)
    seen, _ = observation(lenet(), threat=threat)
    attack = settings("inverting-gradients", {}, iterations=1).build()
    with pytest.raises(ThreatModelError, match=r"'adaptive inverting-gradients' reads defense"):
        attack.reconstruct(seen, seed=0)


def test_settings_are_checked_and_written() -> None:
    built = settings("inverting-gradients", {"rounds": 3}, iterations=7, restarts=2).build()
    assert isinstance(built, AdaptiveAttack) and isinstance(built, Attack)
    assert built.steps() == 21
    assert built.needs == {"defense", "earlier rounds"}
    assert settings("gradinversion", {}).build().needs == {"local training", "buffers", "template", "defense"}
    written = built.model_dump(mode="json")
    assert written["inner"]["restarts"] == 2 and written["adaptive"]["rounds"] == 3
    assert getattr(built, "longest_unroll", None) == 16
    assert getattr(settings("fully-connected-leak", {}).build(), "longest_unroll", None) is None
    with pytest.raises(ConfigError, match=r"unknown key 'adaptive.round': did you mean 'rounds'"):
        settings("inverting-gradients", {"round": 2})


def test_without_a_defense_nothing_changes() -> None:
    seen = defended(lenet(), "none")
    plain, adaptive = (
        settings("inverting-gradients", each, iterations=3).build().reconstruct(seen, seed=0) for each in (None, {})
    )
    assert torch.equal(plain.images, adaptive.images)
    assert plain.notes == adaptive.notes


def test_switched_off_it_is_the_attack_alone() -> None:
    seen = defended(lenet(), "gradient-sparsification", percent=95.0)
    plain, adaptive = (
        settings("inverting-gradients", each, iterations=3).build().reconstruct(seen, seed=0)
        for each in (None, {"matching": False})
    )
    assert torch.equal(plain.images, adaptive.images)


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        ("inverting-gradients", {"iterations": 2, "restarts": 2}),
        ("gradinversion", {"iterations": 2}),
        ("gradinversion-group", {"iterations": 2, "seeds": 2}),
        ("idlg", {"iterations": 1, "restarts": 1}),
        ("rog", {"iterations": 2}),
    ],
)
def test_every_matching_attack_says_what_was_fitted(attack: str, options: dict[str, Any]) -> None:
    """And its matching loss is the fitted one: that of the same attack with the adaptation off is another."""
    seen = defended(lenet(), "gradient-sparsification", percent=95.0)
    found = settings(attack, {}, **options).build().reconstruct(seen, seed=0)
    off = settings(attack, {"matching": False}, **options).build().reconstruct(seen, seed=0)
    assert any("of the entries are zero" in note for note in found.notes)
    assert found.matching_loss != off.matching_loss


def test_a_mode_that_fits_nothing_says_so() -> None:
    seen = defended(lenet(), "gradient-sparsification", percent=95.0)
    found = settings("gradinversion", {}, iterations=1, mode="released").build().reconstruct(seen, seed=0)
    assert "this attack compares no updates: no matching term was fitted to the defense" in found.notes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defense", "options"),
    [
        ("gradient-sparsification", {"percent": 80.0}),
        ("soteria", {"percent": 80.0}),
        ("gradient-clipping", {"clip": 0.05, "scope": "tensor"}),
    ],
)
def test_knowing_the_defense_undoes_it(defense: str, options: dict[str, Any]) -> None:
    """iDLG on a face of 16 px: 6 dB without, 73 to 92 dB with 100 iterations."""
    seen = defended(lenet(), defense, **options)
    plain = settings("idlg", None, iterations=15, restarts=1).build().reconstruct(seen, seed=1)
    adaptive = settings("idlg", {}, iterations=25, restarts=1).build().reconstruct(seen, seed=1)
    assert quality(plain) < baseline() < 35 < quality(adaptive)


def test_several_rounds_are_averaged_and_missing_ones_said() -> None:
    seen = defended(lenet(), "noise", scale=0.01)
    before = replace(seen, update=replace(seen.update, round=3))
    seen = replace(seen, update=replace(seen.update, round=4), _earlier=(before,))
    attack, task = settings("inverting-gradients", {"rounds": 3}, iterations=2).build(), Counting()
    found = attack.reconstruct(seen, seed=0, task=task)
    assert task.steps == attack.steps() == 6
    assert found.iterations == 4
    assert any(note.startswith("2 of 3 rounds") for note in found.notes)
    assert "the mean of the reconstructions of 2 rounds" in found.notes
    alone = settings("inverting-gradients", {}, iterations=2).build().reconstruct(seen, seed=0)
    assert found.matching_loss == alone.matching_loss
    assert not torch.equal(found.images, alone.images)


def test_no_more_rounds_are_used_than_asked_for() -> None:
    seen = defended(lenet(), "none")
    earlier = tuple(replace(seen, update=replace(seen.update, round=round)) for round in range(4))
    seen = replace(seen, update=replace(seen.update, round=4), _earlier=earlier)
    found = settings("inverting-gradients", {"rounds": 2}, iterations=2).build().reconstruct(seen, seed=0)
    assert found.iterations == 4
    assert "the mean of the reconstructions of 2 rounds" in found.notes


def test_a_denoiser_has_the_last_word() -> None:
    seen = defended(lenet(), "none")
    plain = settings("inverting-gradients", {}, iterations=2).build().reconstruct(seen, seed=0)
    smooth = settings("inverting-gradients", {"denoiser": "total-variation"}, iterations=2)
    found = smooth.build().reconstruct(seen, seed=0)
    assert "denoised: total-variation" in found.notes
    differences = [each.diff(dim=-1).abs().sum().item() for each in (found.images, plain.images)]
    assert differences[0] < differences[1]


def test_the_expected_noise_is_asked_for_once_with_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def subtract(images: torch.Tensor, *rest: object, **named: Any) -> torch.Tensor:
        asked.append(named)
        return torch.zeros_like(images)

    monkeypatch.setattr("shadow_defense.attacks.adaptive.attack.subtract_expected_noise", subtract)
    seen = replace(defended(lenet(), "none"), _defense=DefenseSettings(defense="shadow"), rounds=20)
    found = settings("inverting-gradients", {}, iterations=1).build().reconstruct(seen, seed=5)
    assert asked == [{"rounds": 20, "seed": 5}]
    assert not found.images.any()
    assert "the noise that the defense is expected to add is subtracted" in found.notes
    kept = settings("inverting-gradients", {"subtract_noise": False}, iterations=1).build().reconstruct(seen, seed=5)
    assert kept.images.any() and len(asked) == 1
    without = replace(THREAT_MODELS["adaptive server"], granted=frozenset({"defense"}))
    found = (
        settings("inverting-gradients", {}, iterations=1)
        .build()
        .reconstruct(replace(seen, threat_model=without), seed=5)
    )
    assert "no generator is granted: the expected noise cannot be subtracted" in found.notes


def test_earlier_rounds_of_the_control_are_noise_too() -> None:
    seen = defended(lenet(), "none")
    before = replace(seen, update=replace(seen.update, round=7))
    noise = randomised(replace(seen, _earlier=(before,)), seed=0)
    name = "classifier.weight"
    now, then, true = (each.update.tensors[name] for each in (noise, noise.earlier[0], seen))
    assert not torch.equal(then, true) and not torch.equal(then, now)
    assert then.norm().item() == pytest.approx(true.norm().item(), rel=1e-5)


def test_expectation_over_draws_by_hand() -> None:
    drawn = iter([1.0, 2.0, 6.0])
    found = expected_training(lambda: SimulatedTraining([torch.tensor([next(drawn), 1.0])], []), 3)
    assert found.update[0].tolist() == [3.0, 1.0]


def test_inputs_are_solved_for_from_what_passed() -> None:
    """Half of the entries pruned: exact where a row is left, the mean where none is, and too dark without."""
    draws = torch.Generator().manual_seed(0)
    image, bias = torch.randn(6, generator=draws), torch.tensor([2.0, -1.0, 0.5])
    kept = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 1, 1]]).bool()
    weight = torch.where(kept, torch.outer(bias, image), 0.0)
    expected = torch.where(kept.any(0), image, 0.0)
    torch.testing.assert_close(leaked_input(weight, bias, kept), expected)
    assert (leaked_input(weight, bias) - expected).abs().max() > 0.1
