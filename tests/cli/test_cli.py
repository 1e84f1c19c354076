from __future__ import annotations

import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from shadow_defense.cli import main
from shadow_defense.cli.app import app
from shadow_defense.errors import MESSAGE_LIMIT

COMMAND = [sys.executable, "-m", "shadow_defense.cli"]

Ended = subprocess.CompletedProcess[str]


def in_a_process(*arguments: str, folder: Path | None = None) -> Ended:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=folder, timeout=120)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Ended]]:
    """The command line in the test's own process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    answer = signal.getsignal(signal.SIGTERM)

    def running(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["shadow-defense", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(arguments, ended.value.code, *capsys.readouterr())

    yield running
    signal.signal(signal.SIGTERM, answer)


AT_ONCE = (
    (["run", "dmo"], "did you mean 'demo'"),
    (["run", "demo", "--set", "training.round=3"], "did you mean 'rounds'"),
    (["run", "demo", "--set", "training.rounds=0"], "training.rounds = 0"),
    (["run", "demo", "--set", "data.source=facs"], "did you mean 'faces'"),
    (["run", "demo", "--set", "arms.published-strength-0.19.defense=shadw"], "did you mean 'shadow'"),
    (["run", "demo", "--set", "attacks.inverting-gradients.attack=invert"], "unknown attack 'invert'"),
    (["config", "show", "demo", "--set", "model.name=resnet50"], "did you mean 'resnet18'"),
    (["config", "show", "demo", "--set", "generator.name=dcgn"], "did you mean 'dcgan'"),
    (["train", "no-such-run"], "is no run directory"),
    (["report", "no-such-run"], "is no run directory"),
    (["train", "no-such-run", "--set", "seed=1"], "give --config too"),
    (["demo", "--images", "chests"], "unknown --images 'chests': did you mean 'chest'?"),
    (["train", "no-such-run", "--config", "dmo"], "did you mean 'demo'"),
    (["pretrain"], "needs a run directory, or --generator NAME and --data FOLDER"),
    (["pretrain", "folder", "--generator", "dcgan"], "give either of the two"),
    (["pretrain", "--generator", "stylegan3-t-smal", "--data", "faces"], "did you mean 'stylegan3-t-small'"),
    (["compare", "pneumonamnist"], "did you mean 'pneumoniamnist'"),
    (["compare", "demo", "--seeds", "one"], "--seeds one: expected whole numbers"),
    (["compare", "demo", "--seeds", "9" * 5000], "expected whole numbers"),
    (["calibrate", "dmo"], "did you mean 'demo'"),
    (["compare", "pneumoniamnist", "--defenses", "shadw"], "did you mean 'shadow'"),
    (["risks", "--seeds", "one"], "--seeds one: expected whole numbers"),
    (["risks", "--only", "9"], "unknown risk '9'"),
    (["run", "pneumoniamnist", "--set", "data.path=absent.npz"], "absent.npz does not exist: correct the path"),
    (["run", "demo", "--set", "generator.path=absent.safetensors"], "generator.path: "),
    (["calibrate", "pneumoniamnist", "--set", "data.path=absent.npz"], "absent.npz does not exist"),
    (["calibrate", "demo", "--target", "ssim=2"], "target ssim=2: expected a number above 0 and below 1"),
    (["pretrain", "--generator", "dcgan", "--data", "absent"], "no images at 'absent'"),
    (["protect", "absent", "--out", "protected"], "no images at 'absent'"),
    (["import-snapshot", "absent.pkl"], "absent.pkl is no file"),
    (["audit", "no-such-run"], "is no run directory"),
    (["audit", "run", "--fail-above", "sim=0.4"], "did you mean 'ssim'"),
)
"""Mistakes that are seen before anything is imported that takes seconds."""

AFTER_LOADING = (
    (["config", "show", "demo", "--set", "arms.published-strength-0.19.options.strenght=1"], "did you mean 'strength'"),
    (["compare", "demo", "--defenses", "shadw"], "did you mean 'shadow'"),
)


def test_nothing_of_torch_is_imported_to_print_settings_or_to_see_a_mistake(tmp_path: Path) -> None:
    answered = [["config", "show"], ["config", "show", "demo"], ["data", "list"], *(given for given, _ in AT_ONCE)]
    code = f"""
import sys
from shadow_defense.cli import main
for arguments in {answered!r}:
    sys.argv = ["shadow-defense", *arguments]
    try:
        main()
    except SystemExit:
        pass
    assert not {{"torch", "monai", "skimage", "scipy"}} & set(sys.modules), arguments
print("NONE")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert result.stdout.endswith("NONE\n"), result.stderr[-2000:]


def test_the_guard_alone_brings_torch_and_little_else() -> None:
    code = "import sys\nfrom shadow_defense import ShadowGuard\nprint(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    found = set(result.stdout.split())
    assert "torch" in found
    assert not found & {"monai", "torchmetrics", "scipy", "skimage", "matplotlib", "PIL", "yaml", "numba", "pydicom"}


def test_the_version_is_the_packages(run: Callable[..., Ended]) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert run("--version").stdout == f"shadow-defense {project['version']}\n"


def test_help_says_what_each_argument_is() -> None:
    """Click 8.5 overwrites what typer below 0.21 keeps there; typer escapes its brackets where rich is installed."""

    def leaves(command: Any, context: Any) -> Iterator[tuple[Any, Any]]:
        yield command, context
        for name, child in getattr(command, "commands", {}).items():
            yield from leaves(child, type(context)(child, parent=context, info_name=name))

    group = get_command(app)
    records = [
        (command.name, *parameter.get_help_record(context))
        for command, context in leaves(group, group.make_context("shadow-defense", [], resilient_parsing=True))
        for parameter in command.params
        if parameter.param_type_name == "argument"
    ]
    assert len(records) > 10
    assert [record for record in records if len(record[2].removesuffix("[required]")) < 10 or "\\" in record[2]] == []


