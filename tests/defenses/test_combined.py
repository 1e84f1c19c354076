"""Several defenses at once: order, what is refused, names, settings, and the state of each part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.ats import ATSDefense, ATSSettings
from shadow_defense.defenses.base import Batch, Defense, RoundContext
from shadow_defense.defenses.build import DEFENSES, DefenseSettings, Resources, kind_of
from shadow_defense.defenses.clipping import ClippingDefense, ClippingSettings
from shadow_defense.defenses.combination import CombinedSettings
from shadow_defense.defenses.combined import CombinedDefense, check_combination
from shadow_defense.defenses.local_dp import LocalDPDefense, LocalDPSettings
from shadow_defense.defenses.noise import NoiseDefense, NoiseSettings
from shadow_defense.defenses.registry import ALIASES
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.defenses.sparsification import SparsificationDefense, SparsificationSettings
from shadow_defense.errors import ConfigError, DefenseError, ModelError
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.files import flatten_tensors, nest_tensors
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.models.variational_bottleneck import VariationalBottleneck

NORMALISATION = Normalisation((0.5,), (0.25,))
NO_IMAGES = ImageSet(torch.zeros(0, 1, 16, 16, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ())


def resources(generator: bool = False) -> Resources:
    made = DCGANGenerator(image_size=16, z_dim=4, width=4) if generator else None
    return Resources(made, NORMALISATION, NO_IMAGES, 2, "site-1", seed=0)


def build(name: str, **options: Any) -> Defense:
    return DefenseSettings(defense=name, options=options).build(resources())


def clip(largest: float, place: str = "gradients") -> ClippingDefense:
    return ClippingDefense(ClippingSettings(clip=largest, place=place))


def context(model: nn.Module | None = None, round: int = 0, explain: frozenset[str] = frozenset()) -> RoundContext:
    model = model or nn.Linear(1, 1)
    return RoundContext(model, model.state_dict(), F.cross_entropy, round, 3, 0.1, explain)


BATCH = Batch(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]), ("a", "b"))


def norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([tensor.square().sum() for tensor in tensors.values()]).sum().sqrt())


def test_each_part_gets_what_the_one_before_left(toy_gradients: dict[str, Tensor]) -> None:
    """Clipped to 1 of 2.9154759, then the smaller half of each tensor removed."""
    sparse = SparsificationDefense(SparsificationSettings(percent=50))
    made = CombinedDefense({"gradient-clipping": clip(1.0), "gradient-sparsification": sparse})
    made.begin_round(context())
    found = made.protect_gradients(toy_gradients, BATCH, context())
    factor = 0.3429971
    expected = {
        "w1": torch.tensor([[0, -factor], [0, factor]]),
        "b1": torch.tensor([-0.5, 0.5]) * factor,
        "w2": torch.tensor([[0, -1.5], [0, 1.5]]) * factor,
        "b2": torch.tensor([-0.5, 0.5]) * factor,
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)
    # The other way round what is left is larger again: sqrt(2 + 1/2 + 4.5 + 1/2) = sqrt(7.5) scaled to 1.
    other = CombinedDefense({"gradient-sparsification": sparse, "gradient-clipping": clip(1.0)})
    assert norm(other.protect_gradients(toy_gradients, BATCH, context())) == pytest.approx(1.0, rel=1e-5)
    assert norm(found) == pytest.approx(factor * 7.5**0.5, rel=1e-5)


def test_clipped_noise_is_not_noise_on_what_was_clipped(toy_gradients: dict[str, Tensor]) -> None:
    def noise() -> NoiseDefense:
        return NoiseDefense(NoiseSettings(scale=5.0), 0)

    first = CombinedDefense({"noise": noise(), "gradient-clipping": clip(1.0)})
    second = CombinedDefense({"gradient-clipping": clip(1.0), "noise": noise()})
    assert norm(first.protect_gradients(toy_gradients, BATCH, context())) <= 1 + 1e-5
    assert norm(second.protect_gradients(toy_gradients, BATCH, context())) > 5


def test_nothing_that_is_given_is_changed(toy_gradients: dict[str, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in toy_gradients.items()}
    made = build("clip+sparse+noise", clip={"place": "gradients"})
    made.begin_round(context())
    for tensor in made.protect_gradients(toy_gradients, BATCH, context()).values():
        tensor += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy_gradients.items())


class Recorder(Defense):
    """Notes what it is asked for, and hands on copies that it marks."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def check_model(self, model: nn.Module) -> None:
        self.calls.append(f"{self.name} check")

    def prepare(self, images: Tensor, sample_ids: tuple[str, ...], progress: object = None) -> None:
        self.calls.append(f"{self.name} prepare {len(images)}")

    def begin_round(self, context: RoundContext) -> None:
        self.calls.append(f"{self.name} begin {context.round}")

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        return Batch(batch.images * 2 + len(self.name), batch.labels, batch.sample_ids)

    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        return {name: tensor * 2 + len(self.name) for name, tensor in tensors.items()}

    def measurements(self) -> dict[str, float]:
        return {"shared": float(len(self.name)), f"only {self.name}": 1.0}

    def explanations(self) -> dict[str, Tensor]:
        return {"protected::values": torch.full((1,), len(self.name)), f"{self.name}::values": torch.zeros(1)}


