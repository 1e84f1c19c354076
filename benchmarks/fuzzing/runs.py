"""Run directories and audits: files of another shape where a run wrote its own, and arguments that contradict."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fuzzing.command import command
from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import NUMBERS, TEXTS, change_bytes, change_tree
from fuzzing.settings import SMALL
from fuzzing.tensors import header_file


def _begun(folder: Path, kind: str) -> Path:
    return folder.parents[2] / "begun" / kind


def _spoil(random: np.random.Generator, path: Path) -> str:
    """Another content, or another kind of file, in the place of this one."""
    how = pick(random, ("tree",) * 8 + ("bytes", "bytes", "empty", "gone", "folder", "pipe", "loop", "device", "text"))
    content = path.read_bytes()
    if how == "tree" and path.suffix in (".json", ".yaml"):
        value, what = change_tree(random, json.loads(content) if path.suffix == ".json" else yaml.safe_load(content))
        if path.suffix == ".json":
            path.write_text(json.dumps(value, default=str), "utf-8", "surrogatepass")
        else:
            path.write_text(yaml.safe_dump(value), "utf-8", "surrogatepass")
        return what
    if how == "tree" and path.suffix == ".safetensors":
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata, what = change_tree(random, json.loads(header["__metadata__"]["json"]))
        header["__metadata__"]["json"] = json.dumps(metadata, default=str)
        path.write_bytes(header_file(json.dumps(header).encode("utf-8", "surrogatepass"), content[8 + length :]))
        return f"metadata {what}"
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "empty":
        path.touch()
    elif how == "text":
        path.write_bytes(
            pick(
                random,
                (
                    b"[" * 10**5,
                    b"9" * 5000,
                    b"null",
                    b"NaN",
                    b'{"a": 1e999}',
                    b"\xff\xfe",
                    b'"' + b"\x1b[2J" * 9 + b'"',
                ),
            )
        )
    elif how != "gone":
        path.write_bytes(change_bytes(random, content)[0])
        how = "bytes"
    return how


def make_run(random: np.random.Generator, folder: Path) -> Input:
    """A finished run in which a file or two are others: reported, evaluated or audited."""
    run = folder / "run"
    shutil.copytree(_begun(folder, "run-directory") / "run", run)
    files = sorted(path for path in run.rglob("*") if path.suffix in (".json", ".yaml", ".safetensors", ".jsonl"))
    done = []
    for _ in range(int(random.integers(1, 3))):
        path = pick(random, files)
        files.remove(path)
        if path.is_file() and not path.is_symlink():
            done.append(f"{path.relative_to(run)}: {_spoil(random, path)}")
    arguments = pick(
        random,
        (
            ("report", run),
            ("report", run),
            ("evaluate", run),
            ("audit", run, "--out", folder / "audit", "--iterations", "1"),
        ),
    )
    return Input(f"{arguments[0]}; {'; '.join(done)}", lambda: command(*arguments, "--quiet"))


FLAGS: dict[str, tuple[str, ...]] = {
    "--samples": ("0", "-1", "2", "1000000000", "x", "9" * 5000),
    "--labels": ("0", "1,1", "7", "-1", "x", "", "0," * 3000, "9" * 30),
    "--steps": ("1", "3", "1000000000", "0"),
    "--batch-size": ("1", "1000000000"),
    "--learning-rate": ("0.1", "0", "-1", "nan", "inf", "1e300", "x"),
    "--optimiser": ("sgd", "adam", "adamw", "rmsprop", "x"),
    "--momentum": ("0.9", "1", "-1", "nan"),
    "--betas": ("0.9,0.999", "1,1", "x", "0.9"),
    "--epsilon": ("0", "1e-8", "-1", "nan"),
    "--smoothing": ("0.9", "2"),
    "--loss": ("ce", "bce", "mse", "x"),
    "--label-smoothing": ("0.1", "2"),
    "--attack": ("dlg", "inverting-gradients", "x", "dlg,dlg", "", "\x1b[2J", "analytic", "gias"),
    "--threat-model": ("server", "x", "\x1b[2J"),
    "--iterations": ("1", "0", "x"),
    "--fail-above": ("ssim=0.4", "ssim=nan", "x=1", "ssim", "ssim=", "iip=2"),
    "--weight-decay": ("0", "-1", "nan"),
    "--template": ("@public", "@0.png", "@none", "/dev/zero", "@pipe", "@global.pt"),
    "--public": ("@public", "faces", "@none", "@0.png", "@pipe"),
    "--truth": ("@public", "@0.png", "@pipe", "/dev/null", "@none"),
    "--gallery": ("@public", "@0.png"),
    "--generator": ("@global.pt", "@none", "@pipe"),
    "--update": (
        "@update.pt",
        "@global.pt",
        "@none",
        "@pipe",
        "/dev/zero",
        "@other.safetensors",
        "@after.npz",
        "x" * 5000,
    ),
    "--global": ("@global.pt", "@update.pt", "@none", "@pipe", "@public"),
    "--after": ("@after.npz", "@update.pt", "@global.pt"),
    "--model": ("@model.yaml", "demo", "@global.pt", "x", "@pipe"),
    "--set": (
        "data.image_size=8",
        "model.width=1000000",
        "data.mean=[0]",
        "data.std=[0]",
        "model.name=lenet",
        "data.image_size=null",
        "x",
    ),
    "--arm": ("x", "\x1b[2J"),
    "--round": ("1", "0"),
    "--client": ("x",),
    "--out": ("@out", "@0.png", "/dev/null", "@none/a/b", "@pipe"),
}


def make_audit(random: np.random.Generator, folder: Path) -> Input:
    """An audit of a small update with other arguments than it should have."""
    files = folder / "files"
    shutil.copytree(_begun(folder, "audit") / "files", files)
    os.mkfifo(files / "pipe")
    given: dict[str, str] = {
        "--model": "@model.yaml", "--global": "@global.pt", "--update": "@update.pt", "--samples": "1",
        "--attack": "inverting-gradients", "--iterations": "1", "--out": "@out",
    }  # fmt: skip
    for _ in range(int(random.integers(0, 4))):
        flag = pick(random, tuple(FLAGS))
        if random.random() < 0.15:
            given.pop(flag, None)
        else:
            value = pick(random, FLAGS[flag])
            given[flag] = (
                value if random.random() < 0.9 else pick(random, (*TEXTS, str(pick(random, NUMBERS)))).replace("\0", "")
            )
    arguments = [
        part.replace("@", f"{files}/", 1) if part.startswith("@") else part for pair in given.items() for part in pair
    ]
    what = " ".join(f"{flag} {value[:40]!a}" for flag, value in given.items())
    return Input(what, lambda: command("audit", *arguments, "--quiet"))


def _prepare_run(folder: Path) -> None:
    """A whole small run, as the command makes it."""
    written = folder / "run.yaml"
    written.write_text(yaml.safe_dump({**SMALL, "workers": 1}))
    command("run", written, "--out", folder / "run", "--quiet")


def _prepare_audit(folder: Path) -> None:
    """A model, its global state, an update in several forms, and images."""
    import torch
    from PIL import Image

    from shadow_defense.models.build import build_model
    from shadow_defense.models.settings import ModelSettings

    files = folder / "files"
    (files / "public").mkdir(parents=True)
    torch.manual_seed(0)
    for name in ("a", "b"):
        (files / "public" / name).mkdir()
        for number in range(3):
            Image.fromarray(torch.randint(0, 256, (16, 16), dtype=torch.uint8).numpy()).save(
                files / "public" / name / f"{number}.png"
            )
    shutil.copy(files / "public" / "a" / "0.png", files / "0.png")
    settings: dict[str, Any] = {"name": "convnet", "width": 8, "normalisation": "none"}
    model = build_model(ModelSettings(**settings), channels=1, classes=2, image_size=(16, 16), seed=0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.functional.cross_entropy(model(torch.randn(1, 1, 16, 16)), torch.tensor([1])).backward()
    update = {name: -0.1 * each.grad for name, each in model.named_parameters() if each.grad is not None}
    torch.save(state, files / "global.pt")
    torch.save(update, files / "update.pt")
    np.savez(files / "after.npz", *[(state[name] + update[name]).numpy() for name in state])
    (files / "other.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    data = {"image_size": 16, "mean": [0.5], "std": [0.25]}
    (files / "model.yaml").write_text(yaml.safe_dump({"model": settings, "data": data, "metrics": {"lpips": None}}))


MODULES = ("shadow_defense.cli.app", "shadow_defense.experiment.plans.run", "shadow_defense.experiment.audit.running")
RUN_DIRECTORY = Kind(make_run, MODULES, _prepare_run)
AUDIT = Kind(make_audit, MODULES, _prepare_audit)
