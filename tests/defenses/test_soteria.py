"""Soteria: numbers worked out by hand, a naive score, the columns it zeroes, the model it leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.soteria import (
    SOTERIA_PRESETS,
    SoteriaDefense,
    SoteriaSettings,
    defended_layer,
    feature_scores,
    kept_columns,
    layer_inputs,
    prune_columns,
)
from shadow_defense.errors import DefenseError
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

Build = Callable[..., nn.Module]
TOY_IMAGE = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)


def toy() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.Linear(2, 2))
    values = [[[1.0, 0.0], [1.0, 1.0]], [0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.0]]
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.data = torch.tensor(value)
    return model


def images(count: int = 3, side: int = 16) -> Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(3))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("epsilon", "scores", "threshold"),
    [(0.0, [1.0, 0.4714045], 0.7357023), (0.1, [0.9090909, 0.4561979], 0.6826444)],
)
@pytest.mark.parametrize("denominator", ["magnitude", "signed"])
def test_numbers_of_the_specification(epsilon: float, scores: list[float], threshold: float, denominator: str) -> None:
    model = toy()
    found = feature_scores(model, state_of(model), TOY_IMAGE, "2", epsilon=epsilon, denominator=denominator)
    torch.testing.assert_close(found, torch.tensor(scores), rtol=1e-6, atol=0)
    assert torch.quantile(found, 0.5).item() == pytest.approx(threshold, rel=1e-6)
    kept = kept_columns(found, 50.0)
    assert kept.tolist() == [True, False]
    loss = F.cross_entropy(model(TOY_IMAGE), torch.tensor([0]))
    names = [name for name, _ in model.named_parameters()]
    gradients = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    pruned = prune_columns(gradients, "2", kept)
    assert pruned["2.weight"].tolist() == [[-0.5, 0.0], [0.5, 0.0]]
    expected = {"1.weight": [[-0.5, -1.0], [0.5, 1.0]], "1.bias": [-0.5, 0.5], "2.bias": [-0.5, 0.5]}
    for name, value in expected.items():
        torch.testing.assert_close(pruned[name], torch.tensor(value))
    # The first layer still gives the image away.
    torch.testing.assert_close(pruned["1.weight"][0] / pruned["1.bias"][0], TOY_IMAGE.flatten())


def naive_scores(model: nn.Module, pictures: Tensor, layer: str, epsilon: float, signed: bool) -> Tensor:
    """One image and one feature at a time, through a copy of the model in eval mode."""
    twin = copy.deepcopy(model).eval()
    kept: list[Tensor] = []
    twin.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    rows = []
    for picture in pictures:
        x = picture[None].clone().requires_grad_()
        twin(x)
        features = kept[-1][0]
        row = []
        for value in features:
            (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
            below = value.item() if signed else abs(value.item())
            row.append(gradient.norm().item() / (below + epsilon) if gradient.norm() > 0 else 0.0)
        rows.append(row)
    return torch.tensor(rows).sum(0)


@pytest.mark.parametrize("normalisation", ["batch", "group", "none"])
@pytest.mark.parametrize("signed", [False, True])
def test_scores_against_one_feature_at_a_time(build: Build, normalisation: str, signed: bool) -> None:
    model = build(normalisation)
    if normalisation == "batch":
        # Statistics other than the initial ones, in a model in train mode.
        model(5 * images(8) + 1)
    model.train()
    denominator = "signed" if signed else "magnitude"
    found = feature_scores(
        model, state_of(model), images(), "classifier", epsilon=0.3, denominator=denominator, chunk=7
    )
    expected = naive_scores(model, images(), "classifier", 0.3, signed)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-5)


def test_the_chunk_does_not_matter_and_samples_add_up(build: Build) -> None:
    model = build("batch")
    state = state_of(model)
    whole = feature_scores(model, state, images(4), "classifier", chunk=64)
    torch.testing.assert_close(feature_scores(model, state, images(4), "classifier", chunk=1), whole)
    parts = [feature_scores(model, state, part, "classifier") for part in images(4).split([1, 3])]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.slow
def test_resnet_by_name() -> None:
    model = build_model(ModelSettings(normalisation="batch"), channels=1, classes=2, image_size=(8, 8), seed=0)
    assert defended_layer(model) == "fc"
    scores = feature_scores(model, state_of(model), images(1, 8), "fc", chunk=128)
    assert scores.shape == (512,) and (scores >= 0).all()
    some = scores.topk(3).indices.tolist() + scores.topk(3, largest=False).indices.tolist()
    twin = copy.deepcopy(model).eval()
    x = images(1, 8).requires_grad_()
    features = layer_inputs(twin, state_of(model), x, "fc")
    for index in some:
        (gradient,) = torch.autograd.grad(features[:, index].sum(), x, retain_graph=True)
        expected = (gradient.flatten(1).norm(dim=1) / (features[:, index].abs() + 0.1)).sum()
        assert scores[index].item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_dead_unit_scores_zero_and_what_is_not_finite_is_said() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[1].weight.data = torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    model[1].bias.data = torch.zeros(2)
    for epsilon in (0.0, 0.1):
        scores = feature_scores(model, state_of(model), TOY_IMAGE, "3", epsilon=epsilon)
        torch.testing.assert_close(scores, torch.tensor([1 / (1 + epsilon), 0.0]))
    model = toy()
    model[1].weight.data = torch.tensor([[2.0, -1.0], [1.0, 1.0]])
    with pytest.raises(DefenseError, match="epsilon above 0") as raised:
        feature_scores(model, state_of(model), TOY_IMAGE, "2", epsilon=0.0)
    assert "\n" not in str(raised.value)


def test_the_signed_percentile_prunes_less_where_features_have_both_signs() -> None:
    """tau = q_50 of (-4, -1, 1, 2) is 0: nothing is below it in magnitude."""
    assert kept_columns(torch.tensor([-4.0, -1.0, 1.0, 2.0]), 50.0).all()
    assert kept_columns(torch.tensor([-0.4, 1.0, 2.0]), 50.0).tolist() == [False, True, True]


@given(
    scores=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32)),
    percent=st.sampled_from([0.0, 1.0, 10.0, 33.3, 50.0, 60.0, 80.0, 100.0]),
)
def test_columns_against_numpy(scores: np.ndarray, percent: float) -> None:
    exact = scores.astype(np.float64)
    expected = np.abs(exact) >= np.percentile(exact, percent)
    assert kept_columns(torch.from_numpy(scores), percent).tolist() == expected.tolist()


def test_zero_percent_is_the_identity_and_nothing_is_aliased() -> None:
    tensors = {"fc.weight": torch.randn(2, 5), "fc.bias": torch.randn(2), "other.weight": torch.randn(3, 5)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    scores = torch.tensor([0.0, 3.0, 1.0, 1.0, 2.0])
    for percent in (0.0, 50.0):
        pruned = prune_columns(tensors, "fc", kept_columns(scores, percent))
        assert list(pruned) == list(tensors)
        for name, tensor in pruned.items():
            if percent == 0 or name != "fc.weight":
                assert torch.equal(tensor, before[name])
            tensor += 1
            assert torch.equal(tensors[name], before[name])


def test_the_model_is_left_as_it_was(build: Build) -> None:
    model = build("batch").train()
    model.features.norm1.eval()
    model.features.conv0.weight.requires_grad_(False)
    model.features.add_module("dropout", nn.Dropout(0.5))
    before, modes = state_of(model), [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    with torch.no_grad():
        first = feature_scores(model, model.state_dict(), images(), "classifier")
    torch.testing.assert_close(feature_scores(model, model.state_dict(), images(), "classifier"), first)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_are_found_by_name() -> None:
    model = nn.Sequential()
    for name, layer in [("pixels", nn.Flatten()), ("first", nn.Linear(4, 3)), ("head", nn.Linear(3, 2))]:
        model.add_module(name, layer)
    assert defended_layer(model) == "head"
    assert defended_layer(model, "first") == "first"
    SoteriaDefense(SoteriaSettings(layer="first")).check_model(model)
    with pytest.raises(DefenseError, match=r"did you mean 'head'.*first, head"):
        SoteriaDefense(SoteriaSettings(layer="haed")).check_model(model)
    with pytest.raises(DefenseError, match="valid are: first, head"):
        defended_layer(model, "pixels")
    model.head.weight.requires_grad_(False)
    with pytest.raises(DefenseError, match="'head', whose weight is frozen"):
        defended_layer(model)
    with pytest.raises(DefenseError, match=r"Sequential has none.*another defense"):
        SoteriaDefense(SoteriaSettings()).check_model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))


class Rows(nn.Module):
    """A linear layer on every row of pixels, as a transformer has it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.rows(images[:, 0]).mean(1)