def test_every_place_passes_through_all_parts_in_order() -> None:
    calls: list[str] = []
    made = CombinedDefense({name: Recorder(name, calls) for name in ("x", "yyy")})
    made.check_model(nn.Linear(1, 1))
    made.prepare(torch.zeros(5, 1, 2, 2), tuple("abcde"))
    made.begin_round(context(round=2))
    assert calls == [f"{name} {what}" for what in ("check", "prepare 5", "begin 2") for name in ("x", "yyy")]
    # (1 * 2 + 1) * 2 + 3
    assert (made.protect_batch(BATCH, context()).images == 9).all()
    assert made.protect_update({"w": torch.ones(1)}, context())["w"].item() == 9
    assert made.measurements() == {"x.shared": 1, "yyy.shared": 3, "only x": 1, "only yyy": 1}
    assert made.explanations()["protected::values"].item() == 3, "what was trained on is the last part's"
    assert set(made.explanations()) == {"protected::values", "x::values", "yyy::values"}


def test_the_state_of_each_part_survives_files_and_has_its_own_place() -> None:
    def make() -> CombinedDefense:
        sparse = SparsificationDefense(SparsificationSettings(percent=50, place="update", error_feedback=True))
        ats = ATSDefense(ATSSettings(), NORMALISATION, 0)
        return CombinedDefense(
            {"ats": ats, "gradient-sparsification": sparse, "local-dp": LocalDPDefense(LocalDPSettings(), 0)}
        )

    model, generator = nn.Linear(3, 2), torch.Generator().manual_seed(0)
    update = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}

    def round_of(made: CombinedDefense, round: int) -> tuple[Mapping[str, Tensor], dict[str, float]]:
        made.begin_round(context(model, round))
        return made.protect_update(update, context(model, round)), made.measurements()

    straight, stopped = make(), make()
    for made in (straight, stopped):
        round_of(made, 0)
    resumed = make()
    resumed.load_state_dict(nest_tensors(flatten_tensors(stopped.state_dict())))
    (expected, numbers), (found, again) = round_of(straight, 1), round_of(resumed, 1)
    assert numbers == again and all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    # Without the state it would not be so.
    fresh, other = round_of(make(), 1)
    assert other["epsilon_spent"] != numbers["epsilon_spent"]
    assert not torch.equal(fresh["weight"], expected["weight"])


def test_a_budget_that_is_lost_is_said() -> None:
    """Else the epsilon of the rounds before would be forgotten."""

    def make() -> CombinedDefense:
        return CombinedDefense(
            {"noise": NoiseDefense(NoiseSettings(), 0), "local-dp": LocalDPDefense(LocalDPSettings(), 0)}
        )

    state = make().state_dict()
    make().load_state_dict({"local-dp": state["local-dp"]})
    with pytest.raises(DefenseError, match="holds nothing of local-dp"):
        make().load_state_dict({})


