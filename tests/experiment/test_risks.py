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
from shadow_defense.experiment.plans.risks.base import shadow_arm
from shadow_defense.experiment.plans.risks.build import RISKS, chosen_risks
from shadow_defense.experiment.plans.risks.intervals import DRAWS, f1_difference, macro_f1, mean_ratio, welch_difference
from shadow_defense.experiment.plans.risks.readings import Image, image_values
from shadow_defense.experiment.plans.risks.risk import Finding
from shadow_defense.experiment.plans.risks.running import run_risks
from shadow_defense.experiment.run import Run
from shadow_defense.files import read_tensors
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.utility import utility
from shadow_defense.report.pages.risks import render_risks
from shadow_defense.report.records.reading import read_record
from shadow_defense.report.records.risks import RisksRecord
from shadow_defense.report.records.scores import MEAN_IMAGE


def values(*numbers: float, seed: int = 0, client: str = "client-1") -> dict[Image, float]:
    return {(seed, client, f"image-{index}"): number for index, number in enumerate(numbers)}


def interval(mean: float, low: float, high: float) -> Estimate:
    return Estimate(mean, (low, high), 8)


def checked(finding: Finding) -> Finding:
    """A finding whose parts fit together, and that JSON and the page can hold."""
    assert all(len(row) == len(finding.columns) for row in finding.rows)
    record = json.loads(json.dumps(finding.as_dict(), allow_nan=False))
    entry = {"number": 1, "name": "x", "claim": "c", "experiment": "e", "folders": ["f"], "finding": record}
    page = {"title": "t", "created": "d", "command": "k", "seeds": [0], "versions": {}, "config": {}, "risks": [entry]}
    html = render_risks(read_record(RisksRecord, page))
    assert html.count('<svg class="chart" role="img"') == len(finding.charts)
    assert finding.outcome in html
    return finding


def test_risk_1_by_hand() -> None:
    """Uniform leaves 0.1, 0.2 and 0.3 of SSIM more on the two images at the three strengths: 0.2 on average."""
    ssim = {"fedavg": values(0.9, 0.8), MEAN_IMAGE: values(0.5, 0.5)}
    for strength, more in zip(perturbation.STRENGTHS, (0.1, 0.2, 0.3), strict=True):
        ssim[f"targeted-{strength}"] = values(0.6, 0.5)
        ssim[f"uniform-{strength}"] = values(0.6 + more, 0.5 + more)
    for scale in perturbation.GRADIENT_SCALES:
        ssim[f"gradients-{scale}"] = values(0.4, 0.3)
    worth = {name: Estimate(0.8, None, 1) for name in ssim if name != MEAN_IMAGE}
    change = {name: interval(-0.05, -0.06, -0.04) for name in worth if name != "fedavg"}
    scores = {"ssim": ssim, "psnr": ssim}
    found = checked(perturbation.finding(scores, worth, change))
    assert found.value.mean == pytest.approx(0.2)
    assert (found.value.count, found.outcome) == (2, "borne out")
    # Only the arms below the mean image's 0.5 are hidden, each with its cost of 5 points.
    assert "gradients-0.001 (−5.0 points of F1), gradients-0.01 (−5.0 points of F1)" in found.sentence
    assert "uniform" not in found.sentence.split("in both with")[1]
    easy = {**ssim, MEAN_IMAGE: values(0.9, 0.9)}
    assert "little to hide" in perturbation.finding({"ssim": easy, "psnr": easy}, worth, change).sentence
    # Low in SSIM alone is not hidden.
    high = {name: values(30.0, 30.0) for name in ssim} | {MEAN_IMAGE: values(15.0, 15.0)}
    assert "No setting brings" in perturbation.finding({"ssim": ssim, "psnr": high}, worth, change).sentence
    turned = {**ssim, **{name: ssim[name.replace("uniform", "targeted")] for name in ssim if "uniform" in name}}
    turned |= {name: ssim[name.replace("targeted", "uniform")] for name in ssim if "targeted" in name}
    assert perturbation.finding({"ssim": turned, "psnr": turned}, worth, change).outcome == "contradicted"