def test_one_vector_an_image_is_expected() -> None:
    model = Rows()
    with pytest.raises(DefenseError, match=r"one vector an image to enter layer 'rows'.*\(2, 4, 4\) for 2 images"):
        feature_scores(model, state_of(model), images(2, 4), "rows")


@pytest.mark.parametrize("normalisation", ["group", "batch"])
def test_one_step_in_training_zeroes_exactly_the_columns_of_least_score(
    local_round: Callable[..., object], build: Build, client: Callable[..., object], normalisation: str
) -> None:
    """What an adaptive attacker sees: at p = 50 half of one weight's columns are zero and all else is untouched."""
    plain = local_round(normalisation=normalisation).update.tensors
    defense = SoteriaDefense(SoteriaSettings(percent=50))
    result = local_round(defense, normalisation=normalisation)
    pictures = (client().train.images.float() / 255 - 0.5) / 0.25
    model = build(normalisation).train()
    # The training pass has moved the running statistics by the time that the gradients are there.
    model(pictures)
    scores = naive_scores(model, pictures, "classifier", 0.1, False)
    columns = scores < np.percentile(scores.numpy(), 50)
    assert columns.sum() == len(columns) // 2
    for name, tensor in result.update.tensors.items():
        if name == "classifier.weight":
            assert (tensor[:, columns] == 0).all() and (plain[name][:, columns] != 0).any()
            assert torch.equal(tensor[:, ~columns], plain[name][:, ~columns])
        else:
            assert torch.equal(tensor, plain[name]), name
    assert result.measurements == {"pruned_share": pytest.approx(0.5)}
    assert defense.acts_on == {"gradients"}


