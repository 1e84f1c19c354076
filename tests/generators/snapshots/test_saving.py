"""What the command writes: both networks when all is well, and nothing at all when anything is not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shadow_defense.cli.import_snapshot import import_snapshot
from shadow_defense.errors import ShadowDefenseError, SnapshotError
from shadow_defense.files import read_tensors
from shadow_defense.generators.build import architecture, begun_discriminator, load_generator
from shadow_defense.generators.stylegan3.discriminator import StyleGAN3Discriminator

Content = dict[str, Any]


def written(folder: Path, content: Content) -> Path:
    path = folder / "network-snapshot-000200.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path: Path, out: Path, discriminator: Path | None) -> str:
    """The one line of the refusal, which leaves every file as it was and adds none."""
    before = files(path.parent)
    with pytest.raises(ShadowDefenseError) as caught:
        import_snapshot(path, out, discriminator=discriminator)
    assert files(path.parent) == before
    assert str(caught.value).isascii() and str(caught.value).isprintable()
    return str(caught.value)


def test_both_networks_are_written(small_snapshot: Content, tmp_path: Path) -> None:
    path = written(tmp_path, small_snapshot)
    out, discriminator = tmp_path / "new" / "g.safetensors", tmp_path / "d.safetensors"
    import_snapshot(path, out, discriminator=discriminator)
    found = {"G_ema": load_generator(out).state_dict(), "D": read_tensors(discriminator)[0]}
    for name, tensors in found.items():
        expected = small_snapshot[name].state_dict()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected), name
    assert read_tensors(out)[1]["training"]["augment_probability"] == 0.25
    assert read_tensors(discriminator)[1] == {
        "kind": "discriminator",
        "deviation_group": 4,
        "deviation_channels": 1,
    }
    assert set(files(tmp_path)) == {path, out, discriminator}


@pytest.mark.parametrize(("told", "group"), [({"mbstd_group_size": 8}, 8), ({"mbstd_group_size": None}, None), ({}, 4)])
def test_the_minibatch_group_of_the_training_is_kept(
    small_snapshot: Content, tmp_path: Path, told: dict[str, Any], group: int | None
) -> None:
    small_snapshot["D"]._init_kwargs["epilogue_kwargs"] = told
    import_snapshot(written(tmp_path, small_snapshot), tmp_path / "g", discriminator=tmp_path / "d")
    sizes: dict[str, Any] = {"channel_base": 64, "channel_max": 8, "img_resolution": 16, "img_channels": 1}

    def made(**options: Any) -> StyleGAN3Discriminator:
        return StyleGAN3Discriminator(**sizes, **options)

    # The registry's own are wider than the test's.
    kind = replace(architecture("stylegan3-t"), discriminator=lambda _, **options: made(**options))
    found = begun_discriminator(kind, load_generator(tmp_path / "g"), tmp_path / "d")
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for other in (2, 4, 8, None):
        same = made(deviation_group=other)
        same.load_state_dict(small_snapshot["D"].state_dict())
        # All eight images are one group of eight.
        expected = (other or 8) == (group or 8)
        assert torch.equal(found(images), same(images)) is expected, other


@pytest.mark.parametrize(
    "told",
    [
        {"mbstd_group_size": 0},
        {"mbstd_group_size": 10**9},
        {"mbstd_group_size": True},
        {"mbstd_num_channels": None},
        {"mbstd_num_channels": 3},
        {"activation": "relu"},
        3,
    ],
)
def test_a_last_block_that_is_not_known_is_refused(small_snapshot: Content, tmp_path: Path, told: object) -> None:
    small_snapshot["D"]._init_kwargs["epilogue_kwargs"] = told
    path = written(tmp_path, small_snapshot)
    assert str(path) in refused(path, tmp_path / "g.safetensors", tmp_path / "d.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_augmentation_probability_that_is_not_finite_counts_as_unknown(
    small_snapshot: Content, tmp_path: Path, value: float
) -> None:
    small_snapshot["augment_pipe"].p.fill_(value)
    out = tmp_path / "g.safetensors"
    import_snapshot(written(tmp_path, small_snapshot), out)
    assert read_tensors(out)[1]["training"]["augment_probability"] is None


def _without(content: Content) -> None:
    del content["D"]


def _other_class(content: Content) -> None:
    content["D"] = content["G_ema"]


def _argument(**arguments: Any) -> Callable[[Content], None]:
    return lambda content: content["D"]._init_kwargs.update(arguments)


def _no_argument(content: Content) -> None:
    del content["D"]._init_kwargs["img_resolution"]


def _tensor(name: str, tensor: Tensor | None) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["D"].b4.out._buffers[name] = tensor

    return change


CHANGES: dict[str, Callable[[Content], None]] = {
    "no D": _without,
    "a generator as D": _other_class,
    "another size": _argument(img_resolution=32),
    "no power of two": _argument(img_resolution=17),
    "an endless size": _argument(img_resolution=2**2000, channel_base=2**2001),
    "other channels": _argument(img_channels=3),
    "a million channels": _argument(channel_max=10**6, channel_base=10**9),
    "a condition": _argument(c_dim=10**9),
    "no channels": _argument(channel_max=0),
    "fewer than no channels": _argument(channel_max=-1),
    "channels beyond 64 bits": _argument(channel_max=10**300, channel_base=10**300),
    "a fraction": _argument(channel_base=64.0),
    "a text": _argument(channel_max="8\n"),
    "a missing argument": _no_argument,
    "a missing tensor": _tensor("bias", None),
    "one tensor more": _tensor("more", torch.zeros(2)),
    "a name that is no text": _tensor("more\ud800", torch.zeros(2)),
    "another shape": _tensor("bias", torch.zeros(2)),
    "NaN": _tensor("bias", torch.tensor([float("nan")])),
    "beyond float32": _tensor("bias", torch.tensor([1e300], dtype=torch.float64)),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_discriminator_that_does_not_fit_leaves_no_generator_behind(
    small_snapshot: Content, tmp_path: Path, change: Callable[[Content], None]
) -> None:
    change(small_snapshot)
    path = written(tmp_path, small_snapshot)
    assert str(path) in refused(path, tmp_path / "g.safetensors", tmp_path / "d.safetensors")


def test_weights_of_the_generator_beyond_float32_are_refused(small_snapshot: Content, tmp_path: Path) -> None:
    """They would be infinite in the file."""
    mapping = small_snapshot["G_ema"].mapping
    mapping._buffers["w_avg"] = torch.full((4,), 1e300, dtype=torch.float64)
    assert "'mapping.w_avg' holds NaN" in refused(written(tmp_path, small_snapshot), tmp_path / "g", None)


def test_arguments_named_in_messages_cannot_move_the_cursor(small_snapshot: Content, tmp_path: Path) -> None:
    small_snapshot["G_ema"]._init_kwargs["a\n\x1b[2J\ud800"] = 1
    path = written(tmp_path, small_snapshot)
    assert r"a\n\x1b[2J\ud800" in refused(path, tmp_path / "g", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "discriminator", "message"),
    [
        ("network-snapshot-000200.pkl", None, "over the snapshot"),
        ("network-snapshot-000200.pkl", "d", "over the snapshot"),
        ("g", "network-snapshot-000200.pkl", "over the snapshot"),
        ("g", "link", "over the snapshot"),
        ("g", "g", "two different files"),
        ("g", "folder/../g", "two different files"),
        ("folder", None, "is a folder"),
        ("folder", "d", "is a folder"),
        ("g", "folder", "is a folder"),
        ("g", "g/d", "two different files"),
        ("g/g", "g", "two different files"),
        ("kept", "older/d", "cannot write"),
        ("kept/g", "d", "cannot write"),
    ],
)
def test_files_that_stand_in_each_others_way_are_refused(
    small_snapshot: Content, tmp_path: Path, out: str, discriminator: str | None, message: str
) -> None:
    path = written(tmp_path, small_snapshot)
    (tmp_path / "folder").mkdir()
    for name in ("kept", "older"):
        (tmp_path / name).write_text("a file")
    (tmp_path / "link").symlink_to(path)
    second = None if discriminator is None else tmp_path / discriminator
    assert message in refused(path, tmp_path / out, second)


def test_a_link_to_itself_is_replaced(small_snapshot: Content, tmp_path: Path) -> None:
    path, out = written(tmp_path, small_snapshot), tmp_path / "loop"
    out.symlink_to("loop")
    import_snapshot(path, out)
    assert set(files(tmp_path)) == {path, out}


def test_a_folder_that_cannot_be_written_leaves_no_network_behind(small_snapshot: Content, tmp_path: Path) -> None:
    """And an older generator as it was."""
    path, out = written(tmp_path, small_snapshot), tmp_path / "g.safetensors"
    out.write_text("an older one")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    try:
        (locked / "probe").touch()
    except PermissionError:
        assert str(locked / "d") in refused(path, out, locked / "d")
        assert str(locked / "g") in refused(path, locked / "g", tmp_path / "d")
    else:
        pytest.skip("this user may write anywhere")


def test_a_discriminator_is_not_needed_to_import_a_generator(small_snapshot: Content, tmp_path: Path) -> None:
    small_snapshot["D"].b4.out.bias.fill_(float("nan"))
    path, out = written(tmp_path, small_snapshot), tmp_path / "g.safetensors"
    import_snapshot(path, out)
    with pytest.raises(SnapshotError, match=r"'b4\.out\.bias' holds NaN"):
        import_snapshot(path, tmp_path / "other", discriminator=tmp_path / "d.safetensors")
    assert set(files(tmp_path)) == {path, out}
