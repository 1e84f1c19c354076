"""Generator cases computed with the official networks (shared/conformance/stylegan3), and the tables of their layers.

Tolerances are the specification's (section 10): images 2e-4 of their standard deviation, gradients 5e-3 relative.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.generators.stylegan3.conftest import relative_error
from torch import Tensor

from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator
from shadow_defense.generators.stylegan3.schedule import plan_layers

FOLDER = Path(os.environ.get("SHADOW_DEFENSE_CONFORMANCE", Path(__file__).parents[4] / "shared" / "conformance"))
FILES = sorted(file for kind in "TR" for file in (FOLDER / "stylegan3").glob(f"{kind}*.npz"))
MISSING = pytest.mark.skip(reason=f"no StyleGAN3 cases at {FOLDER}/stylegan3: set SHADOW_DEFENSE_CONFORMANCE")
IMAGES, GRADIENTS = 2e-4, 5e-3

each_file = pytest.mark.parametrize(
    "file", FILES or [pytest.param(Path(), marks=MISSING)], ids=[file.stem for file in FILES] or ["none"]
)


@dataclass
class Case:
    generator: StyleGAN3Generator
    arrays: dict[str, Tensor]
    meta: dict[str, Any]

    def __getitem__(self, key: str) -> Tensor:
        """An array of the case; files that lack it skip the test."""
        if key not in self.arrays:
            pytest.skip(f"this case has no {key}")
        return self.arrays[key]

    @property
    def given(self) -> tuple[Tensor, ...]:
        condition = self.arrays.get("in/c")
        return (self["in/z"],) if condition is None or condition.shape[1] == 0 else (self["in/z"], condition)


@lru_cache(maxsize=16)
def case_of(file: Path) -> Case:
    """The case and its network; tests leave both as they are."""
    with np.load(file, allow_pickle=False) as stored:
        texts = {key: json.loads(str(stored[key])) for key in stored.files if stored[key].dtype.kind == "U"}
        arrays = {key: torch.as_tensor(stored[key]) for key in stored.files if key not in texts}
    meta = texts["meta"]
    if "grad/norms_json" in texts:
        meta["norms"] = texts["grad/norms_json"]
    generator = StyleGAN3Generator.from_official_arguments(meta["kwargs"])
    generator.load_state_dict({key.removeprefix("sd/"): arrays[key] for key in arrays if key.startswith("sd/")})
    return Case(generator.eval(), arrays, meta)


def image_error(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference, in standard deviations of the reference."""
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs).abs().max() / theirs.std())


@each_file
def test_stylegan3_conformance_of_names(file: Path) -> None:
    case = case_of(file)
    state = {key.removeprefix("sd/"): value for key, value in case.arrays.items() if key.startswith("sd/")}
    ours = case.generator.state_dict()
    assert state and list(ours) == list(state)
    assert [value.shape for value in ours.values()] == [value.shape for value in state.values()]
    assert [plan.name for plan in case.generator.synthesis.plans] == case.meta["layer_names"]
    assert case.generator.synthesis.styles == case.meta["num_ws"]


@each_file
def test_stylegan3_conformance_of_fresh_filters(file: Path) -> None:
    """A snapshot's filters replace ours; those that we design are the same."""
    case = case_of(file)
    fresh = StyleGAN3Generator.from_official_arguments(case.meta["kwargs"])
    filters = {name: buffer for name, buffer in fresh.named_buffers() if name.endswith("_filter")}
    assert len(filters) == 28
    for name, ours in filters.items():
        torch.testing.assert_close(ours, case["sd/" + name], rtol=0, atol=1e-6, msg=name)


@each_file
def test_stylegan3_conformance_of_images(file: Path) -> None:
    case = case_of(file)
    with torch.no_grad():
        assert image_error(case.generator(*case.given), case["out/img"]) < IMAGES


@each_file
def test_stylegan3_conformance_of_truncated_images(file: Path) -> None:
    case = case_of(file)
    with torch.no_grad():
        assert image_error(case.generator(*case.given, psi=0.7), case["out/img_psi0.7"]) < IMAGES


@each_file
def test_stylegan3_conformance_of_styles(file: Path) -> None:
    case = case_of(file)
    with torch.no_grad():
        styles = case.generator.styles(*case.given)
        assert image_error(styles[:, 0], case["out/ws0"]) < IMAGES
        assert torch.equal(styles, styles[:, :1].expand_as(styles))
        cut = case.generator.styles(*case.given, psi=0.5, cutoff=8)
        assert image_error(cut[:, [0, 7, 8, -1]], case["out/ws_psi0.5_cut8"]) < IMAGES


