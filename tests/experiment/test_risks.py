"""The seven risks: their numbers by hand, and two of them from beginning to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from markupsafe import escape
from typer.testing import CliRunner

from shadow_defense.cli.risks import risks as risks_command
from shadow_defense.config import RunConfig, config_from, load_config
from shadow_defense.errors import ConfigError, RunError
from shadow_defense.experiment.plans.risks import (
    batch_norm,
    client_size,
    cost,
    perturbation,
    pretrained,
    regions,
    rounds,
)
from shadow_defense.experiment.plans.risks.cost import Times
from shadow_defense.experiment.plans.risks.names import NAMES, chosen_numbers
from shadow_defense.experiment.plans.risks.risk import Image, rebuilt, shadow_arm
from shadow_defense.experiment.plans.risks.running import RISKS, run_risks
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.tasks.scoring import ImageScore, Score
from shadow_defense.experiment.tasks.training import public_federation
from shadow_defense.experiment.trial import Trial
from shadow_defense.files import read_json, read_tensors
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.intervals import DRAWS, f1_difference, macro_f1, mean_ratio, welch_difference
from shadow_defense.metrics.utility import utility
from shadow_defense.report.numbers import numbers
from shadow_defense.report.pages.risks import LAYOUTS, render_risks, standing
from shadow_defense.report.records.reading import read_record, record_values
from shadow_defense.report.records.risks import Finding, RiskEntry, RisksRecord
from shadow_defense.report.records.scores import MEAN_IMAGE
from shadow_defense.report.sentences.risks import WORDINGS


def values(*numbers: float, seed: int = 0, client: str = "client-1") -> dict[Image, float]:
    return {(seed, client, f"image-{index}"): number for index, number in enumerate(numbers)}


def of_both(**scores: dict[Image, float]) -> dict[Image, dict[str, float]]:
    """PSNR and SSIM of each image, from those of all; where one alone is given, it is both."""
    psnr, ssim = scores.get("psnr", scores.get("ssim", {})), scores.get("ssim", scores.get("psnr", {}))
    return {image: {"psnr": value, "ssim": ssim[image]} for image, value in psnr.items()}


def interval(mean: float, low: float, high: float) -> Estimate:
    return Estimate(mean, (low, high), 8)


def checked(number: int, finding: Finding) -> str:
    """What is said of a finding that JSON holds to the last digit, and whose numbers are all on the page."""
    risk, sentence = RISKS[number], WORDINGS[number].sentence(finding)
    entry = RiskEntry(
        number=number,
        name=risk.name,
        claim=risk.claim,
        experiment=risk.experiment,
        finding=finding,
        outcome=finding.outcome,
        sentence=sentence,
    )
    record = RisksRecord(title="t", created="d", command="k", versions={}, seeds=(0,), config={}, risks=(entry,))
    _, line = numbers(record).csv().splitlines()
    found = entry.finding
    assert line.split(",")[2:3] == [str(found.value.mean)] and line.endswith(f"{found.nothing},{entry.outcome}")
    assert read_record(RisksRecord, json.loads(json.dumps(record_values(record), allow_nan=False))) == record
    html, layout = render_risks(record), LAYOUTS[number]
    assert html.count('<svg class="chart" role="img"') == max(len(layout.dots), bool(layout.curves)) + (
        standing(finding) is not None
    )
    assert finding.outcome in html
    for row in finding.rows:
        assert all(escape(column.cell(row).value) in html for column in layout.columns)
    return sentence


def test_risk_1_by_hand() -> None:
    """Uniform leaves 0.1, 0.2 and 0.3 of SSIM more on the two images at the three strengths: 0.2 on average."""
    ssim = {"fedavg": values(0.9, 0.8), MEAN_IMAGE: values(0.5, 0.5)}
    for strength, more in zip(perturbation.STRENGTHS, (0.1, 0.2, 0.3), strict=True):
        ssim[f"targeted-{strength}"] = values(0.6, 0.5)
        ssim[f"uniform-{strength}"] = values(0.6 + more, 0.5 + more)
    for scale in perturbation.GRADIENT_SCALES:
        ssim[f"gradients-{scale}"] = values(0.4, 0.3)
    utility = {name: Estimate(0.8, None, 1) for name in ssim if name != MEAN_IMAGE}
    change = {name: interval(-0.05, -0.06, -0.04) for name in utility if name != "fedavg"}
    found = perturbation.finding({name: of_both(ssim=each) for name, each in ssim.items()}, utility, change)
    sentence = checked(1, found)
    assert found.value.mean == pytest.approx(0.2)
    assert (found.value.count, found.outcome) == (2, "supported")
    # Only the arms below the mean image's 0.5 are hidden, each with its cost of 5 points.
    assert "gradients-0.001 (−5.0 points of F1), gradients-0.01 (−5.0 points of F1)" in sentence
    assert "uniform" not in sentence.split("in both with")[1]
    easy = {name: of_both(ssim=each) for name, each in {**ssim, MEAN_IMAGE: values(0.9, 0.9)}.items()}
    assert "little to hide" in checked(1, perturbation.finding(easy, utility, change))
    # Low in SSIM alone is not hidden.
    high = {name: values(30.0, 30.0) for name in ssim} | {MEAN_IMAGE: values(15.0, 15.0)}
    open_ = {name: of_both(ssim=each, psnr=high[name]) for name, each in ssim.items()}
    assert "No setting brings" in checked(1, perturbation.finding(open_, utility, change))
    turned = {**ssim, **{name: ssim[name.replace("uniform", "targeted")] for name in ssim if "uniform" in name}}
    turned |= {name: ssim[name.replace("targeted", "uniform")] for name in ssim if "targeted" in name}
    against = perturbation.finding({name: of_both(ssim=each) for name, each in turned.items()}, utility, change)
    assert against.outcome == "contradicted"


def test_risk_2_by_hand() -> None:
    """PSNR gains of 2, 4 and 6 dB: mean 4, half width t(0.975, 2) * 2 / sqrt 3 = 4.303 * 1.1547 = 4.968."""
    psnr = {
        batch_norm.WITH: values(22.0, 24.0, 26.0),
        batch_norm.WITHOUT: values(20.0, 20.0, 20.0),
        MEAN_IMAGE: values(15.0, 15.0, 15.0),
    }
    images = {name: of_both(psnr=each, ssim=values(0.5, 0.5, 0.5)) for name, each in psnr.items()}
    found = batch_norm.finding(images, 0.01)
    assert found.value.mean == pytest.approx(4.0)
    assert found.value.interval is not None
    assert found.value.interval[0] == pytest.approx(4 - 4.968, abs=2e-3)
    assert found.outcome == "not clear"
    assert "Neither beats" not in checked(2, found)
    images[MEAN_IMAGE] = of_both(psnr=values(30.0, 30.0, 30.0))
    assert "Neither beats the mean image" in checked(2, batch_norm.finding(images, 0.01))


def test_risk_3_by_hand() -> None:
    """Lines of slope 2 and 1 over the rounds 1, 2 and 4; an image that a round lacks has no line."""
    scores = {1: values(10.0, 7.0, 1.0), 2: values(12.0, 8.0), 4: values(16.0, 10.0, 1.0)}
    by_round = {round: of_both(psnr=each) for round, each in scores.items()}
    found = rounds.finding(by_round, 9.0)
    assert "in round 1 to" in checked(3, found)
    assert (found.value.mean, found.value.count) == (pytest.approx(1.5), 2)
    assert rounds.slopes(by_round, "psnr") == pytest.approx([2.0, 1.0])
    # Neither a line: 0, 1, 0 over 1, 2, 3 has slope 0.
    peak = {round: of_both(psnr=values(float(round == 2))) for round in (1, 2, 3)}
    assert rounds.slopes(peak, "psnr") == [0.0]


def test_risk_4_by_hand() -> None:
    """In round 1 the pre-trained model gives 3 and 5 dB more, in round 4 1 dB less: the first round is the number."""
    scores = {
        pretrained.FRESH: {1: values(10.0, 10.0), 4: values(12.0, 12.0)},
        pretrained.PRETRAINED: {1: values(13.0, 15.0), 4: values(11.0, 11.0)},
    }
    images = {start: {round: of_both(psnr=own) for round, own in each.items()} for start, each in scores.items()}
    found = pretrained.finding(images, 9.0, 0.71)
    assert found.value.mean == pytest.approx(4.0)
    assert "−1.00 ± 0.00 dB in round 4".replace(" ", "\xa0") in checked(4, found).replace(" ", "\xa0")
    assert "0.71" in WORDINGS[4].notes_of(found)[0]


def test_risk_5_by_hand() -> None:
    """Gains of 8 and 10 dB against 1 and 3 dB: 7 dB; Welch with equal variances of 2 has 2 degrees of freedom."""
    alone = {**values(8.0, client="a"), **values(10.0, client="b")}
    found = client_size.finding({1: of_both(psnr=alone), 2: of_both(psnr=values(1.0, 3.0, client="c"))})
    assert "between 1 and 2." in checked(5, found)
    assert found.value.mean == pytest.approx(7.0)
    assert found.value.interval is not None
    # t(0.975, 2) = 4.3027, standard error sqrt(2/2 + 2/2).
    assert found.value.interval[1] - 7 == pytest.approx(4.3027 * math.sqrt(2), rel=1e-4)
    assert [(row.values["clients"].mean, row.values["psnr"].count) for row in found.rows] == [(2, 2), (1, 2)]


def test_risk_6_by_hand() -> None:
    """Epochs of 10 and 20 ms; DP-SGD doubles them, masks add 5 and 10 ms, Shadow takes ten times as long."""
    seconds = {
        cost.PLAIN: (0.01, 0.02),
        cost.DP: (0.02, 0.04),
        cost.SHADOW: (0.1, 0.2),
        cost.STORED: (0.015, 0.03),
        cost.SECURE: (0.005, 0.01),
    }
    found = cost.finding([Times(seconds, {cost.SHADOW: 0.2, cost.STORED: 0.2}, 0.001, 250_000)])
    assert found.value.mean == pytest.approx(2.0)
    assert found.value.interval == pytest.approx((2.0, 2.0))
    assert found.outcome == "supported"
    assert "more than DP-SGD, which takes 0.20" in checked(6, found)
    assert found.row(cost.SECURE).values["ratio"].mean == pytest.approx(1.5)
    assert found.row(cost.SHADOW).values["ratio"].mean == pytest.approx(10.0)
    assert found.facts["bytes"] == 1_000_000
    fast = Times({**seconds, cost.SHADOW: (0.01, 0.02)}, {cost.SHADOW: 0.0, cost.STORED: 0.0}, 0.0, 1)
    assert "less than DP-SGD" in checked(6, cost.finding([fast]))


def test_risk_7_finds_a_right_map_a_wrong_one_and_one_that_says_nothing() -> None:
    draws = torch.Generator().manual_seed(0)
    images: list[Image] = [(0, "client", f"image-{index}") for index in range(6)]
    errors = {image: torch.rand(12, 12, generator=draws) for image in images}
    right = {image: 1 - error for image, error in errors.items()}
    found = regions.finding(right, errors, 0)
    assert found.rows[0].values["rank"].mean == pytest.approx(1.0)
    assert "against a shuffled map" in checked(7, found)
    assert abs(found.value.mean - 1) < 0.1
    assert found.outcome == "supported"
    # The 43 of 144 pixels with the least of uniform errors have a mean of about 0.15, over 0.5.
    assert regions.marked_error(right[images[0]], errors[images[0]]) == pytest.approx(0.3, abs=0.08)
    assert regions.finding({image: -own for image, own in right.items()}, errors, 0).outcome == "contradicted"
    blank = torch.ones(12, 12)
    assert regions.agreement(blank, errors[images[0]]) == 0.0
    # One map for all images: nothing beyond what another image's map says.
    shared = torch.rand(12, 12, generator=draws)
    same = regions.finding(dict.fromkeys(images, shared), dict.fromkeys(images, 1 - shared), 0)
    own, other, shuffled = (row.values["rank"] for row in same.rows)
    assert own == other != shuffled


def test_no_interval_is_never_clear() -> None:
    one = rounds.finding({round: of_both(psnr=values(float(round))) for round in (1, 2)}, 0.0)
    assert (one.value.mean, one.value.interval, one.outcome) == (1.0, None, "not clear")


def test_welch_against_scipy_and_a_group_of_one() -> None:
    from scipy.stats import ttest_ind

    draws = np.random.default_rng(0)
    first, second = draws.normal(1, 1, 9).tolist(), draws.normal(0, 3, 5).tolist()
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    found = welch_difference(first, second)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert welch_difference([1.0], [0.0, 2.0]).interval is None


def test_mean_ratio_by_hand() -> None:
    """Ratios 2 and 8: geometric mean 4; logarithms 0.6931 and 2.0794 with half width 12.706 * 0.9803 / sqrt 2."""
    found = mean_ratio([2.0, 8.0], [1.0, 1.0])
    half = 12.7062 * math.log(2)
    assert found.interval == pytest.approx((4 * math.exp(-half), 4 * math.exp(half)), rel=1e-3)


def test_macro_f1_is_the_projects_own_on_every_resample() -> None:
    draws = torch.Generator().manual_seed(0)
    labels, predicted = (torch.randint(0, 3, (40,), generator=draws) for _ in range(2))
    chosen = torch.randint(40, (5, 40), generator=draws)
    weights = torch.stack([torch.bincount(row, minlength=40) for row in chosen]).double()
    found = macro_f1(predicted, labels, weights, 3)
    for row, own in zip(chosen, found, strict=True):
        probabilities = torch.nn.functional.one_hot(predicted[row], 3).float()
        assert float(own) == pytest.approx(utility(probabilities, labels[row])["f1_macro"], abs=1e-6)


def test_f1_difference_covers_what_resampling_gives() -> None:
    labels = torch.tensor([0, 1] * 100)
    wrong = labels.clone()
    wrong[:40] = 1 - wrong[:40]
    found = f1_difference(wrong, labels, labels, 2, seed=0)
    # 160 of 200 right in both classes alike: F1 of 0.8; the share of wrong ones is binomial.
    assert found.mean == pytest.approx(-0.2)
    assert found.interval == pytest.approx((-0.2 - 1.96 * 0.0283, -0.2 + 1.96 * 0.0283), abs=0.01)
    assert f1_difference(labels, labels, labels, 2, seed=0).interval == (0.0, 0.0)
    assert DRAWS >= 1000


def test_scores_are_read_by_seed_client_and_image(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(value: float, sample: str | None = "x") -> ImageScore:
        return ImageScore(0, 0, sample, {"psnr_whole": value})

    trials = [Trial(config_from({**tiny, "seed": seed}), Store(tmp_path)) for seed in (3, 4)]
    scores = [
        Score("fedavg", "ig", 0, "a", (row(10.0), row(99.0, None)), seed=3),
        Score("fedavg", "ig", 1, "a", (row(20.0),), seed=3),
        Score("shadow", "ig", 0, "a", (row(1.0),), seed=3),
        Score("fedavg", "other", 0, "a", (row(2.0),), seed=3),
    ]
    monkeypatch.setattr(trials[0], "scores", lambda: scores)
    monkeypatch.setattr(trials[1], "scores", lambda: [Score("fedavg", "ig", 0, "a", (row(5.0),), seed=4)])
    found = rebuilt(trials, "fedavg", attack="ig")
    assert found == {(3, "a", "x"): {"psnr": 15.0}, (4, "a", "x"): {"psnr": 5.0}}
    assert rebuilt(trials, "fedavg", attack="ig", round=2) == {(3, "a", "x"): {"psnr": 20.0}}


def test_the_registry_and_the_choice() -> None:
    assert list(RISKS) == [risk.number for risk in RISKS.values()] == list(NAMES) == [1, 2, 3, 4, 5, 6, 7]
    assert chosen_numbers(None) == (1, 2, 3, 4, 5, 6, 7)
    for wrong in ("9", "2,", "two", "2;5"):
        with pytest.raises(ConfigError) as error:
            chosen_numbers(wrong)
        assert "valid are: 1 (uniform perturbation), 2 (batch-norm statistics)," in str(error.value)
        assert "\n" not in str(error.value)


def test_every_risk_plans_valid_trials_from_the_preset(tmp_path: Path) -> None:
    base, store = load_config("risks"), Store(tmp_path)
    trials = {number: risk.trials(base, store) for number, risk in RISKS.items()}
    for number, each in trials.items():
        for label, trial in each.items():
            config = trial.config
            assert (config.data.source, config.seed, config.metrics.lpips) == ("pneumoniamnist", 0, None), label
            assert config.attacks or number in (4, 6)
    # What a risk changes is what it is about, and no more.
    with_, without = (
        trials[2]["clients"].config.attacks[name].build() for name in ("with-statistics", "without-statistics")
    )
    assert without == with_.model_copy(update={"batch_norm": 0.0}) != with_
    assert trials[4]["fresh"].config == trials[4]["pretrained"].config
    arms = perturbation.arms(base)
    assert arms["uniform-0.5"].options == {**arms["targeted-0.5"].options, "placement": "uniform"}
    assert shadow_arm(base).options["latent_iterations"] == 200


@pytest.mark.parametrize(
    ("number", "changes", "wanted"),
    [
        (
            2,
            {"model": {"name": "lenet", "normalisation": "none"}},
            "needs a model that can have batch norm, not 'lenet'",
        ),
        (3, {"training": {"rounds": 1}}, "set training.rounds to 2 or more, not 1"),
        (3, {"attacks": {}}, "attacks is empty"),
        (4, {"data": {"public_source": "chest_phantom"}}, "leave data.public_source and data.public_path empty"),
        (4, {"model": {"start": "state.safetensors"}}, "leave model.start and model.weights empty"),
    ],
)
def test_a_base_that_a_risk_cannot_be_tested_on(
    number: int, changes: dict[str, Any], wanted: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        list(run_risks(config_from(changes), [RISKS[number]], tmp_path / "out"))
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def base(tiny: dict[str, Any]) -> RunConfig:
    tiny["data"]["split"] = {"kind": "sizes", "sizes": [1, 1, 6]}
    tiny["model"] = {**tiny["model"], "width": 8}
    tiny["workers"] = 0
    return config_from(tiny)


@pytest.mark.slow
def test_two_risks_from_beginning_to_end(base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-training and Shadow's maps; a second call finds everything done, and a third risk joins the same page."""
    monkeypatch.setattr(pretrained, "EPOCHS", 2)
    monkeypatch.setattr(regions, "SIZES", (1, 1, 1))
    out = tmp_path / "risks"
    found = {risk.number: risk.finding for risk in run_risks(base, [RISKS[4], RISKS[7]], out)}
    assert found[4].value.count == 2
    assert found[7].value.count == 3
    # The pre-trained arm began where the central training ended, and that is not where the fresh one began.
    trials = RISKS[4].trials(base, Store(out))
    begins = {
        name: read_tensors(Store(out).place(trials[name].trainings["fedavg"]) / "round-0000" / "global.safetensors")[0]
        for name in ("fresh", "pretrained")
    }
    (central,) = trials["public"].tasks()
    ended, _ = read_tensors(Store(out).place(central) / "state-0002" / "global.safetensors")
    assert all(torch.equal(begins["pretrained"][name], tensor) for name, tensor in ended.items())
    assert any(not torch.equal(begins["fresh"][name], tensor) for name, tensor in ended.items())
    # No client's image was trained on beforehand.
    scene = Scene(base)
    public = set(public_federation(scene).clients[0].train.sample_ids)
    assert public and public.isdisjoint(name for client in scene.dataset.clients for name in client.train.sample_ids)

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = {risk.number: risk.finding for risk in run_risks(base, [RISKS[7]], out)}
    assert again == {7: found[7]}
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    record = read_record(RisksRecord, read_json(out / "risks.json"))
    assert {entry.number: entry.finding for entry in record.risks} == found
    # Every number can be followed to the results that lie there.
    known = {f"{task.kind}-{task.key}" for task in record.tasks}
    assert known == {name for entry in record.risks for name in entry.results}
    assert known == {path.parent.name for path in out.glob("store/*/task.json")}
    html = (out / "risks.html").read_text()
    assert html.count('<section id="risk-') == 2
    assert "<script" not in html and "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    other = base.model_copy(update={"training": base.training.model_copy(update={"learning_rate": 0.1})})
    with pytest.raises(RunError, match=r"was begun with another training\.learning_rate"):
        list(run_risks(other, [RISKS[4]], out))