def test_numbers_with_the_same_name_say_whose_they_are() -> None:
    model = nn.Linear(3, 2)
    made = CombinedDefense(
        {"gradient-clipping": clip(1.0, "update"), "local-dp": LocalDPDefense(LocalDPSettings(clip=0.5), 0)}
    )
    made.begin_round(context(model))
    made.protect_update(
        {name: torch.full_like(tensor, 9.0) for name, tensor in model.state_dict().items()}, context(model)
    )
    found = made.measurements()
    assert found["local-dp.norm"] == pytest.approx(1.0, rel=1e-4), "it clips what was clipped before"
    assert found["gradient-clipping.norm"] > 20
    assert "norm" not in found and "epsilon_spent" in found


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("noise+dp-sgd", "noise acts on gradients before dp-sgd, which computes them anew"),
        ("outpost+dp-sgd+noise", "outpost acts on gradients before dp-sgd"),
        ("mixup+dp-sgd", "mixup lets images of a batch depend on one another.*take local-dp"),
        ("dp-sgd+instahide", "instahide lets images"),
        ("shadow+dp-sgd", "shadow lets images"),
        ("dp-sgd+soteria", "soteria reads the private images after dp-sgd, whose epsilon"),
        ("dp-sgd+censor", "censor reads the private images after dp-sgd"),
        ("soteria+dp-sgd", "soteria acts on gradients before dp-sgd, .*: take local-dp in place of dp-sgd"),
        ("dcs+dp-sgd", "dcs computes gradients anew from the batch, and dp-sgd does so again: take one of the two"),
        ("dp-sgd+dcs", "dcs reads the private images after dp-sgd.*: take local-dp in place of dp-sgd"),
        ("mixup+shadow", "mixup mixes labels and shadow attacks with classes: put shadow first"),
        ("ats+shadow", "ats changes the images that shadow knows by their ids: put shadow first"),
        ("none+noise", "'none', which protects nothing: leave it out"),
        ("noise+dp+noise", "names 'noise' twice"),
        ("dp+local-dp", "names 'local-dp' twice"),
    ],
)
def test_what_would_break_a_guarantee_is_refused_with_the_settings(name: str, reason: str) -> None:
    with pytest.raises(DefenseError, match=reason) as raised:
        DefenseSettings(defense=name)
    assert "\n" not in str(raised.value)


def test_where_a_part_acts_decides() -> None:
    with pytest.raises(DefenseError, match="soteria reads the private images after local-dp"):
        DefenseSettings(defense="dp+soteria", options={"soteria": {"place": "update"}})
    DefenseSettings(defense="dp+soteria", options={"soteria": {"place": "gradients"}})
    DefenseSettings(defense="soteria+dp", options={"soteria": {"place": "update"}})
    with pytest.raises(DefenseError, match="soteria reads the private images after dp-sgd"):
        DefenseSettings(defense="soteria+dp-sgd", options={"soteria": {"place": "update"}})
    with pytest.raises(DefenseError, match="gradient-clipping acts on gradients before dp-sgd"):
        DefenseSettings(defense="clip+dp-sgd", options={"clip": {"place": "gradients"}})
    DefenseSettings(defense="clip+dp-sgd", options={"clip": {"place": "update"}})


def test_clipping_of_single_images_computes_the_gradients_anew() -> None:
    """GradDefense with clip reads the batch: behind DP-SGD it would send raw gradients, behind noise drop the noise."""
    clipping = {"grad-defense": {"clip": True}}
    for name, reason in [
        ("dp-sgd+grad-defense", "grad-defense reads the private images after dp-sgd, whose epsilon"),
        ("grad-defense+dp-sgd", "grad-defense computes gradients anew.*take one of the two"),
        ("noise+grad-defense", "noise acts on gradients before grad-defense, which computes them anew.*put it after"),
    ]:
        with pytest.raises(DefenseError, match=reason):
            DefenseSettings(defense=name, options=clipping)
    DefenseSettings(defense="grad-defense+noise", options=clipping)
    DefenseSettings(defense="dp-sgd+grad-defense")
    DefenseSettings(defense="noise+grad-defense")
    with pytest.raises(DefenseError, match="grad-defense reads the private images"):
        parts = (
            DefenseSettings(defense="dp-sgd").parts()
            | DefenseSettings(defense="grad-defense", options={"clip": True}).parts()
        )
        CombinedDefense({part: DEFENSES[part].build(settings, resources()) for part, settings in parts.items()})