def test_risk_2_by_hand() -> None:
    """PSNR gains of 2, 4 and 6 dB: mean 4, half width t(0.975, 2) * 2 / sqrt 3 = 4.303 * 1.1547 = 4.968."""
    scores = {
        "psnr": {
            batch_norm.WITH: values(22.0, 24.0, 26.0),
            batch_norm.WITHOUT: values(20.0, 20.0, 20.0),
            MEAN_IMAGE: values(15.0, 15.0, 15.0),
        },
        "ssim": {name: values(0.5, 0.5, 0.5) for name in (batch_norm.WITH, batch_norm.WITHOUT, MEAN_IMAGE)},
    }
    found = checked(batch_norm.finding(scores, 0.01))
    assert found.value.mean == pytest.approx(4.0)
    assert found.value.interval is not None
    assert found.value.interval[0] == pytest.approx(4 - 4.968, abs=2e-3)
    assert found.outcome == "not clear"
    assert "Neither beats" not in found.sentence
    scores["psnr"][MEAN_IMAGE] = values(30.0, 30.0, 30.0)
    assert "Neither beats the mean image" in batch_norm.finding(scores, 0.01).sentence


def test_risk_3_by_hand() -> None:
    """Lines of slope 2 and 1 over the rounds 1, 2 and 4; an image that a round lacks has no line."""
    by_round = {1: values(10.0, 7.0, 1.0), 2: values(12.0, 8.0), 4: values(16.0, 10.0, 1.0)}
    found = checked(rounds.finding({"psnr": by_round, "ssim": by_round}, 9.0))
    assert (found.value.mean, found.value.count) == (pytest.approx(1.5), 2)
    assert rounds.slopes(by_round) == pytest.approx({key: 2.0 - place for place, key in enumerate(by_round[2])})
    # Neither a line: 0, 1, 0 over 1, 2, 3 has slope 0.
    assert list(rounds.slopes({1: values(0.0), 2: values(1.0), 3: values(0.0)}).values()) == [0.0]


def test_risk_4_by_hand() -> None:
    """In round 1 the pre-trained model gives 3 and 5 dB more, in round 4 1 dB less: the first round is the number."""
    scores = {
        pretrained.FRESH: {1: values(10.0, 10.0), 4: values(12.0, 12.0)},
        pretrained.PRETRAINED: {1: values(13.0, 15.0), 4: values(11.0, 11.0)},
    }
    found = checked(pretrained.finding({"psnr": scores, "ssim": scores}, 9.0, 0.71))
    assert found.value.mean == pytest.approx(4.0)
    assert "−1.00 ± 0.00 dB in round 4".replace(" ", "\xa0") in found.sentence.replace(" ", "\xa0")
    assert "0.71" in found.notes[0]


def test_risk_5_by_hand() -> None:
    """Gains of 8 and 10 dB against 1 and 3 dB: 7 dB; Welch with equal variances of 2 has 2 degrees of freedom."""
    alone = {**values(8.0, client="a"), **values(10.0, client="b")}
    gains = {1: alone, 2: values(1.0, 3.0, client="c")}
    found = checked(client_size.finding({"psnr": gains, "ssim": gains}))
    assert found.value.mean == pytest.approx(7.0)
    assert found.value.interval is not None
    # t(0.975, 2) = 4.3027, standard error sqrt(2/2 + 2/2).
    assert found.value.interval[1] - 7 == pytest.approx(4.3027 * math.sqrt(2), rel=1e-4)
    assert found.rows[0][3:] == ("2", "2")
    assert found.rows[1][3:] == ("1", "2")


