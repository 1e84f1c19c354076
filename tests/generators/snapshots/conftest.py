"""Snapshots like the official ones, written by Python's and torch's own pickling from stand-ins of official modules."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from shadow_defense.generators.stylegan3.discriminator import StyleGAN3Discriminator
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator

Dump = Callable[..., bytes]

SOURCE = "raise SystemExit('this text must never run')"


class Persistent(nn.Module):
    """Reduces as the specification says of official modules."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__()
        self._init_args = arguments
        self._init_kwargs = keywords

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": type(self).__name__}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta | {"state": self.__dict__},)


class EasyDict(dict):
    __module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("the official loader was called")


@pytest.fixture
def official_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[EasyDict]]:
    """Modules of the official names, so that Python's pickler writes those names."""
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    sys.modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    yield EasyDict


class Layer(Persistent):
    def __init__(self, width: int) -> None:
        super().__init__(width=width)
        self.register_buffer("first", torch.arange(float(width)))
        self.weight = nn.Parameter(torch.randn(width, 3))
        self.register_parameter("bias", None)
        self.register_buffer("transient", torch.ones(2), persistent=False)
        self.register_buffer("absent", None)
        self.register_buffer("count", torch.tensor(7))
        # Official layers keep NumPy constants: a scalar and an array.
        self.gain = torch.ones(1, dtype=torch.float64).numpy()[0]
        self.sizes = torch.tensor([36, 36]).numpy()


class Generator(Persistent):
    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.own = nn.Parameter(torch.randn(2, 3).t())
        self.outer = Layer(4)
        self.outer.inner = Layer(2)
        self.last = Layer(3)


@pytest.fixture
def little_snapshot(official_modules: type[EasyDict]) -> dict[str, Any]:
    """The content of a snapshot of a few kilobytes: a generator of the official structure, but not of its layers."""
    network = Generator(z_dim=3, mapping_kwargs=official_modules(num_layers=2), beta=0.5, name=None)
    return {"G": network, "G_ema": network, "augment_pipe": None, "training_set_kwargs": {"resolution": 16}}


@pytest.fixture
def little_pickle(little_snapshot: dict[str, Any]) -> bytes:
    return pickle.dumps(little_snapshot, protocol=4)


def persistent(class_name: str, arguments: dict[str, Any], state: dict[str, torch.Tensor]) -> Persistent:
    """A network of that class name whose ``state_dict`` is ``state``, for Python's pickler."""
    network: Persistent = type(class_name, (Persistent,), {})(**arguments)
    for name, tensor in state.items():
        *folders, last = name.split(".")
        module: nn.Module = network
        for folder in folders:
            if not hasattr(module, folder):
                module.add_module(folder, Persistent())
            module = getattr(module, folder)
        # Python's own check would refuse the names that the tests are about.
        module._buffers[last] = tensor
    return network


IMAGES = {"c_dim": 0, "img_resolution": 16, "img_channels": 1}
GENERATOR = {"z_dim": 4, "w_dim": 4, "channel_base": 64, "channel_max": 8, "mapping_kwargs": {"num_layers": 1}}
DISCRIMINATOR = {"channel_base": 64, "channel_max": 8, "block_kwargs": {"freeze_layers": 0}, "mapping_kwargs": {}}
DISCRIMINATOR |= {"epilogue_kwargs": {"mbstd_group_size": 4}, "num_fp16_res": 4, "conv_clamp": 256}


States = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def small_states() -> States:
    generator = StyleGAN3Generator.from_official_arguments(GENERATOR | IMAGES)
    sizes: dict[str, Any] = {key: DISCRIMINATOR[key] for key in ("channel_base", "channel_max")}
    return generator.state_dict(), StyleGAN3Discriminator(**sizes, **IMAGES).state_dict()


@pytest.fixture
def small_snapshot(official_modules: type[EasyDict], small_states: States) -> dict[str, Any]:
    """The content of a snapshot of small but whole networks: ``G_ema``, ``D`` and ``augment_pipe``."""
    generator, discriminator = ({name: each.clone() for name, each in state.items()} for state in small_states)
    return {
        "G_ema": persistent("Generator", GENERATOR | IMAGES, generator),
        "D": persistent("Discriminator", DISCRIMINATOR | IMAGES, discriminator),
        "augment_pipe": persistent("AugmentPipe", {}, {"p": torch.tensor(0.25)}),
    }
