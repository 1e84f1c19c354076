"""The audit of update files and of runs: what it rebuilds, what it says, what it refuses."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import shadow_defense
from shadow_defense.attacks.build import reconstruct
from shadow_defense.cli.app import app
from shadow_defense.config import config_from
from shadow_defense.errors import ThreatModelError, UpdateError
from shadow_defense.experiment.audit.reading import UpdateFiles
from shadow_defense.experiment.plans.run import STAGES
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.attacking import attack_seed
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.progress import Progress, Task
from shadow_defense.report.records.audit import AuditPair
from shadow_defense.seeds import named_generator
from tests.attacks.clients import lenet, private, public
from tests.experiment.audit_command import DIFFERENCE, LOCAL, MODEL, QUICK, Audit, update_of, write_images


def test_an_undefended_image_is_rebuilt_scored_and_passes_the_limit(audit: Audit) -> None:
    known = ("--truth", "@truth", "--template", "@public", "--gallery", "@public")
    limits = ("--fail-above", "ssim=0.4", "--fail-above", "iip=0.5", "--fail-above", "psnr=200")
    results = audit(*DIFFERENCE, *LOCAL, *known, *limits, "--attack", "r-gap", exit_code=1)
    (row,) = results["attacks"]["r-gap"]["rows"]
    assert (audit.images("r-gap") - private()).abs().max() < 1e-2
    assert row["psnr"] > 40 and row["ssim"] > 0.99 > row["mean_image_ssim"]
    assert row["rdlv"] == pytest.approx(row["ssim"] / row["mean_image_ssim"] - 1, rel=1e-4)
    assert row["hits"] == {"1": 1, "3": 1, "5": 1} and results["attacks"]["r-gap"]["k_iip"]["3"] == 1
    assert len(results["exceeded"]) == 2
    for metric in ("ssim", "iip"):
        assert f"above the limit: image 1: {metric} {row[metric]:.3f} by r-gap" in results["output"]
    assert "rebuilt image 1" in results["verdict"][0]
    said = [reason["sentence"] for reason in results["diagnosis"] if reason["effect"] == "gives away"]
    for words in ("no noise on the update", "one image", "One local step", "no batch norm", "`r-gap` solves"):
        assert any(words in sentence for sentence in said), words
    page = (audit.out / "audit.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    for words in ("runs the protocol as agreed", "Why", "RDLV", "torch", "Above the limit"):
        assert words in page
    assert audit(*DIFFERENCE, *known, "--attack", "r-gap", "--fail-above", "psnr=200")["exceeded"] == []


@pytest.mark.parametrize(
    "form",
    [
        ("--global", "@global.safetensors", "--update", "@difference.pt", "--samples", "1"),
        ("--before", "@global.safetensors", "--after", "@after.pt", "--samples", "1"),
        ("--before", "@global.safetensors", "--after", "@after.npz", "--labels", "1"),
    ],
)
def test_every_form_of_one_update_gives_the_same(audit: Audit, form: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("--model", "@model.yaml", *QUICK, "--threat-model", "eavesdropper")
    audit(*arguments, *form)
    reference = Audit(audit.files, tmp_path / "reference")
    reference(*arguments, "--global", "@global.safetensors", "--update", "@difference.pt", "--samples", "1")
    assert torch.equal(audit.images("inverting-gradients"), reference.images("inverting-gradients"))


@pytest.mark.slow
def test_one_step_of_adam_is_said_and_attacked_as_what_it_is(audit: Audit, tmp_path: Path) -> None:
    """Whether told or read off the update; and no noise is heard where there is none."""
    state, update = update_of(private(), [1], optimiser="adam", learning_rate=1e-3)
    save_file(state, tmp_path / "global.safetensors")
    update.save(tmp_path / "update.safetensors")
    given = ("--model", "@model.yaml", "--global", str(tmp_path / "global.safetensors"), "--truth", "@truth")
    given = (*given, "--template", "@public", "--update", str(tmp_path / "update.safetensors"), "--iterations", "150")
    local = ("--steps", "1", "--learning-rate", "0.001")
    for told in ((), ("--optimiser", "adam", "--loss", "ce"), (*local, "--optimiser", "adam", "--loss", "ce"), local):
        results = audit(*given, *told)
        (row,) = results["attacks"]["inverting-gradients"]["rows"]
        assert row["ssim"] > max(0.8, row["mean_image_ssim"])
        assert results["attacks"]["inverting-gradients"]["verdict"] == "rebuilt"
        said = [reason["sentence"] for reason in results["diagnosis"]]
        assert any("equally large: it looks like the first step of Adam" in sentence for sentence in said)
        assert not any("oise" in sentence for sentence in said)
        assert any("Not given" in sentence for sentence in said) == ("adam" not in told)
        assert ("What is not known" in (audit.out / "audit.html").read_text()) == ("adam" not in told)
    assert results["local_training"]["optimiser"] is None and results["facts"]["loss"] is None


@pytest.mark.slow
def test_an_optimiser_is_attacked_with_where_the_rest_is_not_known(audit: Audit) -> None:
    """And by nobody who is not granted the local training."""
    told = ("--optimiser", "rmsprop", "--attack", "r-gap")
    notes = audit(*DIFFERENCE, *told)["attacks"]["r-gap"]["notes"]
    assert "taken as one step on all images, by rmsprop" in notes[0] and "a step of rmsprop is no gradient" in notes[2]
    notes = audit(*DIFFERENCE, *told, "--threat-model", "eavesdropper")["attacks"]["r-gap"]["notes"]
    assert "taken for SGD" in notes[0]


def test_our_own_file_says_how_many_images_and_steps(audit: Audit) -> None:
    results = audit(*MODEL, "--update", "@ours.safetensors", "--learning-rate", "0.1", *QUICK)
    assert results["local_training"]["steps"] == results["local_training"]["batch_size"] == 1
    assert results["facts"]["samples"] == 1
    assert "only --truth would tell" in results["verdict"][0]


def test_a_threat_model_without_labels_does_not_use_them(audit: Audit) -> None:
    """The labels given are wrong, so that whoever uses them can be told."""
    wrong = (*DIFFERENCE, "--labels", "0", *QUICK)
    used = audit(*wrong, "--threat-model", "informed server")
    assert used["attacks"]["inverting-gradients"]["labels"] == [0]
    assert "template" in used["notes"][0]
    with_labels = audit.images("inverting-gradients")
    withheld = audit(*wrong, "--threat-model", "eavesdropper")
    assert withheld["attacks"]["inverting-gradients"]["labels"] == [1]
    assert "Given and not used, since the eavesdropper is not granted it: labels." in withheld["notes"]
    assert "Granted besides: nothing" in withheld["threat_models"]["inverting-gradients"]
    without = audit.images("inverting-gradients")
    audit(*DIFFERENCE, *QUICK, "--threat-model", "eavesdropper")
    assert torch.equal(without, audit.images("inverting-gradients"))
    assert not torch.equal(without, with_labels)


def test_a_batch_of_32_is_hidden_in_words(audit: Audit, tmp_path: Path) -> None:
    images = public()[:32]
    state, update = update_of(images, [index % 2 for index in range(32)])
    save_file(state, tmp_path / "global.safetensors")
    update.save(tmp_path / "update.safetensors")
    results = audit(
        *("--model", "@model.yaml", "--global", str(tmp_path / "global.safetensors"), *QUICK),
        *("--update", str(tmp_path / "update.safetensors"), "--learning-rate", "0.1", "--batch-size", "32"),
        *("--optimiser", "sgd", "--loss", "ce"),
        *("--truth", str(write_images(tmp_path / "truth", images)), "--template", "@public"),
        *("--fail-above", "ssim=0.9", "--fail-above", "psnr=40"),
    )
    hides = [reason["sentence"] for reason in results["diagnosis"] if reason["effect"] == "hides"]
    assert any("mean over a batch of 32 images" in sentence for sentence in hides)
    assert "failed" in results["verdict"][0] or "not close enough to recognise" in results["verdict"][0]
    assert results["attacks"]["inverting-gradients"]["rebuilt"] is False
    assert "a failed search is no protection" in results["attacks"]["inverting-gradients"]["sentences"][1]
    assert sorted(row["image"] for row in results["attacks"]["inverting-gradients"]["rows"]) == list(range(32))


@pytest.mark.slow
def test_a_drowned_update_is_hidden_in_words(audit: Audit, files: Path, tmp_path: Path) -> None:
    draws = named_generator(0, "noise")
    clean = load_file(files / "difference.safetensors")
    noisy = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=draws) for name, tensor in clean.items()}
    save_file(noisy, tmp_path / "noisy.safetensors")
    arguments = (*MODEL, "--update", str(tmp_path / "noisy.safetensors"), "--samples", "1", "--truth", "@truth")
    arguments = (*arguments, "--template", "@public", "--attack", "r-gap", "--fail-above", "ssim=0.4")
    unknown = audit(*arguments, exit_code=1)
    # A gate that does not know does not open.
    assert unknown["exceeded"] == [] and "not known: r-gap tells nothing of the update" in unknown["output"]
    assert "Not known: r-gap tells nothing" in (audit.out / "audit.html").read_text()
    assert not any("Noise" in reason["sentence"] for reason in unknown["diagnosis"])
    assert unknown["attacks"]["r-gap"]["verdict"] == "not known"
    results = audit(*arguments, "--optimiser", "sgd", "--loss", "ce")
    assert results["attacks"]["r-gap"]["verdict"] == "not rebuilt"
    assert "Noise drowns the update" in results["diagnosis"][0]["sentence"]
    assert results["facts"]["noise_deviation"] == pytest.approx(0.1, rel=0.15)
    assert results["attacks"]["r-gap"]["rebuilt"] is False


def test_a_zero_update_is_said_to_carry_nothing(audit: Audit, files: Path, tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(files / "global.safetensors").items()}
    save_file(zeros, tmp_path / "zeros.safetensors")
    results = audit(*MODEL, "--update", str(tmp_path / "zeros.safetensors"), "--samples", "1", "--attack", "r-gap")
    assert results["diagnosis"][0]["sentence"] == "The update is zero: it carries nothing."
    assert "r-gap was refused" in results["verdict"][0]


def test_names_of_wrapped_models_are_taken_off_and_said(audit: Audit, files: Path, tmp_path: Path) -> None:
    wrapped = torch.nn.DataParallel(lenet())
    wrapped.module.load_state_dict(load_file(files / "global.safetensors"))
    torch.save(wrapped.state_dict(), tmp_path / "global.pt")
    update = {
        f"_orig_mod.module.{name}": tensor for name, tensor in load_file(files / "difference.safetensors").items()
    }
    torch.save(update, tmp_path / "update.pt")
    given = ("--model", "@model.yaml", "--global", str(tmp_path / "global.pt"), "--samples", "1", *QUICK)
    results = audit(*given, "--update", str(tmp_path / "update.pt"))
    assert f"{tmp_path / 'global.pt'}: 'module.' was taken off the names of its tensors." in results["notes"]
    said = f"{tmp_path / 'update.pt'}: 'module.' and '_orig_mod.' were taken off the names of its tensors."
    assert said in results["notes"] and "'_orig_mod.' were taken" in " ".join(results["output"].split())
    images = audit.images("inverting-gradients")
    audit(*DIFFERENCE, *QUICK)
    assert torch.equal(images, audit.images("inverting-gradients"))


def test_an_update_under_torchvisions_names_is_read(tmp_path: Path) -> None:
    settings = ModelSettings(name="densenet121", normalisation="batch")
    model = build_model(settings, channels=1, classes=2, image_size=(32, 32), seed=0)
    state = model.state_dict()
    theirs = {
        name.replace(".layers.", ".").replace("class_layers.out", "classifier"): 1e-3 * torch.ones_like(tensor)
        for name, tensor in state.items()
    }
    save_file(theirs, tmp_path / "update.safetensors")
    files = UpdateFiles(model, samples=1)
    update = files.difference(tmp_path / "update.safetensors", state)
    assert update.tensors.keys() == state.keys() and "torchvision's names" in files.notes[0]


class Touch:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["torch", "pickle", "npz"])
def test_a_pickle_is_refused_unrun(audit: Audit, tmp_path: Path, how: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / ("evil.npz" if how == "npz" else "evil.pt")
    if how == "torch":
        torch.save({"features.0.weight": Touch(ran)}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Touch(ran), protocol=2))
    else:
        np.savez(path, arr_0=np.array([Touch(ran)], dtype=object))
    error = audit.refused(*MODEL, "--update", str(path), "--samples", "1")
    assert isinstance(error, UpdateError)
    assert not ran.exists()
    if how != "npz":
        # The same file does its work on whoever loads it with plain pickles: the test can fail.
        torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
        assert ran.exists()


Change = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
"""From an update and the state before to what is given as the update."""


def changed(**changes: Tensor | None) -> Change:
    return lambda update, _: {name: tensor for name, tensor in {**update, **changes}.items() if tensor is not None}


BIAS = "classifier.bias"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (changed(**{BIAS: None}), "lacks tensor 'classifier.bias'"),
        (changed(**{BIAS: torch.zeros(3)}), "tensor 'classifier.bias' has shape (3,), expected (2,)"),
        (changed(**{BIAS: torch.tensor([0.0, torch.nan])}), "tensor 'classifier.bias' holds NaN or infinity"),
        (changed(more=torch.zeros(1)), "unexpected tensor 'more'"),
        (lambda _, state: state, "it is a state, not a difference"),
    ],
    ids=["missing", "shape", "nan", "unexpected", "state"],
)
def test_updates_that_fit_nothing_are_refused(
    audit: Audit, files: Path, tmp_path: Path, change: Change, wanted: str
) -> None:
    update, state = (load_file(files / f"{name}.safetensors") for name in ("difference", "global"))
    save_file(change(update, state), tmp_path / "bad.safetensors")
    error = audit.refused(*MODEL, "--update", str(tmp_path / "bad.safetensors"), "--samples", "1")
    assert isinstance(error, UpdateError) and wanted in str(error)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "audit needs a run directory, or --model"),
        (("nowhere",), "nowhere is no run directory"),
        (("nowhere", "--optimiser", "adam"), "--optimiser does not go with this form"),
        ((*DIFFERENCE, "--optimiser", "adma"), "training.optimiser = 'adma': input should be 'sgd', 'adam'"),
        ((*DIFFERENCE, "--optimiser", "adam", "--momentum", "0.9"), "training.momentum is of sgd and rmsprop"),
        ((*DIFFERENCE, "--betas", "0.9"), "training.betas.1 is missing"),
        ((*DIFFERENCE, "--betas", "0.9,1"), "training.betas = [0.9, 1.0]: expected two numbers from 0 to below 1"),
        ((*DIFFERENCE, "--loss", "mse", "--label-smoothing", "0.1"), "training.label_smoothing is of the loss ce"),
        ((*DIFFERENCE, "--learning-rate", "inf", "--steps", "1"), "training.learning_rate = inf"),
        (("nowhere", "--samples", "1"), "--samples does not go with this form"),
        ((*DIFFERENCE, "--arm", "fedavg"), "--arm does not go with this form"),
        (MODEL, "expected one of --update"),
        ((*DIFFERENCE, "--after", "@after.pt"), "expected one of --update"),
        ((*MODEL, "--update", "@difference.safetensors"), "give --samples"),
        (("--model", "@model.yaml", "--update", "@difference.pt"), "give --global"),
        (("--model", "lenet", "--update", "@difference.pt"), "unknown preset 'lenet'"),
        ((*MODEL, "--update", "@nowhere.pt", "--samples", "1"), "nowhere.pt"),
        ((*MODEL, "--update", "@model.yaml", "--samples", "1"), "expected a .safetensors, .pth or .pt file"),
        ((*DIFFERENCE, "--attack", "rgap"), "did you mean 'r-gap'"),
        ((*DIFFERENCE, "--threat-model", "eavesdroper"), "did you mean 'eavesdropper'"),
        ((*DIFFERENCE, "--labels", "0,1"), "2 labels for 1 images"),
        ((*DIFFERENCE, "--labels", "2"), "expected 0 to 1"),
        ((*DIFFERENCE, "--labels", "a"), "expected whole numbers"),
        ((*DIFFERENCE, "--learning-rate", "0.1"), "give --steps and --batch-size too"),
        ((*DIFFERENCE, "--steps", "2"), "give --learning-rate and --batch-size too"),
        ((*DIFFERENCE, "--gallery", "@public"), "give --truth too"),
        ((*DIFFERENCE, "--gallery", "@truth", "--truth", "@truth"), "nothing but the images of --truth"),
        ((*DIFFERENCE, "--truth", "@nowhere"), "no images at"),
        (("nowhere", "--public", "faces"), "--public does not go with this form"),
        ((*DIFFERENCE, "--public", "@nowhere"), "no labelled images at"),
        ((*DIFFERENCE, "--public", "@public"), "has 0 class folders: expected two at least"),
        ((*DIFFERENCE, "--public", "@three"), "three has 3 classes (a, b, c) and the model 2"),
        ((*DIFFERENCE, "--public", "@labelled", "--set", "data.classes=[a,c]"), "unknown class 'b'"),
        ((*DIFFERENCE, "--public", "@own", "--truth", "@truth"), "--public holds nothing but the images of --truth"),
        ((*DIFFERENCE, "--fail-above", "ssim"), "expected metric=value"),
        ((*DIFFERENCE, "--fail-above", "sim=1"), "did you mean 'ssim'"),
        ((*DIFFERENCE, "--fail-above", "ssim=nan"), "expected a finite number"),
        ((*DIFFERENCE, "--fail-above", "ssim=0.4"), "give --truth"),
        ((*DIFFERENCE, "--truth", "@truth", "--fail-above", "rdlv=0.4"), "give --template"),
        ((*DIFFERENCE, "--truth", "@truth", "--fail-above", "iip=0.4"), "give --gallery"),
        ((*DIFFERENCE, "--set", "data.mean=null"), "how images are normalised is not known"),
        ((*DIFFERENCE, "--set", "data.std=[0.2, 0.2, 0.2]"), "expected 1 numbers each"),
        ((*DIFFERENCE, "--set", "data.image_size=null"), "set data.image_size"),
        ((*DIFFERENCE, "--set", "data.image_size=32"), "has shape"),
        ((*DIFFERENCE, "--attack", "fully-connected-leak"), "no fully connected layer with a bias reads the image"),
    ],
)
def test_bad_input_is_one_line(audit: Audit, arguments: tuple[str, ...], wanted: str) -> None:
    assert wanted in str(audit.refused(*arguments))


def test_more_images_than_are_rebuilt_at_once_are_refused(audit: Audit) -> None:
    error = audit.refused(*MODEL, "--update", "@difference.safetensors", "--samples", "1000000000", *QUICK)
    assert "at most 10000 are rebuilt at once" in str(error)


@pytest.mark.parametrize(
    ("attack", "arguments", "wanted"),
    [
        ("dlg", (), "give --learning-rate LR --steps K --batch-size B"),
        ("gradinversion", LOCAL, "reads template, which was not given: give --template"),
        ("model-based", LOCAL, "give --generator FILE"),
        ("learning-to-invert", LOCAL, "reads public images, which was not given: give --public FOLDER"),
        ("dlg", ("--threat-model", "eavesdropper", *LOCAL), "threat model 'eavesdropper' does not grant"),
        ("inverting-gradients,gradinversion", LOCAL, "attack 'gradinversion' reads template"),
    ],
)
def test_an_attack_names_the_flag_it_needs_before_it_starts(
    audit: Audit, attack: str, arguments: tuple[str, ...], wanted: str
) -> None:
    error = audit.refused(*DIFFERENCE, *arguments, "--attack", attack)
    assert isinstance(error, ThreatModelError) and wanted in str(error)
    assert not audit.out.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has been trained and not yet attacked."""
    values = {
        "data": {"source": "faces", "image_size": 16, "split": {"kind": "sizes", "sizes": [1, 1, 6]}},
        "model": {"name": "lenet", "normalisation": "none"},
        "training": {"rounds": 2, "learning_rate": 0.05},
        "arms": {"fedavg": {"defense": "none"}, "noise": {"defense": "noise"}},
        "attacks": {"ig": {"attack": "inverting-gradients", "options": {"iterations": 3}, "longest_client": 1}},
        "metrics": {"lpips": None},
    }
    run = Run.create(tmp_path_factory.mktemp("runs") / "run", config_from(values))
    STAGES["train"](run, Progress())
    return run


