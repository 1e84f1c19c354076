"""Calibration: bisection on known leakages, its doubts, and a whole one on an attack that rebuilds exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shadow_defense.cli.calibrate import calibrate as calibrate_command
from shadow_defense.config import config_from
from shadow_defense.errors import DataError, ShadowDefenseError
from shadow_defense.experiment.plans.calibration.bisection import (
    CalibrationSettings,
    Points,
    bisected,
    calibrate,
    worst_round,
)
from shadow_defense.experiment.plans.calibration.results import run_calibration
from shadow_defense.experiment.plans.calibration.runs import Calibrating
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.pretraining import Pretraining
from shadow_defense.files import read_json
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.leakage import relative_data_leakage
from shadow_defense.metrics.limit import Limit
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.report.numbers import numbers
from shadow_defense.report.records.calibration import (
    Bisected,
    CalibrationRecord,
    Chosen,
    Crossing,
    Leakage,
    Rise,
    ScheduleEntry,
    Strength,
)
from shadow_defense.report.records.reading import load_record
from shadow_defense.report.records.scores import Data
from shadow_defense.report.sentences.calibration import chosen_sentences, doubt_sentences, schedule_sentence
from shadow_defense.seeds import named_generator


class Counted:
    """A leakage function that remembers what it was asked."""

    def __init__(self, leakage: Callable[[float], Leakage]) -> None:
        self.leakage, self.asked = leakage, list[float]()

    def __call__(self, strength: float) -> Leakage:
        self.asked.append(strength)
        return self.leakage(strength)


def leaking(mean: float, half: float) -> Leakage:
    return Leakage(mean, mean - half, mean + half, 1, 8)


@settings(max_examples=200)
@given(
    start=st.floats(0.5, 1.0),
    half=st.floats(0.0, 0.2),
    root=st.floats(0.05, 1.9),
    tolerance=st.sampled_from([0.01, 0.05, 0.2]),
)
def test_bisection_finds_both_crossings_of_a_falling_leakage(
    start: float, half: float, root: float, tolerance: float
) -> None:
    """The mean falls in a line and is 0.2 at ``root``; its upper end is there where the line is 0.2 - half."""
    slope = (start - 0.2) / root
    measure = Counted(lambda strength: leaking(start - slope * strength, half))
    points, found = calibrate(measure, 0.2, most=2.0, tolerance=tolerance)
    assert len(measure.asked) == len(set(measure.asked)) == len(points)
    assert len(measure.asked) <= 2 + 2 * math.ceil(math.log2(2.0 / tolerance) + 0.01)
    average = found.average
    assert average.fails is not None and average.holds is not None
    assert average.fails <= root + 1e-9
    assert root - 1e-9 <= average.holds
    assert average.holds - average.fails <= tolerance
    certain_root = root + half / slope
    if certain_root < 2.0:
        assert found.outcome == "found"
        certain = found.certain
        assert certain.fails is not None and certain.holds is not None
        assert certain.fails - 1e-9 <= certain_root <= certain.holds + 1e-9
        assert certain.holds - certain.fails <= tolerance
    else:
        assert found.outcome == "not enough"
        assert found.certain.holds is None
    if found.leaks is not None:
        assert found.leaks <= root - half / slope + 1e-9
    assert found.rises == () and found.held_earlier == ()


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.0, 0.5))
def test_whatever_the_noise_what_is_certain_was_measured_so(seed: int, noise: float) -> None:
    def leakage(strength: float) -> Leakage:
        draw = torch.rand(2, generator=named_generator(seed, str(strength)), dtype=torch.float64)
        return leaking(1 - strength / 2 + noise * (draw[0].item() - 0.5), 0.2 * draw[1].item())

    measure = Counted(leakage)
    points, found = calibrate(measure, 0.5, most=3.0, tolerance=0.05)
    assert len(measure.asked) == len(set(measure.asked)) <= 2 + 2 * math.ceil(math.log2(3.0 / 0.05))
    assert list(points) == sorted(points)
    certain, average = found.certain, found.average
    if certain.holds is not None:
        assert all(leak.high < 0.5 for strength, leak in points.items() if strength >= certain.holds)
        # Below in the interval is below on average.
        assert average.holds is not None and average.holds <= certain.holds
    if certain.fails is not None:
        assert points[certain.fails].high >= 0.5
    for rise in found.rises:
        assert rise.weaker < rise.stronger
        assert points[rise.stronger].mean > points[rise.weaker].mean


def test_measurements_that_contradict_monotone_leakage_are_noted() -> None:
    """At 1.0 the interval is wide and crosses the target; 0.5, visited for the mean, is clearly below it."""
    known = {
        0.0: leaking(0.9, 0.1),
        2.0: leaking(0.1, 0.05),
        1.0: leaking(0.45, 0.3),
        1.5: leaking(0.2, 0.05),
        0.5: leaking(0.3, 0.1),
    }
    points, found = calibrate(known.__getitem__, 0.5, most=2.0, tolerance=0.5)
    assert set(points) == set(known)
    assert found.certain == Crossing(fails=1.0, holds=1.5)
    assert found.average == Crossing(fails=0.0, holds=0.5)
    assert found.leaks == 0.0
    # 0.15 = 0.45 - 0.3 lies below 0.4 = 0.3 + 0.1: the rise may be chance.
    assert found.rises == (Rise(0.5, 1.0, clear=False),)
    assert found.held_earlier == (0.5,)
    sentences = doubt_sentences("growing", _entry(points, found))
    assert sentences[0].startswith("growing: strength 1 leaks more on average than 0.5, within the intervals")
    assert sentences[1].startswith("growing: strength 0.5 was below the target although 1 was not")
    points = {0.0: leaking(0.9, 0.1), 1.0: leaking(0.3, 0.05), 2.0: leaking(0.45, 0.02)}
    clear = bisected(points, 0.5)
    assert clear.rises == (Rise(1.0, 2.0, clear=True),)
    assert "do not overlap" in doubt_sentences("growing", _entry(points, clear))[0]


def test_an_attack_that_fails_by_itself_is_measured_once() -> None:
    measure = Counted(lambda strength: leaking(0.3, 0.1))
    points, found = calibrate(measure, 0.5, most=3.0, tolerance=0.05)
    assert measure.asked == [0.0]
    assert (found.outcome, found.certain.holds) == ("not needed", 0.0)
    assert "proves nothing" in schedule_sentence("growing", _entry(points, found), TARGET)


def test_a_mean_below_the_target_from_the_start_still_asks_for_certainty() -> None:
    points, found = calibrate(lambda strength: leaking(0.45 - 0.1 * strength, 0.12), 0.5, most=2.0, tolerance=0.1)
    assert found.outcome == "found"
    assert found.average == Crossing(fails=None, holds=0.0)
    # 0.57 - 0.1 s < 0.5 from s = 0.7 on.
    assert found.certain == Crossing(fails=0.6875, holds=0.75)
    assert "the mean alone is below it at every strength" in schedule_sentence("growing", _entry(points, found), TARGET)


def test_a_greatest_strength_that_is_not_enough() -> None:
    points, found = calibrate(lambda strength: leaking(0.9 - 0.2 * strength, 0.15), 0.5, most=2.5, tolerance=0.1)
    assert (found.outcome, found.certain) == ("not enough", Crossing(fails=2.5, holds=None))
    assert found.average.holds is not None and 2.0 < found.average.holds <= 2.1
    text = schedule_sentence("growing", _entry(points, found), TARGET)
    assert "even strength 2.5 is not surely below SSIM 0.50 (SSIM 0.40 [0.25, 0.55])" in text
    few, hopeless = calibrate(lambda strength: leaking(0.9, 0.1), 0.5, most=2.5, tolerance=0.1)
    assert list(few) == [0.0, 2.5]
    assert hopeless.leaks == 2.5
    assert "even the mean stays at or above the target" in schedule_sentence("growing", _entry(few, hopeless), TARGET)


TARGET = Limit("ssim", 0.5)


def _strength(strength: float, **leakage: Leakage) -> Strength:
    return Strength(
        strength=strength,
        mean_amplitude=0.75,
        leakage=leakage,
        f1=(0.8, 0.8),
        f1_difference=Estimate(-0.021, (-0.05, 0.008), 2),
        seconds=1.0,
    )


def _entry(points: Points, found: Bisected) -> ScheduleEntry:
    """What a bisection found, as the page has it."""
    measured = tuple(_strength(strength, ssim=leakage) for strength, leakage in points.items())
    return ScheduleEntry(**vars(found), measurements=measured)


def test_worst_round_by_hand() -> None:
    """t(0.975, 1) = 12.7062; of (1, 3) the deviation is sqrt 2, so that the half width is t sqrt 2 / sqrt 2."""
    leakage = worst_round({1: {"a": [0.5, 1.5], "b": [3.0]}, 8: {"a": [1.9], "b": [1.9]}})
    assert (leakage.mean, leakage.round, leakage.images) == (2.0, 1, 2)
    assert leakage.low == pytest.approx(2 - 12.7062, abs=1e-4)
    assert leakage.high == pytest.approx(2 + 12.7062, abs=1e-4)
    # The upper end is of whichever round has the greatest, the mean of the round that leaks most.
    leakage = worst_round({1: {"a": [1.0], "b": [3.0]}, 8: {"a": [2.5], "b": [2.5]}})
    assert (leakage.mean, leakage.low, leakage.round) == (2.5, 2.5, 8)
    assert leakage.high == pytest.approx(2 + 12.7062, abs=1e-4)
    with pytest.raises(DataError, match="round 3 has 1 scored images: two at least"):
        worst_round({1: {"a": [1.0], "b": [3.0]}, 3: {"a": [1.0, 2.0]}})


def test_relative_data_leakage_by_hand() -> None:
    """(0.75 - 0.5) / 0.5 = 0.5 and so on, written out from the formula; all are exact in binary."""
    found = relative_data_leakage(torch.tensor([0.75, 0.5, 0.25, -0.5]), torch.tensor([0.5, 0.5, 0.5, 0.25]))
    assert found.tolist() == [0.5, 0.0, -0.5, -3.0]
    assert torch.isnan(relative_data_leakage(torch.tensor([0.9, 0.9]), torch.tensor([0.0, -0.1]))).all()


def test_relative_data_leakage_of_pictures() -> None:
    """The prior itself has 0; the image itself 1 / SSIM(prior) - 1."""
    images = torch.rand(3, 1, 16, 16, generator=named_generator(0, "images"))
    prior = (0.7 * images + 0.3 * torch.rand(3, 1, 16, 16, generator=named_generator(0, "prior"))).clamp(0, 1)
    before = ssim(prior, images)
    assert torch.equal(relative_data_leakage(before, before), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(relative_data_leakage(ssim(images, images), before), (1 / before - 1).double())


EXACT: dict[str, Any] = {
    "title": "exact",
    "data": {"source": "faces", "image_size": 12, "split": {"kind": "sizes", "sizes": [1, 1]}},
    "model": {"name": "lenet", "normalisation": "none"},
    "generator": {"z_dim": 8, "width": 4, "steps": 2, "batch_size": 4},
    "training": {"rounds": 2, "learning_rate": 0.05},
    "arms": {"strong": {"defense": "shadow", "options": {"latent_iterations": 3, "momentum": 0.3}}},
    "attacks": {"r-gap": {"attack": "r-gap", "rounds": [1]}, "ig": {"options": {"iterations": 2}, "longest_client": 1}},
    "metrics": {"lpips": None},
    "workers": 0,
}
"""R-GAP solves a LeNet's equations: without defense SSIM 1, with Shadow the protected images, in a second."""


