"""The examples run as they stand, and the drop-in loop stays short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_plain_loop_is_under_forty_lines_and_protects() -> None:
    script = EXAMPLES / "plain_pytorch.py"
    assert len(script.read_text().splitlines()) < 40
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    noises = [float(line.split("batch ")[1].split()[0]) for line in result.stdout.splitlines()]
    assert len(noises) == 3
    # The amplitude grows by exp(r / R): from round to round the noise does too.
    assert 0 < noises[0] < noises[1] < noises[2]


def test_one_image_writes_its_picture(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "one.png"
    result = subprocess.run(
        [sys.executable, EXAMPLES / "one_image.py", path], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    with Image.open(path) as picture:
        assert picture.width > 4 * 64
        assert picture.getextrema()[0][0] < picture.getextrema()[0][1]
