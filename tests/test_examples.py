"""The examples run as they stand, and the drop-in loop stays short."""

from __future__ import annotations

import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from shadow_defense.attacks.build import ATTACKS
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.plans.comparison.reading import load_grid

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_the_plain_loop_is_under_forty_lines_and_protects(capsys: pytest.CaptureFixture[str]) -> None:
    script = EXAMPLES / "plain_pytorch.py"
    assert len(script.read_text().splitlines()) < 40
    runpy.run_path(str(script), run_name="__main__")
    noises = [float(line.split("batch ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(noises) == 3
    # The amplitude grows by exp(r / R): from round to round the noise does too.
    assert 0 < noises[0] < noises[1] < noises[2]


@pytest.mark.slow
def test_one_image_writes_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    path = tmp_path / "one.png"
    monkeypatch.setattr(sys, "argv", ["one_image.py", str(path)])
    runpy.run_path(str(EXAMPLES / "one_image.py"), run_name="__main__")
    with Image.open(path) as picture:
        assert picture.width > 4 * 64
        assert picture.getextrema()[0][0] < picture.getextrema()[0][1]


class TestPlugin:
    """The example package, on the path but not installed."""

    @pytest.fixture(autouse=True)
    def on_the_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(EXAMPLES / "plugin"))

    @pytest.mark.slow
    def test_its_defense_and_attack_go_through_a_comparison(self, tmp_path: Path) -> None:
        comparison = Comparison(tmp_path, load_grid(str(EXAMPLES / "plugin" / "signs.yaml"), ["workers=1"]))
        comparison.run()
        scores = comparison.scores()["convnet"]
        assert not comparison.failures
        psnr = {(score.arm, score.attack): score.rows[0].metrics["psnr_whole"] for score in scores if score.round == 1}
        arms = {"fedavg", "signs", "clipped-signs"}
        assert arms <= {arm for arm, _ in psnr}
        assert len({psnr[arm, "public-mean"] for arm in arms}) == 1, "a guess does not depend on the defense"
        assert len({psnr[arm, "inverting-gradients"] for arm in arms}) == 3

    def test_its_options_are_checked(self) -> None:
        with pytest.raises(ConfigError, match=r"defenses\.signs: unknown key 'signs\.scael': did you mean 'scale'"):
            load_grid(str(EXAMPLES / "plugin" / "signs.yaml"), ["defenses.signs.options.scael=1"])

    def test_its_entry_points_name_what_is_there(self) -> None:
        project = tomllib.loads((EXAMPLES / "plugin" / "pyproject.toml").read_text())["project"]
        for registry in (DEFENSES, ATTACKS):
            for name, value in project["entry-points"][registry.group].items():
                assert registry.find(value).name == name