@each_file
def test_stylegan3_conformance_of_mixed_styles(file: Path) -> None:
    case = case_of(file)
    with torch.no_grad():
        assert image_error(case.generator.synthesis(case["in/ws_mixed"]), case["out/img_ws_mixed"]) < IMAGES


@each_file
def test_stylegan3_conformance_of_the_input(file: Path) -> None:
    case = case_of(file)
    with torch.no_grad():
        features = case.generator.synthesis.input(case.generator.styles(*case.given)[:, 0])
    expected = case["out/input_feat_slice"]
    assert image_error(features[:, : expected.shape[1]], expected) < IMAGES


@each_file
def test_stylegan3_conformance_of_each_layer(file: Path) -> None:
    """Mean, standard deviation, greatest magnitude, and the first and last four numbers of what a layer writes."""
    case = case_of(file)
    synthesis = case.generator.synthesis
    with torch.no_grad():
        styles = case.generator.styles(*case.given)
        x = synthesis.input(styles[:, 0])
        written = {"input": x}
        for index, plan in enumerate(synthesis.plans):
            x = written[plan.name] = synthesis.get_submodule(plan.name)(x, styles[:, index + 1])
    names = [key.removeprefix("layer/") for key in case.arrays if key.startswith("layer/")]
    if not names:
        pytest.skip("this case probes no layer")
    for name in names:
        x, expected = written[name].double(), case["layer/" + name].double()
        statistics = torch.stack([x.mean(), x.std(), x.abs().max()])
        probe = torch.cat([statistics, x[0, 0].flatten()[:4], x[-1, -1].flatten()[-4:]])
        assert float((probe - expected).abs().max() / expected[1]) < IMAGES, name