PLACED = [
    (name, {"place": place} if "place" in type(DEFENSES[name].settings("paper")).model_fields else {})
    for name in DEFENSES
    if name != "none"
    for place in (DEFENSES[name].acts_on or ("gradients",))
]


@pytest.mark.parametrize(("first", "options"), PLACED, ids=str)
def test_who_follows_the_advice_gets_through(first: str, options: dict[str, str]) -> None:
    """Every pair in both orders: what is told to be put after, or before, is not told the opposite then."""
    for second, others in PLACED:
        if first == second:
            continue
        chosen = {first: options, second: others}
        try:
            DefenseSettings(defense=f"{first}+{second}", options=chosen)
        except DefenseError as error:
            if "put " in str(error):
                DefenseSettings(defense=f"{second}+{first}", options=chosen)
            elif "take local-dp" in str(error):
                other = first if second == "dp-sgd" else second
                DefenseSettings(defense=f"{other}+local-dp", options={other: chosen[other]})
            else:
                assert "take one of the two" in str(error)


@pytest.mark.parametrize(
    "name",
    ["shadow+clip+dp", "ats+dp-sgd+noise", "dp-sgd+sparse+dp", "precode+dp-sgd", "shadow+mixup", "ats+mixup+censor"],
)
def test_what_keeps_all_guarantees_passes(name: str) -> None:
    assert isinstance(DefenseSettings(defense=name).settings(), CombinedSettings)


def test_a_defense_that_nobody_knows_is_taken_to_read_the_images() -> None:
    with pytest.raises(DefenseError, match="mine reads the private images"):
        check_combination({"local-dp": ("update",), "mine": ("update",)}, {})
    check_combination({"mine": ("update",), "local-dp": ("update",)}, {})
    with pytest.raises(DefenseError, match="mine lets images"):
        check_combination({"mine": ("batch",), "dp-sgd": ("gradients",)}, {})


def test_short_names_alone_and_in_combinations() -> None:
    assert kind_of("clip") is DEFENSES["gradient-clipping"]
    assert DefenseSettings(defense="dp").settings() == DefenseSettings(defense="local-dp").settings()
    assert not set(ALIASES) & set(DEFENSES)
    assert DefenseSettings(defense="sparse").acts_on() == DefenseSettings(defense="gradient-sparsification").acts_on()
    made = build("ats + sparse")
    assert isinstance(made, CombinedDefense) and list(made.parts) == ["ats", "gradient-sparsification"]


def test_options_are_nested_by_part_and_presets_reach_those_that_have_them() -> None:
    chosen = DefenseSettings(
        defense="shadow+clip+dp",
        preset="strong",
        options={"shadow": {"strength": 0.5}, "clip": {"clip": 7.0}, "local-dp": {"delta": 1e-4}},
    )
    parts = chosen.parts()
    assert list(parts) == ["shadow", "gradient-clipping", "local-dp"]
    assert parts["shadow"] == DEFENSES["shadow"].settings("paper", strength=0.5), "shadow has no preset `strong`"
    assert parts["gradient-clipping"] == DEFENSES["gradient-clipping"].settings("strong", clip=7.0)
    assert parts["local-dp"] == DEFENSES["local-dp"].settings("strong", delta=1e-4)
    assert chosen.kind().needs_generator and not kind_of("clip+dp").needs_generator
    assert chosen.acts_on()[0] == "batch" and chosen.acts_on()[-1] == "update"
    assert CombinedSettings.model_validate(chosen.settings()).model_dump()["parts"]["gradient-clipping"]["clip"] == 7.0
    single = DefenseSettings(defense="noise")
    assert single.parts() == {"noise": single.settings()}