def test_risk_6_by_hand() -> None:
    """Epochs of 10 and 20 ms; DP-SGD doubles them, masks add 5 and 10 ms, Shadow takes ten times as long."""
    seconds = {
        cost.PLAIN: [0.01, 0.02],
        cost.DP: [0.02, 0.04],
        cost.SHADOW: [0.1, 0.2],
        cost.STORED: [0.015, 0.03],
        cost.SECURE: [0.005, 0.01],
    }
    found = checked(cost.finding(seconds, {cost.SHADOW: 0.2, cost.STORED: 0.2}, 0.001, 250_000))
    assert found.value.mean == pytest.approx(2.0)
    assert found.value.interval == pytest.approx((2.0, 2.0))
    assert found.outcome == "borne out"
    assert "more than DP-SGD, which takes 0.20" in found.sentence
    ratios = {row[0]: row[1] for row in found.rows}
    assert ratios["Secure sum of 10 clients"].startswith("1.50")
    assert ratios["Shadow, with its pseudo attack"].startswith("10.00")
    assert {row[-1] for row in found.rows} == {"1.00"}
    assert (
        "less than DP-SGD"
        in cost.finding({**seconds, cost.SHADOW: [0.01, 0.02]}, {cost.SHADOW: 0.0, cost.STORED: 0.0}, 0.0, 1).sentence
    )


def test_risk_7_finds_a_right_map_a_wrong_one_and_one_that_says_nothing() -> None:
    draws = torch.Generator().manual_seed(0)
    images: list[Image] = [(0, "client", f"image-{index}") for index in range(6)]
    errors = {image: torch.rand(12, 12, generator=draws) for image in images}
    right = {image: 1 - error for image, error in errors.items()}
    found = checked(regions.finding(right, errors, 0))
    assert found.rows[0][1].startswith("1.000")
    assert abs(found.value.mean - 1) < 0.1
    assert found.outcome == "borne out"
    # The 43 of 144 pixels with the least of uniform errors have a mean of about 0.15, over 0.5.
    assert regions.marked_error(right[images[0]], errors[images[0]]) == pytest.approx(0.3, abs=0.08)
    assert regions.finding({image: -own for image, own in right.items()}, errors, 0).outcome == "contradicted"
    blank = torch.ones(12, 12)
    assert regions.agreement(blank, errors[images[0]]) == 0.0
    # One map for all images: nothing beyond what another image's map says.
    shared = torch.rand(12, 12, generator=draws)
    same = regions.finding(dict.fromkeys(images, shared), dict.fromkeys(images, 1 - shared), 0)
    assert same.rows[0][1] == same.rows[1][1] != same.rows[2][1]


def test_no_interval_is_never_clear() -> None:
    one = rounds.finding({"psnr": {1: values(1.0), 2: values(2.0)}, "ssim": {1: values(1.0), 2: values(2.0)}}, 0.0)
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


def test_scores_are_read_by_seed_client_and_image(tmp_path: Path, tiny: dict[str, Any]) -> None:
    run = Run.create(tmp_path / "run", config_from({**tiny, "seed": 3}))
    row = {"sample_id": "x", "psnr_whole": 10.0}
    lost = {"sample_id": None, "psnr_whole": 99.0}
    scores = [
        {"arm": "fedavg", "attack": "ig", "round": 0, "client": "a", "rows": [row, lost]},
        {"arm": "fedavg", "attack": "ig", "round": 1, "client": "a", "rows": [{**row, "psnr_whole": 20.0}]},
        {"arm": "shadow", "attack": "ig", "round": 0, "client": "a", "rows": [{**row, "psnr_whole": 1.0}]},
        {"arm": "fedavg", "attack": "other", "round": 0, "client": "a", "rows": [{**row, "psnr_whole": 2.0}]},
    ]
    (run.folder / "scores.json").write_text(json.dumps(scores))
    wanted = {"arm": "fedavg", "attack": "ig", "column": "psnr_whole"}
    assert image_values([run], **wanted) == {(3, "a", "x"): 15.0}
    assert image_values([run], round=2, **wanted) == {(3, "a", "x"): 20.0}


def test_the_registry_and_the_choice() -> None:
    assert list(RISKS) == [risk.number for risk in RISKS.values()] == [1, 2, 3, 4, 5, 6, 7]
    assert [risk.number for risk in chosen_risks(None)] == [1, 2, 3, 4, 5, 6, 7]
    for wrong in ("9", "2,", "two", "2;5"):
        with pytest.raises(ConfigError) as error:
            chosen_risks(wrong)
        assert "valid are: 1 (uniform perturbation), 2 (batch-norm statistics)," in str(error.value)
        assert "\n" not in str(error.value)


