"""Where and in which numbers the generator runs: meta device for accelerators, inference mode, half precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shadow_defense.generators.build import load_generator, save_generator
from shadow_defense.generators.stylegan3 import compilable
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator


def generator(channels: int = 64) -> StyleGAN3Generator:
    torch.manual_seed(0)
    return StyleGAN3Generator(16, 1, z_dim=8, w_dim=8, channel_base=64 * channels, channel_max=channels)


def test_off_the_cpu_nothing_falls_back_to_the_host() -> None:
    """Meta tensors hold no numbers: whatever would read some on the host fails on them, as it would stall a GPU."""
    made = generator()
    made(torch.randn(1, 8))  # the filters' matrices are prepared once
    made = made.to("meta")
    z = torch.randn(2, 8, device="meta", requires_grad=True)
    images = made(z)
    assert images.shape == (2, 1, 16, 16)
    images.square().mean().backward()
    assert z.grad is not None
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_inference_mode_leaves_nothing_behind_that_later_calls_trip_over() -> None:
    made, z = generator(), torch.randn(2, 8)
    with torch.inference_mode():
        first = made(z)
    again = made(z)
    again.mean().backward()
    torch.testing.assert_close(first.clone(), again.detach())


@pytest.mark.slow
def test_other_numbers_and_back() -> None:
    made, z = generator(), torch.randn(2, 8)
    single = made(z).detach()
    double = made.double()(z.double()).detach()
    torch.testing.assert_close(double.float(), single, atol=1e-4, rtol=1e-4)
    made.bfloat16()(z.bfloat16())
    assert made.float()(z).dtype == torch.float32


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    save_generator(tmp_path / "g.safetensors", generator(), "stylegan3-t-tiny", {})
    before = torch.get_rng_state()
    load_generator(tmp_path / "g.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_where_nothing_can_be_cached_everything_still_compiles() -> None:
    """Numba finds no place for its cache in code that comes from no file: then every process compiles anew."""
    code = (
        "from shadow_defense.generators.stylegan3 import compiled\n"
        "def refuse(*a, **k):\n"
        "    if k.get('cache'): raise RuntimeError('cannot cache function: no locator available')\n"
        "    return real(*a, **k)\n"
        "real, compiled.njit = compiled.njit, refuse\n"
        "double = compiled.compiled(lambda x: 2 * x)\n"
        "print(double(21), type(double).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "42 CPUDispatcher", done.stderr


def test_without_the_compiler_the_images_and_their_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made, z = generator(), torch.randn(2, 8)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        codes = z.clone().requires_grad_()
        images = made(codes)
        images.square().mean().backward()
        assert codes.grad is not None
        return images.detach(), codes.grad

    compiled = run()
    # As on a machine without numba: it is not found, and importing it fails.
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(compilable, "has_compiler", lambda: False)
    for name in ("polyphase", "winograd_tiles", "compiled"):
        monkeypatch.delitem(sys.modules, f"shadow_defense.generators.stylegan3.{name}", raising=False)
    for with_compiler, without in zip(compiled, run(), strict=True):
        torch.testing.assert_close(without, with_compiler, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_compiler_is_imported_only_where_images_are_made() -> None:
    """Every command and every worker process reads the configuration; few of them run a StyleGAN3."""
    code = "import sys, shadow_defense.config; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