@pytest.mark.slow
def test_cost_is_measured_with_two_seeds(base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "REPETITIONS", 2)
    out = tmp_path / "risks"
    (found,) = run_risks(base, [RISKS[6]], out, seeds=(0, 5))
    measured = [read_json(path) for path in out.glob("store/epoch-times-*/cost.json")]
    assert len(measured) == 2
    for times in measured:
        assert {len(each) for each in times["epochs"].values()} == {2}
        assert all(second > 0 for each in times["epochs"].values() for second in each)
        model = RISKS[6].trials(base, Store(out))["seconds"].new_model("plain")
        assert times["entries"] == sum(tensor.numel() for tensor in model.state_dict().values())
    assert found.finding.value.count == 4


def test_averages_of_all_clients_show_no_risk(tiny: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    base = config_from({**tiny, "engine": "flower-secure-aggregation"})
    with pytest.raises(ConfigError, match="take another engine"):
        list(run_risks(base, [RISKS[3]], tmp_path / "out"))


def test_the_command_lists_the_valid_numbers(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(risks_command)
    result = CliRunner().invoke(app, ["--only", "9", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ConfigError)
    assert "unknown risk '9'" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_writes_the_page(base: RunConfig, tmp_path: Path) -> None:
    path, out = tmp_path / "base.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(base.as_dict()))
    app = typer.Typer()
    app.command()(risks_command)
    result = CliRunner().invoke(app, [str(path), "--only", "3", "--out", str(out), "--set", "training.rounds=2"])
    assert result.exit_code == 0, result.output
    assert "3. leakage over rounds" in result.output
    record = json.loads((out / "risks.json").read_text())
    assert record["command"].endswith("--set training.rounds=2")
    assert record["risks"][0]["finding"]["value"]["count"] == 2


def test_the_page_escapes_what_it_is_given() -> None:
    finding = rounds.finding({round: of_both(psnr=values(float(round))) for round in (1, 2)}, 0.0)
    texts = {"name": "x", "claim": "<b>", "experiment": "e", "outcome": "not clear", "sentence": "<i>"}
    entry = RiskEntry(number=3, finding=finding, results=("<u>",), **texts)
    header = {"title": "<script>", "created": "d", "command": "k"}
    html = render_risks(RisksRecord(versions={}, seeds=(0,), config={}, risks=(entry,), **header))
    assert not any(tag in html for tag in ("<script>", "<b>", "<i>", "<u>"))
