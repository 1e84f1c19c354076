"""Files of tensors: updates, states, reconstructions, weights and generators, as safetensors, .pt and .npz."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import TEXTS, change_bytes, change_tree, odd_value

SIDE = (8, 8)


def _model() -> Any:
    from shadow_defense.models.build import build_model
    from shadow_defense.models.settings import ModelSettings

    return build_model(ModelSettings(name="convnet", width=8), channels=1, classes=2, image_size=SIDE, seed=0)


def odd_tensor(random: np.random.Generator, like: Any) -> tuple[Any, str]:
    """A tensor of the shape of another, or not, and of a kind that no model has."""
    import torch

    plain = like.detach().clone().float()
    makers: dict[str, Any] = {
        "sparse": lambda: plain.to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "quantised": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "float8": lambda: plain.to(torch.float8_e4m3fn),
        "bfloat16": lambda: plain.bfloat16(),
        "half": lambda: plain.half(),
        "complex": lambda: plain.to(torch.complex64),
        "bool": lambda: plain > 0,
        "integer": lambda: plain.long(),
        "meta": lambda: torch.empty(plain.shape, device="meta"),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "expanded": lambda: torch.zeros(1).expand(10**9),
        "expanded to its shape": lambda: torch.zeros(1).expand(plain.shape),
        "empty": lambda: torch.zeros(0),
        "scalar": lambda: torch.tensor(1.0),
        "transposed": lambda: plain.T if plain.dim() == 2 else plain[None],
        "nan": lambda: torch.full_like(plain, float("nan")),
        "infinite": lambda: torch.full_like(plain, float("inf")),
        "huge": lambda: torch.full_like(plain, 3e38),
        "a parameter": lambda: torch.nn.Parameter(plain),
        "conjugate": lambda: plain.to(torch.complex64).conj(),
        "negative": lambda: plain.to(torch.complex64).conj().imag,
        "uint16": lambda: torch.zeros(plain.shape, dtype=torch.uint16),
        "long shape": lambda: torch.zeros((1,) * 60),
    }
    name = pick(random, tuple(makers))
    return makers[name](), name


def _change_state(random: np.random.Generator, state: dict[str, Any]) -> str:
    import torch

    name = pick(random, [name for name, each in state.items() if isinstance(each, torch.Tensor)] or ["none"])
    if name not in state:
        return "no tensor left"
    how = pick(
        random, ("tensor", "tensor", "tensor", "drop", "rename", "prefix", "stranger", "nested", "value", "none")
    )
    if how == "tensor":
        state[name], kind = odd_tensor(random, state[name])
        return f"{name}: {kind}"
    if how == "drop":
        del state[name]
    elif how == "rename":
        state[pick(random, TEXTS)] = state.pop(name)
    elif how == "prefix":
        prefix = pick(random, ("module.", "_orig_mod.", "module._orig_mod.", "module." * 100, "\x1b[2J"))
        for each in list(state):
            state[prefix + each] = state.pop(each)
    elif how == "stranger":
        state[pick(random, TEXTS)] = state[name]
    elif how == "nested":
        state["state_dict"] = dict(state)
    elif how == "value":
        state[name] = odd_value(random)
    return f"{how} {name}"


def header_file(header: bytes, content: bytes, length: int | None = None) -> bytes:
    """A safetensors file of which the header may say anything."""
    return struct.pack("<Q", len(header) if length is None else length) + header + content


def _safetensors(random: np.random.Generator, state: dict[str, Any], metadata: dict[str, Any]) -> tuple[bytes, str]:
    """Valid, or with a header that lies."""
    import torch
    from safetensors.torch import save

    plain = {
        str(key).encode("utf-8", "replace").decode(): value
        for key, value in state.items()
        # What is stored once and claims much cannot be written out.
        if isinstance(value, torch.Tensor) and (value.is_sparse or value.numel() < 10**6)
    }
    try:
        content = save(
            {key: value.contiguous() for key, value in plain.items()}, {"json": json.dumps(metadata, default=str)}
        )
    except Exception:  # Not every tensor can be saved.
        content = save({"a": torch.zeros(3)}, {"json": json.dumps(metadata, default=str)})
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    how = pick(
        random,
        (
            "as saved",
            "as saved",
            "as saved",
            "header",
            "header",
            "length",
            "text",
            "offsets",
            "bytes",
            "many",
            "metadata",
        ),
    )
    if how == "header":
        header, change = change_tree(random, header, 2)
        return header_file(json.dumps(header, default=str).encode("utf-8", "surrogatepass"), data), f"header: {change}"
    if how == "length":
        return header_file(content[8 : 8 + length], data, pick(random, (0, 1, 10**8, 2**63, 2**64 - 1))), how
    if how == "text":
        text = pick(
            random,
            (
                b"",
                b"[]",
                b"{",
                b"null",
                b"[" * 100_000,
                b'{"a":' * 5000,
                b"9" * 5000,
                b'{"a":' + b"9" * 5000 + b"}",
                b"\xff\xfe",
                b'{"__metadata__":{"json":"' + b"[" * 5000 + b'"}}',
            ),
        )
        return header_file(text, data), f"text {text[:20]!a}"
    if how == "offsets":
        for entry in [entry for key, entry in header.items() if key != "__metadata__"][:1]:
            entry["data_offsets"] = pick(
                random, ([0, 0], [0, 10**12], [10, 0], [-1, 4], [0, 4], [0], ["a", 4], [0, 2**64])
            )
            entry["shape"] = pick(
                random, (entry["shape"], [10**12], [-1], [2**32, 2**32], ["a"], [1] * 100, [0, 10**18])
            )
        return header_file(json.dumps(header).encode(), data), how
    if how == "bytes":
        return change_bytes(random, content)
    if how == "many":
        strangers = {f"a{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(20_000)}
        return header_file(json.dumps(strangers).encode(), b""), how
    if how == "metadata":
        header["__metadata__"] = pick(
            random,
            (
                {"json": "[" * 5000},
                {"json": "5"},
                {"json": "{"},
                {"json": 5},
                [],
                {"json": '{"a":' + "9" * 5000 + "}"},
                {"json": "NaN"},
                None,
            ),
        )
        return header_file(json.dumps(header).encode(), data), f"{how} {str(header['__metadata__'])[:30]}"
    return content, how


def _pt(random: np.random.Generator, state: dict[str, Any]) -> tuple[bytes, str]:
    import pickle

    import torch

    written = io.BytesIO()
    how = pick(
        random, ("zip", "zip", "zip", "legacy", "bytes", "members", "pickle", "code", "other", "sizes", "script")
    )
    content: Any = state
    if how == "other":
        content = pick(
            random,
            (
                [state],
                torch.zeros(3),
                {"state_dict": state},
                {1: torch.zeros(1)},
                "text",
                None,
                torch.nn.Linear(2, 2),
                {"a": {"b": torch.zeros(1)}},
                {("a",): torch.ones(1)},
            ),
        )
    try:
        torch.save(content, written, _use_new_zipfile_serialization=how != "legacy")
    except Exception:  # Not every tensor can be saved.
        written = io.BytesIO()
        torch.save({"a": torch.zeros(3)}, written)
    saved = written.getvalue()
    if how in ("bytes", "legacy") and random.random() < 0.8:
        return change_bytes(random, saved)
    if how == "pickle":
        return pickle.dumps({"a": 1}, protocol=int(random.integers(6))), how
    if how == "code":
        return pick(random, (b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.")), how
    if how == "script":
        return b"PK\x03\x04" + random.bytes(200), how
    if how in ("members", "sizes"):
        given = zipfile.ZipFile(io.BytesIO(saved))
        members = {name: given.read(name) for name in given.namelist()}
        name = pick(random, tuple(members))
        if how == "members":
            change = pick(random, ("drop", "zeros", "bomb", "pickle"))
            if change == "drop":
                del members[name]
            elif change == "zeros":
                members[name] = bytes(len(members[name]))
            elif change == "bomb":
                members[name] = bytes(3 * 10**8)
            else:
                members[name], _ = change_bytes(random, members[name])
            how = f"{change} {name}"
        else:
            members = {name: content.replace(b"K\x04", b"J\xff\xff\xff\x7f") for name, content in members.items()}
        rewritten = io.BytesIO()
        with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_DEFLATED if "bomb" in how else zipfile.ZIP_STORED) as file:
            for name, each in members.items():
                file.writestr(name, each)
        return rewritten.getvalue(), how
    return saved, how


UPDATE = {"kind": "update", "samples": 2, "steps": 1, "round": 0, "client": "a", "withheld": []}
RECONSTRUCTION = {"matching_loss": 0.5, "iterations": 2, "seconds": 1.0, "history": [1.0], "notes": ["a"]}


def make(random: np.random.Generator, folder: Path) -> Input:
    """One file of tensors, given to each of its readers."""
    import torch

    from shadow_defense.attacks.observation import Reconstruction
    from shadow_defense.experiment.audit.reading import UpdateFiles
    from shadow_defense.federated.update import ModelUpdate
    from shadow_defense.models.weights import read_state

    model = _model()
    state: dict[str, Any] = {name: 0.01 * torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    reader = pick(random, ("update", "state", "audit", "audit", "reconstruction", "weights"))
    if reader == "reconstruction":
        state = {"images": torch.rand(2, 1, 8, 8), "labels": torch.tensor([0, 1])}
    changes = [_change_state(random, state) for _ in range(int(random.integers(0, 3))) if state]
    metadata: Any = {"reconstruction": RECONSTRUCTION}.get(reader, UPDATE)
    if random.random() < 0.4:
        metadata, change = change_tree(random, metadata)
        changes.append(f"metadata {change}")
    suffix = ".safetensors" if reader in ("update", "reconstruction") else pick(random, (".safetensors", ".pt", ".pth"))
    content, how = _safetensors(random, state, metadata) if suffix == ".safetensors" else _pt(random, state)
    path, samples = folder / f"given{suffix}", pick(random, (None, 1))
    path.write_bytes(content)

    def give() -> None:
        if reader == "update":
            update = ModelUpdate.load(path)
            update.check_against(model.state_dict())
        elif reader == "reconstruction":
            Reconstruction.load(path)
        elif reader == "weights":
            read_state(path)
        elif reader == "state":
            model.load_state_dict(UpdateFiles(model).global_state(path))
        else:
            # Far from every state that is written, as a difference is.
            before = {name: torch.rand_like(each) for name, each in model.state_dict().items()}
            UpdateFiles(model, samples).difference(path, before)

    return Input(f"{reader}{suffix}: {'; '.join((*changes, how))}", give)


READERS = ("shadow_defense.experiment.audit.of_model", "shadow_defense.experiment.plans.run")
KIND = Kind(make, READERS)