def test_every_risk_plans_valid_sub_runs_from_the_preset(tmp_path: Path) -> None:
    base = load_config("risks")
    for risk in RISKS.values():
        for label, subrun in risk.subruns(base, tmp_path).items():
            config = subrun.config
            assert (config.data.source, config.seed, config.metrics.lpips) == ("pneumoniamnist", 0, None), label
            assert config.attacks or risk.number in (4, 6)
    # What a risk changes is what it is about, and no more.
    with_, without = (
        RISKS[2].subruns(base, tmp_path)["clients"].config.attacks[name].build()
        for name in ("with-statistics", "without-statistics")
    )
    assert without == with_.model_copy(update={"batch_norm": 0.0}) != with_
    starts = RISKS[4].subruns(base, tmp_path)
    fresh, pre = (starts[name].config for name in ("fresh", "pretrained"))
    assert fresh.model == pre.model.model_copy(update={"start": None}) != pre.model
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
    found = dict(zip((4, 7), (finding for _, finding in run_risks(base, [RISKS[4], RISKS[7]], out)), strict=True))
    assert found[4].value.count == 2
    assert found[7].value.count == 3
    # The pre-trained arm began where the central training ended, and that is not where the fresh one began.
    folder = out / RISKS[4].folder / "seed-0"
    begins = {
        name: read_tensors(folder / name / "arms" / "fedavg" / "round-0000" / "global.safetensors")[0]
        for name in ("fresh", "pretrained")
    }
    ended, _ = read_tensors(folder / "public" / "arms" / "public" / "state-0002" / "global.safetensors")
    assert all(torch.equal(begins["pretrained"][name], tensor) for name, tensor in ended.items())
    assert any(not torch.equal(begins["fresh"][name], tensor) for name, tensor in ended.items())
    # No client's image was trained on beforehand.
    run = Run.open(folder / "public")
    public = set(pretrained.public_federation(run).clients[0].train.sample_ids)
    assert public and public.isdisjoint(name for client in run.dataset.clients for name in client.train.sample_ids)

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".yaml")}
    again = dict(zip((4, 7), (finding for _, finding in run_risks(base, [RISKS[4], RISKS[7]], out)), strict=True))
    assert again == found
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    record = json.loads((out / "risks.json").read_text())
    assert [entry["number"] for entry in record["risks"]] == [4, 7]
    assert record["risks"][0]["finding"]["value"]["mean"] == found[4].value.mean
    html = (out / "risks.html").read_text()
    assert html.count('<section id="risk-') == 2
    assert "<script" not in html and "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    other = base.model_copy(update={"training": base.training.model_copy(update={"learning_rate": 0.1})})
    with pytest.raises(RunError, match=r"another training.learning_rate"):
        list(run_risks(other, [RISKS[4]], out))


@pytest.mark.slow
def test_cost_is_measured_and_two_seeds_are_two_runs(
    base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opacus")
    monkeypatch.setattr(cost, "REPETITIONS", 2)
    out = tmp_path / "risks"
    ((_, found),) = run_risks(base, [RISKS[6]], out, seeds=2)
    times = json.loads((out / RISKS[6].folder / "seed-1" / "seconds" / "arms" / "seconds.json").read_text())
    assert {len(each) for each in times["seconds"].values()} == {2}
    assert all(second > 0 for each in times["seconds"].values() for second in each)
    model = Run.open(out / RISKS[6].folder / "seed-1" / "seconds").new_model("plain")
    assert times["entries"] == sum(tensor.numel() for tensor in model.state_dict().values())
    assert found.value.count == 4


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
    found = rounds.finding({"psnr": {1: values(1.0), 2: values(2.0)}, "ssim": {1: values(1.0), 2: values(2.0)}}, 0.0)
    entry = {
        "number": 3,
        "name": "x",
        "claim": "<b>",
        "experiment": "e",
        "folders": ["<i>"],
        "finding": found.as_dict(),
    }
    page = {"title": "<script>", "created": "d", "command": "k", "seeds": [0], "versions": {}, "config": {}}
    html = render_risks(read_record(RisksRecord, {**page, "risks": [entry]}))
    assert "<script>" not in html and "<b>" not in html and "<i>" not in html