def zero_columns(tensor: Tensor) -> Tensor:
    return (tensor == 0).all(0)


@pytest.mark.slow
def test_an_update_gets_one_mask_from_all_images_at_the_global_model(
    local_round: Callable[..., object], build: Build, client: Callable[..., object]
) -> None:
    settings = {"count": 5, "batch_size": 2, "local_epochs": 2}
    plain = local_round(**settings).update.tensors
    defense = SoteriaDefense(SoteriaSettings(percent=50, place="update"))
    assert defense.acts_on == {"update"}
    result = local_round(defense, **settings)
    # Five images, each once, although there are two epochs; the local model has moved, the scores have not.
    pictures = (client(5).train.images.float() / 255 - 0.5) / 0.25
    scores = naive_scores(build(), pictures, "classifier", 0.1, False)
    columns = scores < np.percentile(scores.numpy(), 50)
    for name, tensor in result.update.tensors.items():
        if name == "classifier.weight":
            assert torch.equal(zero_columns(tensor), columns)
            assert torch.equal(tensor[:, ~columns], plain[name][:, ~columns])
        else:
            assert torch.equal(tensor, plain[name])
    assert result.measurements["pruned_share"] == pytest.approx(0.5)
    # The next round starts from nothing.
    assert torch.equal(
        local_round(defense, **settings).update.tensors["classifier.weight"], result.update.tensors["classifier.weight"]
    )


def test_scores_for_an_update_count_each_image_of_the_round_once(build: Build) -> None:
    model = build()
    context = RoundContext(model, state_of(model), F.cross_entropy, 0, 1, 0.1)
    defense, pictures = SoteriaDefense(SoteriaSettings(percent=50, place="update")), images(3)
    update = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}

    def columns(*order: list[int]) -> Tensor:
        defense.begin_round(context)
        for indices in order:
            batch = Batch(pictures[indices], torch.zeros(len(indices), dtype=torch.int64), tuple(map(str, indices)))
            defense.protect_gradients({}, batch, context)
        return zero_columns(defense.protect_update(update, context)["classifier.weight"])

    together, alone = columns([0, 1, 2]), columns([0])
    assert torch.equal(columns([0], [0, 1], [2, 0], [0]), together)
    # An earlier round's images are forgotten.
    assert torch.equal(columns([0]), alone) and not torch.equal(alone, together)


def test_masks_of_several_steps_hide_only_what_all_of_them_prune(local_round: Callable[..., object]) -> None:
    defense = SoteriaDefense(SoteriaSettings(percent=50))
    several = local_round(defense, count=6, batch_size=1).update.tensors["classifier.weight"]
    once = local_round(defense, count=1, batch_size=1).update.tensors["classifier.weight"]
    assert zero_columns(several).double().mean() < zero_columns(once).double().mean() == 0.5


def test_an_update_without_images_is_refused(build: Build) -> None:
    model = build()
    defense = SoteriaDefense(SoteriaSettings(place="update"))
    context = RoundContext(model, state_of(model), F.cross_entropy, 0, 1, 0.1)
    defense.begin_round(context)
    with pytest.raises(DefenseError, match="no image in this round"):
        defense.protect_update(state_of(model), context)
    assert defense.measurements() == {"pruned_share": 0.0}


def test_gradients_pass_untouched_where_the_update_is_defended(build: Build) -> None:
    model = build()
    defense = SoteriaDefense(SoteriaSettings(place="update"))
    context = RoundContext(model, state_of(model), F.cross_entropy, 0, 1, 0.1)
    defense.begin_round(context)
    gradients = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    batch = Batch(images(2), torch.tensor([0, 1]), ("a", "b"))
    assert all(
        tensor is gradients[name] for name, tensor in defense.protect_gradients(gradients, batch, context).items()
    )


def test_presets() -> None:
    assert set(SOTERIA_PRESETS) == {"weak", "paper", "strong"}
    percents = [SoteriaSettings(**SOTERIA_PRESETS[name]).percent for name in ("weak", "paper", "strong")]
    assert percents == [10, 60, 80]
