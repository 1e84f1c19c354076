"""What an attacker that knows the defense compares: at the truth it fits, and its gradient is a derivative."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.attacks.clients import SHAPE, SIDE, normalisation, observation, private, simulated
from torch import Tensor, nn
from torch.func import vmap

from shadow_defense.attacks.adaptive.distances import absolute_distance, orthogonality_distance
from shadow_defense.attacks.adaptive.fitting import adaptation_of
from shadow_defense.attacks.adaptive.matching import Mask, MatchingAdaptation
from shadow_defense.attacks.adaptive.scene import decay_factor, scene
from shadow_defense.attacks.adaptive.transforms import bounded, shifted, weighted
from shadow_defense.attacks.objectives import MATCHINGS, Matching, cosine_distance, squared_distance
from shadow_defense.attacks.observation import Observation
from shadow_defense.data.dataset import ImageSet
from shadow_defense.defenses.build import DefenseSettings, Resources
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings


def defended(name: str, *, labels: tuple[int, ...] = (1,), **options: Any) -> tuple[Observation, nn.Module]:
    """A round of one step under a defense, as the adaptive server sees it."""
    chosen = ModelSettings(name="convnet", normalisation="group", activation="gelu", width=8)
    model = build_model(chosen, channels=1, classes=2, image_size=(SIDE, SIDE), seed=0)
    settings = DefenseSettings(defense=name, options=options)
    nothing = ImageSet(torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ())
    defense = settings.build(Resources(None, normalisation(), nothing, 2, "site-1", 0))
    seen, _ = observation(model, labels, threat="adaptive server", defense=defense)
    return replace(seen, _defense=settings), model


def at_truth(seen: Observation, name: str, count: int = 1) -> tuple[float, float]:
    """The matching loss of the client's own images, as the attack has it and fitted to the defense."""
    target, found = simulated(seen, normalisation().apply(private(count)))
    fitted = adaptation_of(seen, 1).fitted(MATCHINGS[name])
    return MATCHINGS[name](found.update, target.observed).item(), fitted(found.update, target.observed).item()


@pytest.mark.parametrize("place", ["gradients", "update"])
@pytest.mark.parametrize(
    ("defense", "options", "matching"),
    [
        ("gradient-sparsification", {"percent": 99.0}, "layers"),
        ("gradient-sparsification", {"percent": 99.0, "scope": "global"}, "squares"),
        ("soteria", {"percent": 80.0}, "squares"),
        ("gradient-clipping", {"clip": 0.01}, "squares"),
        ("gradient-clipping", {"clip": 0.01}, "layers"),
        ("gradient-clipping", {"clip": 0.01, "scope": "tensor"}, "cosine"),
        ("gradient-clipping", {"clip": 0.01, "scope": "tensor"}, "squares"),
        ("sparse+clip", {"clip": {"clip": 0.01}}, "squares"),
        ("clip+sparse", {"clip": {"clip": 0.01, "scope": "tensor"}}, "squares"),
    ],
)
def test_the_true_image_fits_what_was_sent(defense: str, options: dict[str, Any], matching: str, place: str) -> None:
    """Deterministic defenses: what the attacker compares at the truth is equal, and was not."""
    parts = [part for part in ("sparse", "clip") if part in defense.split("+")]
    chosen = {part: {**options.get(part, {}), "place": place} for part in parts} or {**options, "place": place}
    seen, _ = defended(defense, **chosen)
    plain, fitted = at_truth(seen, matching)
    # The square root of what single precision leaves of a square.
    assert fitted < (1e-6 if matching != "layers" else 1e-3)
    assert plain > max(100 * fitted, 1e-4)