def sought(**changes: Any) -> CalibrationSettings:
    values = {"target": {"metric": "ssim", "value": 0.7}, "schedules": ["growing"], "tolerance": 1.0, "most": 2.0}
    return CalibrationSettings.model_validate({**values, "seeds": [0], **changes})


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_whole_calibration_goes_on_and_is_told_as_it_is(tmp_path: Path) -> None:
    folder, heard = tmp_path / "calibrated", list[tuple[str, float]]()

    def hear(schedule: str, measured: Strength) -> None:
        heard.append((schedule, measured.strength))

    config = config_from(EXACT)
    results = run_calibration(folder, config, sought(), on_measurement=hear)
    growing = results.schedules["growing"]
    strengths = [measured.strength for measured in growing.measurements]
    assert sorted(heard) == [("growing", strength) for strength in strengths]
    assert results.undefended.leakage["ssim"].mean > 0.99
    assert growing.outcome == "found" and results.chosen is not None
    assert growing.certain.holds is not None and growing.certain.fails is not None
    assert results.chosen.strength == growing.certain.holds > growing.certain.fails > 0
    assert results.chosen.leakage["ssim"].high < 0.7

    # What can be pasted is the configuration's own arm with strength and schedule changed, as it was trained.
    arm = results.chosen.arm["shadow-calibrated"]
    wanted = {"latent_iterations": 3, "momentum": 0.3, "strength": results.chosen.strength, "schedule": "growing"}
    assert arm == {**config.arms["strong"].model_dump(mode="json"), "options": wanted}
    trained = [read_json(path)["task"]["defense"]["settings"] for path in folder.glob("store/training-*/task.json")]
    assert any(wanted.items() <= settings.items() for settings in trained)
    assert config_from({"arms": {"a": arm}}).arms["a"].options == wanted

    # The baseline is an attacker's who never looks, computed here by hand.
    run = Scene(config)
    truths = torch.cat([client.train.unit_images() for client in run.dataset.clients])
    expected = psnr(run.mean_image.expand_as(truths), truths).mean().item()
    assert results.mean_image["psnr"].mean == pytest.approx(expected, rel=1e-5)
    assert results.mean_image["rdlv"].mean == 0

    # Again: nothing is trained or attacked. Closer: only what is new. Another schedule: the undefended arm stays.
    before = files(folder)
    assert run_calibration(folder, config, sought()) == results
    assert load_record(CalibrationRecord, folder / "calibration.json", "") == results
    rows = numbers(results).csv().splitlines()[1:]
    assert len(rows) == sum(
        len(strength.leakage) for entry in results.schedules.values() for strength in entry.measurements
    )
    assert {f"{task.kind}-{task.key}" for task in results.tasks} == {
        path.parent.name for path in folder.glob("store/*/task.json")
    }
    assert files(folder) == before
    closer = run_calibration(folder, config, sought(tolerance=0.5, schedules=["growing", "constant"]))
    assert {path: files(folder)[path] for path in before} == before
    assert len(closer.schedules["growing"].measurements) > len(strengths)
    constant = closer.schedules["constant"]
    assert constant.measurements[0] == closer.undefended
    assert constant.measurements[-1].strength == growing.measurements[-1].strength == 2.0
    assert closer.chosen is not None
    assert closer.chosen.mean_amplitude == min(
        measured.mean_amplitude
        for entry in closer.schedules.values()
        for measured in entry.measurements
        if measured.strength == entry.certain.holds
    )

    page = (folder / "calibration.html").read_text(encoding="utf-8")
    film = page[page.index('id="film"') : page.index('id="strength"')]
    measured = sum(len(entry.measurements) for entry in closer.schedules.values())
    assert film.count("<img") == measured + 2 * len(closer.schedules), "the original and the mean image beside them"
    assert "recognisable" in film and "chosen" in film
    assert f"strength: {closer.chosen.strength}" in page
    assert "growing (chosen)" in page or "constant (chosen)" in page

    with pytest.raises(ShadowDefenseError, match="was begun with another seed"):
        run_calibration(folder, config_from({**EXACT, "seed": 5}), sought())