def test_a_runs_update_is_audited_as_its_attack_stage_would(audit: Audit, trained: Run) -> None:
    results = audit(str(trained.folder), "--arm", "noise", "--round", "2", "--client", "client-2")
    assert "computed from 1 image of faces." in results["notes"][0]
    job = Job("noise", "ig", 1, "client-2")
    seen = trained.observation(job)
    wanted = reconstruct(trained.config.attacks["ig"], seen, attack_seed(trained, job), Task())
    assert torch.equal(audit.images("ig"), wanted.images)
    assert results["subject"]["round"] == 2
    assert set(results["attacks"]["ig"]["k_iip"]) == {"1", "3", "5"}
    assert results["attacks"]["ig"]["rows"][0]["rdlv"] is not None


def test_a_runs_first_update_by_an_attack_of_the_registry(audit: Audit, trained: Run) -> None:
    results = audit(str(trained.folder), "--attack", "r-gap", "--fail-above", "ssim=0.9", exit_code=1)
    assert results["subject"]["arm"] == "fedavg" and results["subject"]["client"] == "client-1"
    assert results["attacks"]["r-gap"]["rebuilt"] is True


def test_two_arms_side_by_side_are_one_page_and_one_record(trained: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["audit", str(trained.folder), "--arm", "noise,fedavg", "--attack", "r-gap", "--out", str(out), "--quiet"]
    assert CliRunner().invoke(app, command).exit_code == 0
    opened = shadow_defense.open_results(out)
    assert opened.page.exists() and isinstance(opened.record, AuditPair)
    for arm, audit in opened.record.audits.items():
        assert shadow_defense.open_results(out / str(audit.subject["arm"])).record == audit
        assert audit.subject["title"] == arm
    assert [audit.assessment.status for audit in opened.record.audits.values()] == ["amber", "red"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--arm", "fedavgg"), "did you mean 'fedavg'"),
        (("--arm", "noise,noise"), "expected one arm, or two different ones"),
        (("--round", "9"), "kept no update for --round 9: kept are rounds 1, 2"),
        (("--client", "client-9"), "clients client-1, client-2"),
        (("--attack", "gias"), "shadow-defense pretrain"),
    ],
)
def test_what_a_run_does_not_hold(audit: Audit, trained: Run, arguments: tuple[str, ...], wanted: str) -> None:
    assert wanted in str(audit.refused(str(trained.folder), *arguments))


def test_a_run_directory_is_not_written_over(audit: Audit, trained: Run) -> None:
    result = CliRunner().invoke(app, ["audit", str(trained.folder), "--out", str(trained.folder)])
    assert "is a run directory" in str(result.exception)
