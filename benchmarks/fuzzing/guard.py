"""What a loop gives the guard: images, labels, ids, models, losses and states of every shape and type."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import TEXTS

BATCH, SIDE = 3, 16


def _models() -> dict[str, Any]:
    import torch
    from torch import nn

    def small(outputs: int = 2) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
        )

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = small()
            self.second = self.first

        def forward(self, images: Any) -> Any:
            return self.first(images) + self.second(images)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, images: Any) -> Any:
            return {"logits": self.body(images)}

    class Pair(Named):
        def forward(self, images: Any) -> Any:
            return self.body(images), images

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, images: Any) -> Any:
            return self.body(images)

    def spoiled(value: float) -> nn.Module:
        made = small()
        with torch.no_grad():
            made[0].weight[0] = value
        return made

    frozen = small()
    frozen.requires_grad_(False)
    return {
        "small": small(), "one logit": small(1), "tied": Tied(), "dict": Named(), "tuple": Pair(), "dense": Dense(),
        "nan": spoiled(float("nan")), "inf": spoiled(float("inf")), "frozen": frozen, "half": small().half(),
        "double": small().double(), "no weights": nn.Flatten(),
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2)), "parallel": nn.DataParallel(small()),
        "five": small(5), "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(SIDE, 2)),
        "batch norm": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 2)),
    }  # fmt: skip


def _losses() -> dict[str, Any]:
    from torch.nn import functional as F

    return {
        "ce": F.cross_entropy, "ce sum": lambda a, b: F.cross_entropy(a, b, reduction="sum"),
        "ce none": lambda a, b: F.cross_entropy(a, b, reduction="none"), "bce": F.binary_cross_entropy_with_logits,
        "bce float": lambda a, b: F.binary_cross_entropy_with_logits(a, b.float()), "mse": F.mse_loss,
        "constant": lambda a, b: a.sum() * 0, "detached": lambda a, b: F.cross_entropy(a.detach(), b),
        "number": lambda a, b: 1.0, "nan": lambda a, b: F.cross_entropy(a, b) * float("nan"), "none": lambda a, b: None,
    }  # fmt: skip


def _images(random: np.random.Generator, odd: bool) -> tuple[Any, str]:
    import torch

    plain = torch.from_numpy(random.uniform(-1, 1, (BATCH, 1, SIDE, SIDE))).float()
    options: dict[str, Any] = {
        "plain": plain, "half": plain.half(), "bfloat16": plain.bfloat16(), "double": plain.double(),
        "numpy": plain.numpy(), "bytes": (plain * 100).byte(), "0 to 255": plain.abs() * 255,
        "imagenet": plain * 2.5, "constant": plain * 0, "dark": plain * 1e-6,
        "one nan": plain.masked_fill(plain == plain[0, 0, 0, 0], float("nan")), "inf": plain / 0,
        "three channels": plain.repeat(1, 3, 1, 1), "no batch": plain[0], "empty": plain[:0],
        "flat": plain.flatten(1), "volume": plain[..., None], "list": plain.tolist(),
        "requires grad": plain.clone().requires_grad_(), "huge": plain * 1e30, "strided": plain.transpose(2, 3),
        "integers": plain.long(), "one pixel": plain[..., :1, :1], "complex": plain + 1j, "none": None,
        "meta": plain.to("meta"), "expanded": plain[:1].expand(BATCH, 1, SIDE, SIDE), "wide": plain[..., :5],
    }  # fmt: skip
    name = pick(random, tuple(options)) if odd else "plain"
    return options[name], name


def _labels(random: np.random.Generator, odd: bool) -> tuple[Any, str]:
    import torch

    plain = torch.tensor([0, 1, 1])
    options: dict[str, Any] = {
        "plain": plain, "int32": plain.int(), "uint8": plain.byte(), "column": plain[:, None],
        "float": plain.float(), "one hot": torch.eye(2)[plain], "soft": torch.full((BATCH, 2), 0.5),
        "multi": torch.tensor([[1.0, 1], [0, 0], [1, 0]]), "bool": plain.bool(), "list": plain.tolist(),
        "numpy": plain.numpy(), "out of range": plain + 5, "negative": plain - 1, "huge": plain * 2**40,
        "nan": plain / 0.0 * 0, "short": plain[:2], "none": None, "text": ["a", "b", "c"],
        "column float": plain[:, None].float(), "map": torch.zeros(BATCH, SIDE, SIDE).long(),
        "scalar": torch.tensor(1), "half": plain.half(), "ignored": torch.tensor([0, 1, -100]),
        "cubes": torch.zeros(BATCH, 2, 2, 2), "complex": plain + 0j,
    }  # fmt: skip
    name = pick(random, tuple(options)) if odd else "plain"
    return options[name], name


def _ids(random: np.random.Generator, odd: bool) -> tuple[Any, str]:
    import torch

    options: dict[str, Any] = {
        "plain": ["a", "b", "c"], "numbers": [0, 1, 2], "tensor": torch.arange(3), "tensors": list(torch.arange(3)),
        "numpy": np.arange(3), "paths": [Path("a"), Path("b"), Path("c")], "repeated": ["a", "a", "b"],
        "tuples": [(1, 2)] * 3, "mixed": [1, "1", 2], "none": None, "nones": [None] * 3, "short": ["a"],
        "text": "abc", "generator": (str(i) for i in range(3)), "floats": [0.5, 1.5, 2.5], "nan": [float("nan")] * 3,
        "bytes": [b"a", b"b", b"c"], "odd": [pick(random, TEXTS) for _ in range(3)], "dicts": [{}, {}, {}],
        "bool": [True, False, 1], "numpy text": np.array(["a", "b", "c"]), "set": {"a", "b", "c"}, "5": 5,
    }  # fmt: skip
    name = pick(random, tuple(options)) if odd else "plain"
    return options[name], name


def _spoil_state(random: np.random.Generator, state: dict[str, Any]) -> str:
    """Another entry of a saved state."""
    import torch

    key = pick(random, tuple(state))
    how = pick(random, ("drop", "none", "text", "short", "nan", "other", "integer", "empty", "nested", "stranger"))
    values = {
        "none": None,
        "text": "x",
        "other": torch.zeros(3),
        "integer": 5,
        "empty": {},
        "nested": {"a": {"b": torch.zeros(1)}},
    }
    if how == "drop":
        del state[key]
    elif how in values:
        state[key] = values[how]
    elif how == "stranger":
        state[pick(random, TEXTS)] = torch.zeros(1)
    elif isinstance(state[key], dict) and state[key]:
        inner = pick(random, tuple(state[key]))
        old = state[key][inner]
        state[key][inner] = old[:1] if how == "short" else torch.full_like(old.float(), float("nan"))
    elif isinstance(state[key], torch.Tensor):
        state[key] = state[key].flatten()[:1] if how == "short" else torch.full((3,), float("nan"))
    return f"{how} {key}"


ROUNDS = (
    (1, 2),
    (2, 2),
    (-1, 2),
    (0, 0),
    (10**9, 10**12),
    (2**63, 2**70),
    (0.5, 3),
    (float("nan"), 3),
    ("0", 2),
    (None, 1),
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"shadow_rounds": 0}, {"foreground": False}, {"placement": "uniform"}, {"strength": 1e30}, {"cam_layer": "x"},
    {"cam_class": 99},
)  # fmt: skip
RANGES: tuple[dict[str, Any], ...] = (
    {"mean": 0.5}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}, {"std": (0.0,)}, {"mean": (float("nan"),)}, {"std": ("x",)},
    {"mean": ()},
)  # fmt: skip
ASPECTS = (
    "images",
    "labels",
    "labels",
    "ids",
    "model",
    "model",
    "global",
    "loss",
    "rounds",
    "settings",
    "range",
    "state",
)
STARTS = ("state", "arrays", "other", "none", "nan", "partial")


def make(random: np.random.Generator, folder: Path) -> Input:
    """One batch given to a guard, fresh or restored, after which nothing of the caller's may have changed."""
    import torch

    from shadow_defense import ShadowGuard, ShadowSettings
    from shadow_defense.generators.dcgan import DCGANGenerator

    torch.manual_seed(0)
    odd = {pick(random, ASPECTS) for _ in range(int(random.integers(0, 4)))}
    images, seen = _images(random, "images" in odd)
    labels, named = _labels(random, "labels" in odd)
    ids, called = _ids(random, "ids" in odd)
    models, losses = _models(), _losses()
    which = pick(random, tuple(models)) if "model" in odd else "small"
    whose = pick(random, STARTS) if "global" in odd else "same"
    loss = pick(random, tuple(losses)) if "loss" in odd else "ce"
    model = models[which]
    state = model.state_dict()
    start: Any = {
        "same": copy.deepcopy(model), "state": dict(state), "arrays": [each.numpy() for each in state.values()],
        "other": models["five"], "none": None, "nan": models["nan"], "partial": dict(list(state.items())[:1]),
    }[whose]  # fmt: skip
    rounds = pick(random, ROUNDS) if "rounds" in odd else (0, 2)
    changes: dict[str, Any] = pick(random, SETTINGS) if "settings" in odd else {}
    settings = ShadowSettings(latent_iterations=1, attack_iterations=1, **changes)
    generator = DCGANGenerator(image_size=SIDE, channels=1, z_dim=4, width=4)
    normalisation = pick(random, RANGES) if "range" in odd else {}
    spoiled, saved = "", None
    if "state" in odd:
        saved = ShadowGuard(generator, settings)
        plain = torch.rand(BATCH, 1, SIDE, SIDE)
        saved.encode(plain, ["a", "b", "c"])
        saved = copy.deepcopy(saved.state_dict())
        spoiled = _spoil_state(random, saved)
    before = [each.detach().clone() for each in (*model.state_dict().values(), *generator.state_dict().values())]

    def give() -> None:
        guard = ShadowGuard(generator, settings, **normalisation)
        try:
            if saved is not None:
                guard.load_state_dict(saved)
            protected = guard.protect(
                images,
                labels,
                ids,
                model=model,
                global_model=start,
                loss_fn=losses[loss],
                round=rounds[0],
                rounds=rounds[1],
            )
            assert tuple(protected.shape) == tuple(images.shape), "another shape"
            assert np.isfinite(np.asarray(torch.as_tensor(protected).detach().double())).all(), "not finite"
            assert changes.get("strength") == 0 or not torch.equal(
                torch.as_tensor(protected), torch.as_tensor(images)
            ), "no noise"
        finally:
            after = (*model.state_dict().values(), *generator.state_dict().values())
            same = all(
                torch.equal(old, new.detach()) or old.isnan().any() for old, new in zip(before, after, strict=True)
            )
            assert same, "the caller's model or generator was changed"

    batch = f"images {seen}, labels {named}, ids {called}, rounds {str(rounds)[:30]}"
    around = f"model {which}, global {whose}, loss {loss}, {changes} {normalisation} state {spoiled}"
    return Input(f"{batch}, {around}", give)


KIND = Kind(make, ("shadow_defense.generators.dcgan", "shadow_defense.shadow.guard", "monai.data"))