def test_a_cosine_keeps_three_tenths_of_what_zeros_say() -> None:
    """By hand: (3, 4) against (3, 0) is 3 (3, 1.2) against 3 (1, 0)."""
    mask = Mask([torch.tensor([True, False])], under_cosine=0.3)
    ours, theirs = [torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 0.0])]
    fitted = MatchingAdaptation((mask,)).fitted(cosine_distance)
    assert fitted(ours, theirs).item() == pytest.approx(1 - 3 / math.hypot(3, 1.2))
    assert MatchingAdaptation((mask,)).fitted(squared_distance)(ours, theirs).item() == 0
    plain, found = at_truth(defended("gradient-sparsification", percent=99.0)[0], "cosine")
    assert 0.01 < found < plain


def test_a_global_bound_is_nothing_to_a_cosine() -> None:
    seen, _ = defended("gradient-clipping", clip=0.01)
    plain, fitted = at_truth(seen, "cosine")
    assert plain == pytest.approx(fitted, abs=1e-6)
    assert "a cosine does not see a global bound" in adaptation_of(seen, 1).notes


def test_a_clip_that_was_not_active_leaves_the_norm_to_be_matched() -> None:
    """The known bound, not the observed norm: a longer candidate is not scaled to fit."""
    seen, _ = defended("gradient-clipping", clip=1000.0)
    target, found = simulated(seen, normalisation().apply(private()))
    fitted = adaptation_of(seen, 1).fitted(squared_distance)
    assert fitted(found.update, target.observed).item() == pytest.approx(0, abs=1e-6)
    assert fitted([2 * each for each in found.update], target.observed).item() == pytest.approx(1, rel=1e-3)


def test_soteria_leaves_out_the_pruned_columns_and_nothing_else() -> None:
    seen, model = defended("soteria", percent=80.0)
    name = next(reversed([key for key, layer in model.named_modules() if isinstance(layer, nn.Linear)])) + ".weight"
    support = adaptation_of(seen, 1).support
    zero = (seen.update.tensors[name] == 0).all(0)
    assert 0.7 < float(zero.double().mean()) < 0.9
    assert torch.equal(~support[name], zero.expand_as(support[name]))
    assert all(bool(mask.all()) for key, mask in support.items() if key != name)


@pytest.mark.parametrize("place", ["gradients", "update"])
def test_censored_tensors_are_orthogonal_to_the_truth_and_as_long(place: str) -> None:
    seen, _ = defended("censor", place=place)
    plain, fitted = at_truth(seen, "cosine")
    assert plain > 0.9
    assert fitted < 1e-5
    target, found = simulated(seen, torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)))
    assert orthogonality_distance(found.update, target.observed).item() > 0.01


