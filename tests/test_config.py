from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shadow_defense.attacks.adaptive.settings import AdaptiveSettings
from shadow_defense.attacks.deep_leakage import DLG
from shadow_defense.config import load_config, preset_names, preset_titles
from shadow_defense.data.settings import SplitSettings
from shadow_defense.errors import ShadowDefenseError
from shadow_defense.schema import CHOSEN, describe_schema
from shadow_defense.shadow.settings import ShadowSettings


def message(source: str, *overrides: str) -> str:
    with pytest.raises(ShadowDefenseError) as error:
        load_config(source, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_preset_loads_and_opens_with_its_command() -> None:
    from importlib import resources

    assert {"demo", "pneumoniamnist", "retinamnist", "chestxray", "eyepacs"} <= set(preset_names())
    for name in preset_names():
        text = resources.files("shadow_defense").joinpath("presets", f"{name}.yaml").read_text()
        assert text.startswith("# shadow-defense "), name
        load_config(name)


@pytest.mark.parametrize("name", ["chestxray", "eyepacs"])
def test_the_papers_setting(name: str) -> None:
    """The federated setting of the paper."""
    config = load_config(name)
    assert (config.training.rounds, config.training.local_epochs, config.training.learning_rate) == (100, 1, 1e-2)
    assert [config.training.learning_rate_at(r) for r in (39, 40, 80)] == pytest.approx([1e-2, 1e-3, 1e-4])
    assert (config.training.momentum, config.training.weight_decay, config.training.batch_norm) == (0, 0, "train")
    assert (config.model.name, config.model.normalisation, config.data.image_size) == ("resnet18", "batch", 224)
    assert config.data.split.kind == "paper"
    for attack in config.attacks:
        assert config.attacked_rounds(attack) == (0, 24, 49, 74, 99)


def test_overrides_reach_every_level_in_order() -> None:
    config = load_config(
        "demo", ["training.rounds=4", "training.rounds=2", "arms.extra.defense=none", "data.split.sizes=[1, 2]"]
    )
    assert config.training.rounds == 2
    assert list(config.arms)[-1] == "extra"
    assert config.data.split.sizes == (1, 2)


def test_an_override_reaches_a_key_with_dots_in_it() -> None:
    config = load_config("demo", ["arms.published-strength-0.19.options.strength=0.5"])
    assert config.arms["published-strength-0.19"].options["strength"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["training.round=4"], "unknown key 'training.round': did you mean 'rounds'?"),
        (["data.split.knd=iid"], "unknown key 'data.split.knd': did you mean 'kind'?"),
        (["arms.fedavg.defence=none"], "unknown key 'arms.fedavg.defence': did you mean 'defense'?"),
        (["colour=blue"], "unknown key 'colour':"),
        (["training.rounds=0"], "training.rounds = 0: input should be greater than or equal to 1"),
        (["training.rounds=many"], "training.rounds = 'many': input should be a valid integer"),
        (
            ["arms.fedavg.defense=shadw"],
            "arms.fedavg: unknown defense 'shadw': did you mean 'shadow'? valid are: ats,",
        ),
        (["arms.x.defense=shadow", "arms.x.preset=arthors"], "did you mean 'authors'?"),
        (
            ["arms.x.defense=shadow", "arms.x.options.strenth=1"],
            "arms.x: unknown key 'shadow.strenth': did you mean 'strength'?",
        ),
        (
            ["arms.x.defense=dp+clip", "arms.x.options.dp.clip=-1"],
            "arms.x: local-dp.clip = -1: input should",
        ),
        (["model.name=lent"], "unknown model 'lent': did you mean 'lenet'?"),
        (["model.options.x=1"], "unknown key 'model.options.x': nothing can be set here"),
        (["data.source=fases"], "unknown source 'fases': did you mean 'faces'?"),
        (["generator.options.x=1"], "unknown key 'generator.options.x': nothing can be set here"),
        (["attacks.x.attack=deep"], "unknown attack 'deep': valid are:"),
        (["attacks.x.options.iteratons=1"], "did you mean 'iterations'?"),
        (["attacks.x.attack=gradinversion", "attacks.x.threat_model=eavesdropper"], "does not grant"),
        (["attacks.x.rounds=[99]"], "asks for round 99: expected 1 to"),
        (["arms.a/b.defense=none"], "cannot be a folder"),
        (["arms.dp-sgd.share_bn=all"], "arms.dp-sgd says no defense, which makes it 'none': add `defense: dp-sgd`"),
        (["attacks.gifd.rounds=[1]"], "attacks.gifd says no attack, which makes it 'inverting-gradients'"),
        (["training.rounds"], "expected key.path=value"),
        (["seed.x=1"], "'seed' is a value, not a group of keys"),
        (["data.image_size=[1"], "not valid YAML"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_how_to_mend_it(overrides: list[str], wanted: str) -> None:
    assert wanted in message("demo", *overrides)


def test_wrong_files(tmp_path: Path) -> None:
    assert "did you mean 'demo'?" in message("dmo")
    assert "cannot read the configuration" in message(str(tmp_path / "missing.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "holds a list: expected keys and values" in message(str(tmp_path / "list.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "bytes.yaml" in message(str(tmp_path / "bytes.yaml"))


def test_the_fingerprint_is_of_what_decides_the_numbers() -> None:
    base = load_config("demo")
    assert base.fingerprint() == load_config("demo", ["workers=7", "title=x"]).fingerprint()
    same = ["training.optimiser=sgd", "training.loss=ce", "training.betas=[0.9, 0.999]"]
    assert base.fingerprint() == load_config("demo", same).fingerprint()
    for change in ("training.optimiser=adam", "training.loss=bce", "training.label_smoothing=0.1"):
        assert base.fingerprint() != load_config("demo", [change]).fingerprint(), change
    for change in ("seed=1", "threads=2", "arms.fedavg.defense=shadow", "attacks.inverting-gradients.rounds=[1]"):
        assert base.fingerprint() != load_config("demo", [change]).fingerprint(), change


def test_every_setting_has_a_description() -> None:
    rows = list(describe_schema())
    assert [row.key for row in rows if not row.description] == []
    assert len(rows) == len({row.key for row in rows})


def test_the_schema_reaches_inside_what_is_chosen_by_name() -> None:
    rows = {row.key: row for row in describe_schema()}
    for key, model in [
        ("arms.<name>.options.strength (shadow)", ShadowSettings),
        ("attacks.<name>.options.restarts (dlg)", DLG),
        ("attacks.<name>.adaptive.rounds", AdaptiveSettings),
        ("data.split.kind", SplitSettings),
    ]:
        field = model.model_fields[key.split(" ")[0].split(".")[-1]]
        assert rows[key].description == field.description
        assert json.loads(rows[key].default) == field.default
    for registry, prefix in CHOSEN:
        for name in registry:
            for field in registry[name].options.model_fields:
                assert any(key.startswith(f"{prefix}{field}") and key.endswith(f"({name})") for key in rows)


def test_every_preset_says_what_it_is_about() -> None:
    titles = preset_titles()
    assert list(titles) == preset_names()
    assert len(set(titles.values())) == len(titles) and all(10 < len(title) < 100 for title in titles.values())


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("arms.x.preset=1000000", "arms.x.preset = 1000000: input should be a valid string"),
        ("arms.x.options={preset: a, self: b}", "unknown key 'none.preset'"),
        ("arms.x={defense: clip+noise, options: {clip: {1: 2}}}", "expected this part's own settings"),
        ("data.split.clients=1000000000", "less than or equal to"),
        ("generator.batch_size=1000000000", "less than or equal to"),
        ("model.imprint=1000000000", "less than or equal to"),
        ("training.rounds=1000000000", "less than or equal to"),
        ("workers=1000000000", "less than or equal to"),
        ("data.mean=[1e+308]", "less than or equal to"),
        ("threads=1000000000", "less than or equal to"),
        ("generator.image_size=1000000", "less than or equal to"),
        ("seed=" + "9" * 90, "seed"),
        ("seed=" + "9" * 5000, "5000 characters"),
        ("arms." + "x" * 500 + ".defense=none", "cannot be a folder"),
        (".".join("a" * 100) + "=1", "deeper than 30"),
        ("title=2020-01-01: x", "title = {'2020-01-01': 'x'}"),
        ("training.learning_rate=.nan", "no finite number"),
        ("title=" + "x" * 100_000, "characters and at most"),
        ("seed\x1b[2J=1", "unknown key 'seed\\x1b[2J'"),
    ],
)
def test_hostile_settings_are_one_short_line(override: str, wanted: str) -> None:
    said = message("demo", override)
    assert wanted in said
    assert len(said) <= 600 and said.isprintable()


def test_every_whole_number_has_an_upper_end() -> None:
    """A billion of anything would fill a memory before anything can say so."""
    unbounded = [
        row.key for row in describe_schema() if re.match(r"(Optional\[)?int\b", row.kind) and "<" not in row.kind
    ]
    assert unbounded == []