def test_where_a_combination_acts_follows_its_settings() -> None:
    places = [
        DefenseSettings(defense="noise+clip", options={"noise": {"place": one}, "clip": {"place": other}}).acts_on()
        for one, other in (("update", "update"), ("update", "gradients"), ("gradients", "gradients"))
    ]
    assert places == [("update",), ("gradients", "update"), ("gradients",)]


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"defense": "shadow+clap"}, DefenseError, "unknown defense 'clap': did you mean 'clip'.*valid are: ats"),
        ({"defense": "shadow+"}, DefenseError, "unknown defense ''"),
        ({"defense": "clip+dp", "preset": "huge"}, DefenseError, "preset of defense 'clip.dp'"),
        ({"defense": "clip+dp", "options": {"noise": {}}}, ConfigError, "unknown part of the combination 'noise'"),
        ({"defense": "clip+dp", "options": {"dp": 3}}, ConfigError, "options.local-dp = 3: expected this part's own"),
        (
            {"defense": "clip+dp", "options": {"local-dp": {"epsilon": 0.5}, "dp": {"clip": 2.0}}},
            ConfigError,
            "options name 'local-dp' twice, once as 'dp'",
        ),
        ({"defense": "clip+dp", "options": {"dp": {"epsilom": 1}}}, ConfigError, "did you mean 'epsilon'"),
    ],
)
def test_what_cannot_be_read_is_said(values: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as raised:
        DefenseSettings(**values)
    assert "\n" not in str(raised.value)


def test_shadow_in_a_combination_trains_a_round(local_round: Callable[..., Any], client: Callable[..., Any]) -> None:
    options = {"shadow": {"latent_pretraining": False}, "dp": {"clip": 0.5}}
    chosen = DefenseSettings(defense="shadow+clip+dp", options=options)
    made = chosen.build(resources(generator=True))
    assert isinstance(made, CombinedDefense) and isinstance(made.parts["shadow"], ShadowDefense)
    assert made.acts_on == set(chosen.acts_on())
    train = client().train
    made.prepare(NORMALISATION.apply(train.unit_images()), train.sample_ids)
    result = local_round(made)
    assert {"noise_rms", "epsilon_spent", "local-dp.norm"} <= set(result.measurements)
    plain = local_round().update.tensors
    # What local-dp adds is known to the test: its draws are named.
    sigma = made.parts["local-dp"].sigma
    spread = torch.cat([(result.update.tensors[name] - plain[name]).flatten() for name in plain]).std()
    assert float(spread) == pytest.approx(sigma, rel=0.1)


@pytest.mark.filterwarnings("ignore:Optimal order")
@pytest.mark.parametrize("name", ["ats+dp-sgd", "precode+dp-sgd"])
def test_single_samples_are_clipped_in_combinations(
    name: str, build: Callable[..., nn.Module], client: Callable[..., Any]
) -> None:
    """Without noise to speak of the step is a mean of three gradients of norm C or less."""
    chosen = DefenseSettings(defense=name, options={"dp-sgd": {"clip": 0.01, "noise_multiplier": 1e-4}})
    model, data = chosen.adapt_model(build(), 0), client()
    made = chosen.build(resources())
    made.check_model(model)
    made.prepare(NORMALISATION.apply(data.train.unit_images()), data.train.sample_ids)
    result = train_locally(
        model,
        {key: tensor.clone() for key, tensor in model.state_dict().items()},
        data,
        made,
        settings=TrainingSettings(learning_rate=1.0),
        round=0,
        normalisation=NORMALISATION,
        loss_fn=F.cross_entropy,
        seed=0,
    )
    assert 0.002 < norm(result.update.tensors) < 0.0101
    assert result.measurements["clipped_share"] == 1.0


def test_models_are_adapted_by_each_part_that_does(build: Callable[..., nn.Module]) -> None:
    chosen = DefenseSettings(defense="ats+precode", options={"precode": {"width": 8}})
    adapted = chosen.adapt_model(build(), 3)
    expected = DefenseSettings(defense="precode", options={"width": 8}).adapt_model(build(), 3)
    assert isinstance(adapted.classifier.bottleneck, VariationalBottleneck)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(adapted.state_dict()[name], tensor)
    plain = build()
    assert DefenseSettings(defense="ats+dp").adapt_model(plain, 3) is plain
    with pytest.raises(ModelError):
        chosen.adapt_model(nn.Sequential(nn.Conv2d(1, 1, 1)), 3)
    with pytest.raises(DefenseError, match="no variational bottleneck"):
        chosen.build(resources()).check_model(plain)