def test_help_imports_nothing_heavy() -> None:
    """Help must answer at once: none of the heavy libraries may be imported for it (timing is in benchmarks/)."""
    code = (
        "import sys; sys.argv = ['shadow-defense', '--help']\n"
        "from shadow_defense.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'monai', 'numpy', 'torchmetrics', 'skimage', 'matplotlib', 'scipy', 'pydantic'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in result.stdout, result.stdout + result.stderr
    stages = ("demo", "run", "pretrain", "train", "attack", "evaluate", "report")
    for command in (*stages, "compare", "risks", "calibrate", "import-snapshot", "data"):
        assert f"  {command} " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        *AT_ONCE,
        *AFTER_LOADING,
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    run: Callable[..., Ended], arguments: list[str], wanted: str
) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("shadow-defense: ") and wanted in line


def test_a_refusal_of_a_flag_stays_short_whatever_was_given(run: Callable[..., Ended]) -> None:
    result = run("audit", "--samples", "9" * 5000)
    assert result.returncode == 2
    assert "--samples" in result.stderr
    assert all(len(line) <= MESSAGE_LIMIT for line in result.stderr.splitlines())


def test_damaged_data_is_one_line_and_loses_nothing(run: Callable[..., Ended], tmp_path: Path) -> None:
    images = np.zeros((40, 16, 16), np.uint8)
    np.savez(tmp_path / "good.npz", train_images=images, train_labels=np.arange(40) % 2)
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "nan.npz", train_images=np.full((40, 16, 16), np.nan), train_labels=np.arange(40) % 2)
    for name in ("cut.npz", "nan.npz"):
        overrides = ["--set", "data.source=npz", "--set", f"data.path={name}", "--set", "data.image_size=16"]
        result = run("data", "show", "demo", *overrides)
        assert result.returncode == 2
        assert name in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "good.npz").read_bytes() == whole


def test_a_snapshot_that_would_run_a_program_is_refused(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "planted.pkl").write_bytes(b"\x80\x04cos\nsystem\nX\x0d\x00\x00\x00touch touched\x85R.")
    result = run("import-snapshot", "planted.pkl", "-o", "out.safetensors")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "'os.system'" in line
    assert [path.name for path in tmp_path.iterdir()] == ["planted.pkl"]


def test_data_and_config_commands_print_what_they_say(run: Callable[..., Ended]) -> None:
    listed = run("data", "list").stdout
    for source in ("faces", "npz", "image_folder", "manifest", "dicom_folder", "chest_phantom", "fundus_phantom"):
        assert source in listed
    shown = run("data", "show", "demo").stdout
    assert "client-6" in shown
    assert "normalisation" in shown
    assert run("config", "show").stdout.split()[0] == "batchnorm"
    assert "rounds: 6" in run("config", "show", "demo").stdout
    schema = run("config", "schema").stdout
    assert "training.rounds: int" in schema
    assert "data.split.kind" in schema


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 2)])
def test_a_signal_ends_every_process_with_one_line(
    run: Callable[..., Ended], tmp_path: Path, number: int, code: int, workers: int
) -> None:
    """Only the command is ended, as by a supervisor: its worker processes must not live on."""
    folder = tmp_path / "run"
    (tmp_path / "long.yaml").write_text(
        "data: {source: faces, image_size: 16, split: {kind: sizes, sizes: [1, 1]}}\n"
        "model: {name: lenet, normalisation: none}\n"
        "training: {rounds: 10000}\n"
        "arms: {fedavg: {defense: none}, noise: {defense: noise}}\n"
        f"workers: {workers}\n"
    )
    with subprocess.Popen(
        [*COMMAND, "run", str(tmp_path / "long.yaml"), "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has them ignore it, and their children too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            while not list(folder.glob("arms/*/history.json")):
                assert process.poll() is None
                time.sleep(0.1)
            other = run("report", str(folder))
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (other.returncode, other.stdout) == (2, "")
    assert f"{folder} is in use by process {process.pid} on " in other.stderr
    assert process.returncode == code
    assert list(folder.rglob(".*")) == []
    assert errors.splitlines()[-1] == "shadow-defense: stopped; the same command goes on from here"
    assert "Traceback" not in errors
    # Stopped training writes nothing more; communicate() has already waited for all who held the error stream.
    written = sorted(path.lstat().st_mtime_ns for path in folder.rglob("*"))
    time.sleep(1)
    assert written == sorted(path.lstat().st_mtime_ns for path in folder.rglob("*"))


def test_quiet_prints_nothing_and_a_pipe_gets_no_bars(run: Callable[..., Ended], tmp_path: Path) -> None:
    overrides = ["--set", "data.image_size=16", "--set", "generator.steps=1", "--set", "metrics.lpips=null"]
    made = in_a_process("pretrain", "made", "--config", "demo", *overrides, "--quiet", folder=tmp_path)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    again = run("pretrain", "made")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    refused = run("report", "made")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


def test_brackets_in_what_a_risk_found_are_no_markup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rich would swallow the first and stop at the second."""
    said = {"outcome": "[bold] or not", "sentence": "SSIM of shadow[strong] and [/bold]"}
    risk = SimpleNamespace(number=1, name="arms", **said)
    monkeypatch.setattr("shadow_defense.experiment.plans.risks.running.run_risks", lambda *_, **__: [risk])
    result = CliRunner().invoke(app, ["risks", "--out", str(tmp_path)])
    assert result.exception is None, result.exception
    assert "1. arms: [bold] or not\n  SSIM of shadow[strong] and [/bold]\n" in result.output
