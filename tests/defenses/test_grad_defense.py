"""GradDefense: sensitivities and slices computed by hand, the pseudo-code atom by atom, where the noise falls."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.grad_defense import GRAD_DEFENSE_PRESETS, GradDefense, GradDefenseSettings
from shadow_defense.defenses.sensitive_slices import (
    add_to_slices,
    balanced_choice,
    clip_slices,
    equal_slices,
    tensor_sensitivities,
)
from shadow_defense.errors import DataError, DefenseError
from shadow_defense.models.functional import split_state
from shadow_defense.seeds import named_generator

Build = Callable[..., nn.Module]
NORMALISATION = Normalisation((0.5,), (0.25,))


def public(count: int = 12, classes: int = 2) -> ImageSet:
    draws = torch.Generator().manual_seed(9)
    images = torch.randint(0, 256, (count, 1, 16, 16), generator=draws, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes, tuple(f"public/{index}" for index in range(count)))


def made(seed: int = 0, images: ImageSet | None = None, **settings: Any) -> GradDefense:
    chosen = GradDefenseSettings(**settings)
    return GradDefense(chosen, public() if images is None else images, NORMALISATION, 2, seed)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context_of(model: nn.Module, round: int = 0) -> RoundContext:
    return RoundContext(model, model.state_dict(), F.cross_entropy, round, 10, 0.1)


@pytest.mark.parametrize(
    ("sizes", "sensitivities", "count", "expected"),
    [
        # Atoms of 2 weigh 2, 2, 1, 3, in all 8: marks of 2, 4 and 8.
        ([4, 2, 2], [4.0, 1.0, 3.0], 4, [(0, 2), (2, 4), (4, 8)]),
        ([4, 2, 2], [4.0, 1.0, 3.0], 2, [(0, 4), (4, 8)]),
        ([4, 2, 2], [4.0, 1.0, 3.0], 1, [(0, 8)]),
        # Ten equal atoms of 0.1: rounding does not shift a border.
        ([7, 3], [0.7, 0.3], 10, [(index, index + 1) for index in range(10)]),
        # Mark 5: the atom of weight 8 overshoots it, and the rest of 2 is the last slice.
        ([1, 1, 1], [8.0, 1.0, 1.0], 2, [(0, 1), (1, 3)]),
        # All the weight in front: two slices of the first tensor, the last with all that weighs nothing.
        ([6, 4], [6.0, 0.0], 2, [(0, 4), (4, 10)]),
        ([4, 4], [0.0, 0.0], 4, [(0, 4), (4, 8)]),
        ([5], [1.0], 10, [(0, 5)]),
    ],
)
def test_slices_by_hand(
    sizes: list[int], sensitivities: list[float], count: int, expected: list[tuple[int, int]]
) -> None:
    assert equal_slices(sizes, sensitivities, count) == expected


def naive_slices(sizes: list[int], sensitivities: list[float], count: int) -> list[tuple[int, int]]:
    """Section 7's pseudo-code, atom by atom."""
    atom = math.gcd(*sizes)
    weights = [
        Fraction(value) / (size // atom)
        for size, value in zip(sizes, sensitivities, strict=True)
        for _ in range(size // atom)
    ]
    slices, opened, filled = [], 0, Fraction(0)
    for index, weight in enumerate(weights):
        filled += weight
        if filled >= sum(map(Fraction, sensitivities)) / count * (1 - Fraction(1, 10**9)) and len(slices) < count - 1:
            slices.append((opened * atom, (index + 1) * atom))
            opened, filled = index + 1, Fraction(0)
    return slices + ([(opened * atom, len(weights) * atom)] if opened < len(weights) else [])


@given(
    tensors=st.lists(
        st.tuples(st.integers(1, 12), st.one_of(st.just(0.0), st.floats(1e-6, 1e6))), min_size=1, max_size=6
    ),
    atom=st.integers(1, 3),
    count=st.integers(1, 12),
)
def test_slices_are_those_of_the_pseudo_code_and_leave_nothing_out(
    tensors: list[tuple[int, float]], atom: int, count: int
) -> None:
    sizes, sensitivities = [atom * size for size, _ in tensors], [value for _, value in tensors]
    slices = equal_slices(sizes, sensitivities, count)
    assert 1 <= len(slices) <= count
    assert slices[0][0] == 0 and slices[-1][1] == sum(sizes)
    assert all(first[1] == second[0] for first, second in pairwise(slices))
    assert all(start < stop for start, stop in slices)
    if any(sensitivities):
        assert slices == naive_slices(sizes, sensitivities, count)


def squared_error(outputs: Tensor, wanted: Tensor) -> Tensor:
    return (outputs[:, 0] - wanted).square().mean()


def test_sensitivities_by_hand() -> None:
    """f = w x + b, loss f^2, w = (3, 1), b = 0: the sum of g_w is 2 f (x1 + x2), its slope 2 ((x1 + x2) w + f).

    At x = (1, 2) that is (28, 16); g_b = 2 f has the slope 2 w = (6, 2) everywhere. At x = 0 only the latter stays.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
    model[1].weight.data, model[1].bias.data = torch.tensor([[3.0, 1.0]]), torch.zeros(1)
    images = torch.tensor([[1.0, 2.0], [0.0, 0.0]]).reshape(2, 1, 1, 2)
    parameters, buffers = split_state(model, model)
    found = tensor_sensitivities(model, parameters, buffers, images, torch.zeros(2, dtype=torch.int64), squared_error)
    assert found == {"1.weight": pytest.approx(math.sqrt(1040) / 2), "1.bias": pytest.approx(math.sqrt(40))}


@pytest.mark.slow
def test_sensitivities_against_finite_differences_image_by_image(build: Build) -> None:
    """Twelve images: more than are differentiated at once."""
    model = build("batch").double().eval()
    parameters, buffers = split_state(model, model)
    images = torch.randn(12, 1, 16, 16, generator=seeded(), dtype=torch.float64)
    labels, name = torch.arange(12) % 2, "features.conv3.weight"
    found = tensor_sensitivities(model, parameters, buffers, images, labels, F.cross_entropy)

    def sum_of_gradient(image: Tensor, label: Tensor) -> float:
        loss = F.cross_entropy(model(image[None]), label[None])
        return torch.autograd.grad(loss, dict(model.named_parameters())[name])[0].sum().item()

    single = [
        tensor_sensitivities(model, parameters, buffers, image[None], label[None], F.cross_entropy)[name]
        for image, label in zip(images, labels, strict=True)
    ]
    assert found[name] == pytest.approx(sum(single) / 12, rel=1e-9)
    # The slope of one image, by central differences, pixel by pixel.
    squares = 0.0
    for pixel in range(256):
        step = torch.zeros(256, dtype=torch.float64)
        step[pixel] = 1e-4
        shift = step.reshape(1, 16, 16)
        ends = [sum_of_gradient(images[0] + sign * shift, labels[0]) for sign in (1, -1)]
        squares += ((ends[0] - ends[1]) / 2e-4) ** 2
    assert single[0] == pytest.approx(math.sqrt(squares), rel=1e-5)


def test_the_last_layer_counts_as_insensitive(build: Build) -> None:
    """Probabilities less labels add up to zero over the classes, for every image."""
    model = build().double().eval()
    images = torch.randn(4, 1, 16, 16, generator=seeded(), dtype=torch.float64)
    found = tensor_sensitivities(model, *split_state(model, model), images, torch.arange(4) % 2, F.cross_entropy)
    assert found["classifier.weight"] < 1e-9 * found["features.conv4.weight"]
    assert min(value for name, value in found.items() if "classifier" not in name and "bias" not in name) > 0


def test_the_root_set_is_balanced_over_classes() -> None:
    labels = torch.tensor([0] * 30 + [1] * 4 + [2] * 6)
    chosen = balanced_choice(labels, 12, seeded())
    assert len(set(chosen)) == 12 and labels[chosen].bincount().tolist() == [4, 4, 4]
    assert labels[balanced_choice(labels, 15, seeded())].bincount().tolist() in ([6, 4, 5], [5, 4, 6])
    assert sorted(balanced_choice(labels, 50, seeded())) == list(range(40))
    assert chosen == balanced_choice(labels, 12, seeded()) != balanced_choice(labels, 12, seeded(1))


def test_noise_falls_on_the_slices_only_and_is_gaussian() -> None:
    tensors = {"a": torch.ones(100, 60), "b": torch.ones(4000, dtype=torch.float64), "c": torch.ones(())}
    sent = add_to_slices(tensors, [(1000, 3000), (5000, 9000)], 0.3, seeded())
    noise = torch.cat([(sent[name] - tensor).double().flatten() for name, tensor in tensors.items()])
    inside = torch.zeros(10001, dtype=torch.bool)
    inside[1000:3000] = inside[5000:9000] = True
    assert torch.equal(noise != 0, inside)
    assert stats.kstest(noise[inside].numpy(), stats.norm(scale=0.3).cdf).pvalue > 0.01
    assert all(
        sent[name].dtype == tensor.dtype and sent[name].shape == tensor.shape for name, tensor in tensors.items()
    )


@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), sigma=st.sampled_from([0.0, 1.0]))
def test_without_noise_or_slices_it_is_the_identity_without_aliasing(values: list[float], sigma: float) -> None:
    given_tensors = {"a": torch.tensor(values), "b": torch.ones(2, 1)}
    before = copy.deepcopy(given_tensors)
    same = add_to_slices(given_tensors, [(0, 2)] if sigma == 0 else [], sigma, seeded())
    for name, tensor in same.items():
        assert torch.equal(tensor, before[name])
        tensor += 1
        assert torch.equal(given_tensors[name], before[name])


def test_slices_of_single_images_are_clipped_by_hand() -> None:
    """(3, 4 | 1) and (0, .5 | 2), clipped to 1 on the first two entries: (.6, .8 | 1) and the second as it is."""
    gradients = {"a": torch.tensor([[3.0, 4.0], [0.0, 0.5]]), "b": torch.tensor([1.0, 2.0])}
    before = copy.deepcopy(gradients)
    found = clip_slices(gradients, [(0, 2)], 1.0)
    torch.testing.assert_close(found["a"], torch.tensor([0.3, 0.65]), rtol=1e-5, atol=0)
    assert found["b"].shape == () and found["b"].item() == 1.5
    assert all(torch.equal(gradients[name], before[name]) for name in gradients)


@pytest.mark.parametrize("place", ["gradients", "update"])
def test_in_training_noise_is_on_the_chosen_slices_of_the_models_sensitivity(
    local_round: Callable[..., object], build: Build, place: str
) -> None:
    plain = local_round(normalisation="batch").update.tensors
    defense = made(3, slices=6, noised_slices=2, noise=0.5, place=place, root_images=8)
    assert defense.acts_on == {place}
    result = local_round(defense, normalisation="batch")
    model = build("batch").eval()
    root = public().subset(balanced_choice(public().labels, 8, named_generator(3, "grad-defense", "root")))
    found = tensor_sensitivities(
        model, *split_state(model, model), NORMALISATION.apply(root.unit_images()), root.labels, F.cross_entropy
    )
    names = [name for name, _ in model.named_parameters()]
    slices = equal_slices([plain[name].numel() for name in names], [found[name] for name in names], 6)
    draws = named_generator(3, "grad-defense", 0, 0)
    chosen = sorted(torch.randperm(len(slices), generator=draws)[:2].tolist())
    expected = add_to_slices(
        {name: torch.zeros_like(plain[name]) for name in names}, [slices[index] for index in chosen], 0.5, draws
    )
    entries = sum(plain[name].numel() for name in names)
    for name, tensor in result.update.tensors.items():
        if name in names:
            shift = expected[name] * (1 if place == "update" else -0.1)
            torch.testing.assert_close(tensor, plain[name] + shift, rtol=1e-5, atol=2e-6)
        else:
            assert torch.equal(tensor, plain[name])
    share = sum(stop - start for start, stop in (slices[index] for index in chosen)) / entries
    assert result.measurements["noised_share"] == pytest.approx(share) and 0 < share < 1
    assert result.measurements["slices"] == len(slices)
    assert 0 < result.measurements["cosine"] < 0.9


def test_slices_hold_about_the_same_sensitivity(build: Build) -> None:
    """Not the same number of parameters, which is what would hide the early layers less."""
    model = build().eval()
    images = torch.randn(6, 1, 16, 16, generator=seeded())
    found = tensor_sensitivities(model, *split_state(model, model), images, torch.arange(6) % 2, F.cross_entropy)
    sizes = [parameter.numel() for _, parameter in model.named_parameters()]
    weights = torch.cat([torch.full((n,), found[name] / n) for n, name in zip(sizes, found, strict=True)]).double()
    slices = equal_slices(sizes, list(found.values()), 5)
    sums = [weights[start:stop].sum().item() / weights.sum().item() for start, stop in slices]
    lengths = [stop - start for start, stop in slices]
    assert len(slices) == 5 and max(lengths) > 3 * min(lengths)
    assert all(abs(share - 0.2) < 0.1 for share in sums)


def test_messages_draw_their_own_slices_and_noise_and_can_be_drawn_again(build: Build) -> None:
    model = build()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.named_parameters()}
    batch = Batch(torch.zeros(1, 1, 16, 16), torch.tensor([0]), ("a",))

    def noise(seed: int, round: int) -> list[Tensor]:
        defense = made(seed, noise=1.0)
        defense.begin_round(context_of(model, round))
        messages = [defense.protect_gradients(zeros, batch, context_of(model, round)) for _ in range(3)]
        return [torch.cat([tensor.flatten() for tensor in message.values()]) for message in messages]

    random_state = torch.get_rng_state()
    runs = [noise(seed, round) for seed, round in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(first, again) for first, again in zip(runs[0], runs[3], strict=True))
    drawn = [message for run in runs[:3] for message in run]
    assert len({tuple(message[message != 0][:50].tolist()) for message in drawn}) == 9
    assert len({tuple((message != 0).tolist()) for message in drawn}) > 3


@pytest.mark.parametrize("settings", [{"noise": 0.0}, {"noised_slices": 0, "noise": 1.0}])
def test_at_zero_strength_training_is_plain(local_round: Callable[..., object], settings: dict[str, Any]) -> None:
    plain = local_round(count=4, batch_size=2).update.tensors
    sent = local_round(made(**settings), count=4, batch_size=2).update.tensors
    assert all(torch.equal(tensor, plain[name]) for name, tensor in sent.items())


def test_single_images_are_clipped_before_the_noise(build: Build) -> None:
    """One slice of everything: the mean of gradients scaled to sigma, and the noise of the named generator."""
    model = build()
    images, labels = torch.randn(12, 1, 16, 16, generator=seeded()), torch.arange(12) % 2
    defense = made(clip=True, slices=1, noised_slices=1, noise=0.05)
    context = context_of(model)
    defense.begin_round(context)
    names, parameters = zip(*model.named_parameters(), strict=True)
    raw = dict(zip(names, torch.autograd.grad(F.cross_entropy(model(images), labels), parameters), strict=True))
    sent = defense.protect_gradients(raw, Batch(images, labels, tuple(map(str, range(12)))), context)
    draws = named_generator(0, "grad-defense", 0, 0)
    torch.randperm(1, generator=draws)
    total = sum(parameter.numel() for parameter in parameters)
    expected = 0.05 * torch.randn(total, generator=draws)
    for image, label in zip(images, labels, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), parameters)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        assert flat.norm() > 0.05
        expected += flat / flat.norm() * 0.05 / 12
    found = torch.cat([sent[name].flatten() for name in names])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)


def test_the_model_is_left_as_it_was(build: Build) -> None:
    model = build("batch").train()
    model.features.norm1.eval()
    model.features.conv0.weight.requires_grad_(False)
    model.features.add_module("dropout", nn.Dropout(0.5))
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    first, second = made(), made()
    with torch.no_grad():
        first.begin_round(context_of(model))
    second.begin_round(context_of(model))
    assert first._sensitivities == second._sensitivities and "features.conv0.weight" not in first._sensitivities
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not model.features.conv0.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tensors_that_stay_with_the_client_and_the_mappings_order_do_not_matter(build: Build) -> None:
    model = build("batch")
    update = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items() if "norm" not in name}
    results = []
    for given_update in (update, dict(reversed(update.items()))):
        defense = made(place="update", noise=1.0, slices=1, noised_slices=1)
        defense.begin_round(context_of(model))
        results.append(defense.protect_update(given_update, context_of(model)))
    assert results[0].keys() == update.keys()
    assert all(tensor.all() and torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_what_cannot_work_is_said(build: Build) -> None:
    with pytest.raises(DefenseError, match=r"public images and has none: raise data.public_fraction"):
        made(images=public(0)).check_model(build())
    with pytest.raises(DataError, match=r"the public images of grad-defense: label 2 .* expected 0 to 1"):
        made(images=public(3, classes=3)).check_model(build())
    with pytest.raises(DefenseError, match=r"batch norm \('features.norm0'\).*clip=false"):
        made(clip=True).check_model(build("batch"))
    made(images=public(1)).check_model(build("batch"))
    made(clip=True).check_model(build())
    with pytest.raises(ValueError, match="11 of 10 slices"):
        GradDefenseSettings(noised_slices=11)
    with pytest.raises(ValueError, match="set place=gradients"):
        GradDefenseSettings(clip=True, place="update")
    broken = build()
    broken.classifier.weight.data.fill_(math.inf)
    with pytest.raises(DefenseError, match="is not finite"):
        made().begin_round(context_of(broken))


def test_presets() -> None:
    paper = GradDefenseSettings(**GRAD_DEFENSE_PRESETS["paper"])
    assert (paper.slices, paper.noised_slices, paper.noise, paper.root_images) == (10, 5, 5e-4, 50)
    assert GradDefenseSettings(**GRAD_DEFENSE_PRESETS["strong"]).noise == 0.01
    assert GradDefenseSettings(**GRAD_DEFENSE_PRESETS["weak"]).noise == 5e-5