def test_seeds_see_other_images_and_have_generators_of_their_own(tmp_path: Path) -> None:
    data = {**EXACT["data"], "split": {"kind": "sizes", "sizes": [4, 4]}}
    runs = Calibrating(tmp_path, config_from({**EXACT, "data": data}), sought(seeds=[0, 1]))
    public, private = ([set(part(run)) for run in runs.probes] for part in (_public, _private))
    assert private[0] != private[1]
    assert not public[0] & private[0] and not public[1] & private[1]
    # Why they do not share one: some of one seed's private images are public under the other.
    assert public[0] & private[1] or public[1] & private[0]
    first, second = (Pretraining(probe).key for probe in runs.probes)
    assert first != second


def _public(run: Scene) -> list[str]:
    return list(run.dataset.public.sample_ids)


def _private(run: Scene) -> list[str]:
    return [name for client in run.dataset.clients for name in client.train.sample_ids]


def chosen(**leakage: Leakage) -> CalibrationRecord:
    found = vars(_strength(0.75, **leakage)) | {"schedule": "constant", "arm": {}}
    blank = _strength(0.0, ssim=leaking(0.5, 0.05), psnr=leaking(15.0, 1.0))
    return CalibrationRecord(
        title="t",
        created="d",
        command="c",
        versions={},
        seeds=(0, 1),
        data=Data(name="faces", image_size=(16, 16), channels=1, clients={}, public=1, test=1, sha256=""),
        config={},
        settings={},
        target=TARGET,
        attack="ig",
        attack_settings={},
        threat_model="",
        mean_image=blank.leakage,
        undefended=blank,
        schedules={},
        chosen=Chosen(**found),
        seconds=1.0,
    )