def test_censor_by_hand() -> None:
    ours = [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]), torch.tensor([5.0])]
    theirs = [torch.tensor([10.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([0.0])]
    # cos 0.6, half as long; orthogonal, half as long; the third says nothing.
    assert orthogonality_distance(ours, theirs).item() == pytest.approx((0.36 + 0.25 + 0.25) / 2)


def test_rounds_that_censor_sends_raw_are_matched_as_they_are() -> None:
    seen, _ = defended("censor", protected_rounds=0)
    fitted = adaptation_of(seen, 1)
    assert not fitted.distances and not fitted.transforms
    assert fitted.notes == ("this round was sent as it is: nothing to fit",)


@pytest.mark.parametrize(
    ("defense", "options", "replaced"),
    [
        ("noise", {"scale": 0.01}, {"layers": squared_distance}),
        ("noise", {"distribution": "laplace"}, {"layers": absolute_distance, "squares": absolute_distance}),
        ("noise", {"scale": 0.0}, {}),
        ("local-dp", {}, {"layers": squared_distance}),
        ("dp-sgd", {}, {"layers": squared_distance}),
        ("optimal-noise", {}, {"layers": squared_distance}),
        ("censor", {}, dict.fromkeys(MATCHINGS, orthogonality_distance)),
        ("gradient-clipping+noise", {}, {"layers": squared_distance}),
        ("gradient-sparsification", {}, {}),
        ("none", {}, {}),
    ],
)
def test_noise_is_matched_by_its_likelihood(
    defense: str, options: dict[str, Any], replaced: dict[str, Matching]
) -> None:
    """A cosine stays, which is squares with the length left free."""
    seen = replace(defended("none")[0], _defense=DefenseSettings(defense=defense, options=options))
    fitted = replace(adaptation_of(seen, 1), transforms=())
    for name, own in MATCHINGS.items():
        assert fitted.fitted(own) is replaced.get(name, own)


def test_the_likelihood_of_laplace_noise_by_hand() -> None:
    ours, theirs = [torch.tensor([1.0, -1.0]), torch.tensor([4.0])], [torch.tensor([3.0, 1.0]), torch.tensor([4.0])]
    assert absolute_distance(ours, theirs).item() == pytest.approx(4 / 8)
    whitened, target = weighted([0.5, 3.0])(ours, theirs)
    assert absolute_distance(whitened, target).item() == pytest.approx(2 / 14)
    assert squared_distance(whitened, target).item() == pytest.approx(2 / (2.5 + 144))


def test_local_dp_clips_what_is_simulated() -> None:
    """Without its noise the update is that of clipping: the truth fits."""
    seen, _ = defended("gradient-clipping", clip=0.01, place="update")
    known = DefenseSettings(defense="local-dp", options={"clip": 0.01})
    plain, fitted = at_truth(replace(seen, _defense=known), "squares")
    assert fitted < 1e-6 < 1e-3 < plain


def test_outpost_is_weighed_by_the_variances_of_the_global_model() -> None:
    """sigma_l = lambda min(Var(theta_l), 1); biases and scales start equal and have none."""
    seen, model = defended("outpost", decay=0.0, noise=0.5)
    fitted = adaptation_of(seen, 1)
    assert len(fitted.transforms) == 2
    ones = [torch.ones_like(each) for each in model.parameters()]
    weights = [float(each.flatten()[0]) for each in fitted.transforms[1](ones, ones)[0]]
    deviations = [0.5 * float(each.detach().var()) if each.numel() > 1 else 0.0 for each in model.parameters()]
    largest = max(deviations)
    assert weights == pytest.approx([largest / max(each, largest / 10) for each in deviations])
    assert max(weights) == pytest.approx(10) and min(weights) == pytest.approx(1)
    for mask, (name, _) in zip(fitted.support.values(), model.named_parameters(), strict=True):
        assert torch.equal(mask, seen.update.tensors[name] != 0)


def test_a_dense_step_of_outpost_is_known_to_be_raw() -> None:
    seen, _ = defended("none")
    seen = replace(seen, _defense=DefenseSettings(defense="outpost"))
    fitted = adaptation_of(seen, 1)
    assert not fitted.transforms and "this step was not perturbed" in fitted.notes[0]


@pytest.mark.parametrize("defense", ["ats", "mixup", "instahide", "dcs", "grad-defense", "precode", "shadow"])
def test_what_cannot_be_fitted_is_said(defense: str) -> None:
    seen = replace(defended("none")[0], _defense=DefenseSettings(defense=defense))
    fitted = adaptation_of(seen, 3)
    assert not fitted.transforms and not fitted.distances and len(fitted.notes) == 1
    assert fitted.draws == (3 if defense == "precode" else 1)


def test_without_the_learning_rate_sizes_are_not_compared() -> None:
    seen, _ = defended("noise", scale=0.01)
    blind = replace(seen.threat_model, granted=frozenset({"defense", "labels"}))
    seen = replace(seen, threat_model=blind, _local_training=None)
    fitted = adaptation_of(seen, 1)
    assert not fitted.distances and "size is not known" in fitted.notes[0]


def with_decay(seen: Observation, local: LocalTraining) -> Observation:
    """The same round with weight decay, which comes after the defense: on top of each step's protected gradient."""
    parameters = dict(seen.model.named_parameters())
    tensors = dict(seen.update.tensors)
    for name in parameters:
        start = seen.global_state[name]
        after = start + tensors[name] - local.learning_rate * local.weight_decay * start
        tensors[name] = after - start
    return replace(seen, update=replace(seen.update, tensors=tensors), _local_training=local)


@pytest.mark.parametrize("defense", ["gradient-sparsification", "gradient-clipping"])
def test_weight_decay_hides_neither_zeros_nor_bound(defense: str) -> None:
    options = {"percent": 95.0} if defense == "gradient-sparsification" else {"clip": 0.01}
    seen, _ = defended(defense, **options)
    zeros = scene(seen, "gradients").share_of_zeros()
    seen = with_decay(seen, replace(seen.local_training, weight_decay=0.01))
    assert scene(seen, "gradients").share_of_zeros() == pytest.approx(zeros, abs=0.01)
    plain, fitted = at_truth(seen, "squares")
    assert fitted < 1e-4 < 1e-2 < plain


def test_decay_factor_is_that_of_sgd() -> None:
    """Against torch's own optimiser, with gradients of zero."""
    local = LocalTraining(0.1, 4, 3, momentum=0.9, weight_decay=0.2)
    value = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([value], lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        value.grad = torch.zeros_like(value)
        optimiser.step()
    assert decay_factor(local) == pytest.approx(value.item() - 1, rel=1e-12)
    assert decay_factor(replace(local, weight_decay=0.0)) == 0


DRAWS = torch.Generator().manual_seed(3)
PARTS = [torch.randn(4, 3, generator=DRAWS, dtype=torch.float64), torch.randn(5, generator=DRAWS, dtype=torch.float64)]
OTHERS = [torch.randn_like(each) for each in PARTS]
MASKS = [each > -0.3 for each in PARTS]

ADAPTED: dict[str, Matching] = {
    "mask": MatchingAdaptation((Mask(MASKS),)).fitted(squared_distance),
    "soft mask": MatchingAdaptation((Mask(MASKS, 0.3),)).fitted(cosine_distance),
    "bound": MatchingAdaptation((bounded([0.7], "global"),)).fitted(squared_distance),
    "bounds": MatchingAdaptation((bounded([0.7, 0.2], "tensor"),)).fitted(cosine_distance),
    "weights": MatchingAdaptation((weighted([0.5, 3.0]),)).fitted(squared_distance),
    "shift": MatchingAdaptation((shifted(OTHERS), bounded([2.0], "global"))).fitted(squared_distance),
    "absolute": absolute_distance,
    "orthogonality": orthogonality_distance,
}


@pytest.mark.parametrize("name", ADAPTED)
def test_gradients_are_derivatives_and_candidates_can_be_mapped(name: str) -> None:
    """Finite differences in double precision; a batch of candidates gives what each gives alone."""
    observed = [each + 0.5 for each in OTHERS]

    def loss(*tensors: Tensor) -> Tensor:
        return ADAPTED[name](tensors, observed)

    tensors = tuple(each.clone().requires_grad_() for each in PARTS)
    assert torch.autograd.gradcheck(loss, tensors)
    candidates = tuple(torch.stack([each, -2 * each, 0.1 * each]) for each in PARTS)
    alone = torch.stack([loss(*(each[index] for each in candidates)) for index in range(3)])
    torch.testing.assert_close(vmap(loss)(*candidates), alone)
    assert alone.unique().numel() > 1


def test_a_candidate_of_nothing_is_scaled_to_nothing() -> None:
    zeros = [torch.zeros(3, requires_grad=True)]
    scaled, _ = bounded([1.0], "global", 0.0)(zeros, zeros)
    (gradient,) = torch.autograd.grad(scaled[0].sum(), zeros)
    assert torch.isfinite(gradient).all()


def test_several_steps_of_clipping_are_bound_by_what_was_observed() -> None:
    seen, _ = defended("gradient-clipping", clip=0.01)
    several = replace(seen, _local_training=replace(seen.local_training, steps=2))
    observed = [seen.update.tensors[name] for name, _ in seen.model.named_parameters()]
    norm = torch.cat([each.flatten() for each in observed]).norm()
    scaled, _ = adaptation_of(several, 1).transforms[0]([10 * each for each in observed], observed)
    assert torch.cat([each.flatten() for each in scaled]).norm().item() == pytest.approx(norm.item(), rel=1e-5)