@lru_cache(maxsize=16)
def gradients_of(file: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss ``mean(image * projection)``; its gradient with respect to z, under "z", and to the parameters."""
    case = case_of(file)
    z = case["in/z"].clone().requires_grad_()
    loss = (case.generator(z, *case.given[1:]) * case["in/proj"]).mean()
    leaves = {"z": z, **dict(case.generator.named_parameters())}
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@each_file
def test_stylegan3_conformance_of_the_loss(file: Path) -> None:
    case = case_of(file)
    expected = case["out/loss"]
    # Positive and negative pixels cancel in the mean: what the images' tolerance allows is measured before that.
    allowed = IMAGES * float(case["out/img"].std() * case["in/proj"].abs().mean())
    assert abs(float(gradients_of(file)[0] - expected)) < allowed


@each_file
def test_stylegan3_conformance_of_latent_gradients(file: Path) -> None:
    assert relative_error(gradients_of(file)[1]["z"], case_of(file)["grad/z"]) < GRADIENTS


@each_file
def test_stylegan3_conformance_of_gradient_norms(file: Path) -> None:
    case = case_of(file)
    if "norms" not in case.meta:
        pytest.skip("this case has no grad/norms_json")
    norms = case.meta["norms"]
    ours = {name: float(value.norm()) for name, value in gradients_of(file)[1].items() if name != "z"}
    assert set(norms) == set(ours)
    for name, norm in norms.items():
        assert ours[name] == pytest.approx(norm, rel=GRADIENTS, abs=1e-12), name


@each_file
def test_stylegan3_conformance_of_whole_gradients(file: Path) -> None:
    case = case_of(file)
    names = [key.removeprefix("grad/param/") for key in case.arrays if key.startswith("grad/param/")]
    if not names:
        pytest.skip("this case has no grad/param")
    for name in names:
        assert relative_error(gradients_of(file)[1][name], case["grad/param/" + name]) < GRADIENTS, name


@each_file
def test_stylegan3_conformance_of_moving_averages(file: Path) -> None:
    """Layers use their average after it moved, with the decay of the constructor."""
    case = case_of(file)
    generator = copy.deepcopy(case.generator)
    with torch.no_grad():
        images = generator(*case.given, update_averages=True)
    assert image_error(images, case["out/img_update_emas"]) < IMAGES
    assert image_error(generator.mapping.w_avg, case["out/ema_w_avg"]) < IMAGES
    layers = [generator.synthesis.get_submodule(plan.name) for plan in generator.synthesis.plans]
    magnitudes = torch.stack([layer.magnitude_ema for layer in layers]).double()
    torch.testing.assert_close(magnitudes, case["out/ema_magnitude"].double(), rtol=IMAGES, atol=0)


def tables() -> str:
    file = FOLDER.parent / "spec" / "stylegan3_state_dicts.txt"
    if not file.is_file():
        pytest.skip(f"no tables of layers at {file}: set SHADOW_DEFENSE_CONFORMANCE")
    return file.read_text()


def official(configuration: str, size: int, channels: int = 3, c_dim: int = 0) -> dict[str, Any]:
    """The constructor's arguments behind the tables."""
    base, maximum, kernel = (65536, 1024, 1) if configuration == "R" else (32768, 512, 3)
    return {
        "img_resolution": size, "img_channels": channels, "channel_base": base, "channel_max": maximum,
        "conv_kernel": kernel, "use_radial_filters": configuration == "R", "c_dim": c_dim,
    }  # fmt: skip


def meta_network(arguments: dict[str, Any]) -> StyleGAN3Generator:
    """All names and shapes, without the memory."""
    with torch.device("meta"):
        return StyleGAN3Generator.from_official_arguments(arguments)


@pytest.mark.parametrize("configuration", ["T", "R"])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_stylegan3_conformance_of_the_schedule(configuration: str, size: int) -> None:
    found = re.search(rf"^## {configuration}-{size}\s+params=(\d+)\n(input: .*)\n((?:L\d+_.*\n)+)", tables(), re.M)
    assert found is not None
    arguments = official(configuration, size)
    plans = plan_layers(
        size, 3, channel_base=arguments["channel_base"], channel_max=arguments["channel_max"],
        kernel=arguments["conv_kernel"], radial=configuration == "R",
    )  # fmt: skip
    first = plans[0].reads
    assert found[2] == (
        f"input: channels={first.channels} size={first.size} sr={first.rate} bandwidth={first.cutoff:f}"
    )
    rows = found[3].splitlines()
    assert len(rows) == len(plans) == 15
    for row, plan in zip(rows, plans, strict=True):
        name, rest = row.split(maxsplit=1)
        reads, writes = plan.reads, plan.writes
        ours = {
            "in_ch": reads.channels, "out_ch": writes.channels, "in": reads.size, "out": writes.size,
            "s_in": reads.rate, "s_out": writes.rate, "s_tmp": plan.inner_rate,
            "fc_in": f"{reads.cutoff:.5f}", "fc_out": f"{writes.cutoff:.5f}",
            "fh_in": f"{reads.half_width:.5f}", "fh_out": f"{writes.half_width:.5f}",
            "up": f"{plan.up}/{plan.up_taps}", "down": f"{plan.down}/{plan.down_taps}",
            "radial": plan.radial, "pad": [*plan.padding, *plan.padding],
        }  # fmt: skip
        theirs = dict(re.findall(r"(\w+)=(\[[^]]*\]|\S+)", rest))
        assert plan.name == name
        assert {key: str(value) for key, value in ours.items()} == {key: theirs[key] for key in ours}, name
    parameters = meta_network(arguments).parameters()
    assert sum(parameter.numel() for parameter in parameters) == int(found[1])


STATES = [("T", 256, 1), ("T", 256, 3), ("T", 64, 1), ("T", 64, 3), ("R", 64, 3)]


@pytest.mark.parametrize(("configuration", "size", "channels"), STATES)
def test_stylegan3_conformance_of_state_shapes(configuration: str, size: int, channels: int) -> None:
    title = f"### G {configuration} res={size} img_channels={channels} state_dict\n"
    assert title in tables()
    lines = tables().split(title)[1].split("\n###")[0].strip().splitlines()
    expected = [(name, ast.literal_eval(shape)) for name, shape in (line.split(maxsplit=1) for line in lines)]
    state = meta_network(official(configuration, size, channels)).state_dict()
    assert [(name, list(value.shape)) for name, value in state.items()] == expected
    assert len(expected) == 114


def test_stylegan3_conformance_of_conditional_state_shapes() -> None:
    found = re.search(r"^### cond extras (.*)$", tables(), re.M)
    assert found is not None
    state = meta_network(official("T", 64, c_dim=10)).state_dict()
    mapping = [(name, list(value.shape)) for name, value in state.items() if name.startswith("mapping.")]
    assert mapping == ast.literal_eval(found[1])