def test_a_target_that_another_measure_contradicts_is_said() -> None:
    quiet = chosen_sentences(chosen(ssim=leaking(0.4, 0.05), psnr=leaking(15.5, 1.0)))
    assert len(quiet) == 1
    assert "constant 0.75" in quiet[0] and "-2.1 points" in quiet[0] and "-5.0 to +0.8" in quiet[0]
    loud = chosen_sentences(chosen(ssim=leaking(0.4, 0.05), psnr=leaking(16.5, 1.0)))
    assert "By PSNR the attack still beats the mean image" in loud[1]


def command(tmp_path: Path, *arguments: str, **changes: Any) -> str:
    """The message of the command's error, which must come before anything is trained."""
    file = tmp_path / "exact.yaml"
    file.write_text(yaml.safe_dump({**EXACT, **changes}, sort_keys=False))
    app = typer.Typer()
    app.command()(calibrate_command)
    result = CliRunner().invoke(app, [str(file), "--out", str(tmp_path / "out"), "--quiet", *arguments])
    assert isinstance(result.exception, ShadowDefenseError), result.output
    assert not (tmp_path / "out").exists()
    message = str(result.exception)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--target", "ssim=2"], "target ssim=2: expected a number above 0 and below 1"),
        (["--target", "rdlv=0"], "target rdlv=0: expected a number above 0"),
        (["--target", "psnr=nan"], "target psnr=nan: expected a number above 0 and below 100"),
        (["--target", "ssim=low"], "target ssim=low: expected a number above 0 and below 1"),
        (["--target", "0.4"], "expected metric=value, such as ssim=0.4"),
        (
            ["--target", "sim=0.4"],
            "--target: unknown metric 'sim': did you mean 'ssim'? valid are: psnr, rdlv, ssim",
        ),
        (
            ["--attack", "rgap"],
            "unknown attack of the configuration 'rgap': did you mean 'r-gap'? valid are: ig, r-gap",
        ),
        (["--schedules", "growing,falling"], "schedules.1 = 'falling': input should be 'growing', 'constant',"),
        (["--tolerance", "0"], "tolerance = 0.0: input should be greater than or equal to 0.001"),
        (["--most", "-1"], "most = -1.0: input should be greater than 0"),
        (["--seeds", "2"], "or 2, with a comma for seed 2 alone"),
        (["--set", "attacks.ig.threat_model=eavesdropper", "--set", "attacks.ig.attack=gradinversion"], "not grant"),
        (["--set", "training.round=1"], "did you mean 'rounds'?"),
        (["--target", "ssim=0.1"], "target ssim=0.1 is out of reach: the mean of the public images"),
        (["--set", "attacks.r-gap.clients=[client-1]", "--seeds", "1,"], "is tried on 1 image"),
        (["--set", "attacks.r-gap.clients=[client-9]"], "names 'client-9': the clients are"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(arguments: list[str], wanted: str, tmp_path: Path) -> None:
    assert wanted in command(tmp_path, *arguments)


def test_a_configuration_without_attacks_says_so(tmp_path: Path) -> None:
    assert "has no attack to calibrate against" in command(tmp_path, attacks={})


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "chapter.txt").write_text("years of work")
    with pytest.raises(ShadowDefenseError, match="holds files that no calibration wrote"):
        run_calibration(tmp_path, config_from(EXACT), sought())
    assert [path.name for path in tmp_path.iterdir()] == ["chapter.txt"]


@pytest.mark.parametrize("content", [b"- 1\n", b"\xff\xfe", b"[1"])
def test_a_damaged_record_of_the_configuration_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calibration.yaml").write_bytes(content)
    with pytest.raises(ShadowDefenseError, match=r"calibration\.yaml") as error:
        run_calibration(tmp_path, config_from(EXACT), sought())
    assert "\n" not in str(error.value)
