"""What is no plain file, or asks for more than it holds, ends in one line before anything is built or waited for."""

from __future__ import annotations

import os
import stat
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shadow_defense.data import archive
from shadow_defense.data.archive import read_arrays
from shadow_defense.data.boundary import IMAGE_PIXELS, check_name, reading
from shadow_defense.data.image_folder import list_below, list_class_folders, read_image_folder
from shadow_defense.data.images import decode_file
from shadow_defense.data.npz import read_npz
from shadow_defense.errors import DataError


@pytest.mark.parametrize(
    "fault",
    [MemoryError(), RecursionError("deep"), OverflowError(), UnicodeError("a\nb\x1b[2J"), IndexError("x" * 999)],
)
def test_whatever_a_library_raises_is_one_line(fault: Exception) -> None:
    with (
        pytest.raises(DataError, match=r"cannot read the thing here\.x: .*; mend it$") as caught,
        reading("the thing", Path("here.x"), "mend it"),
    ):
        raise fault
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a\u202eb", "\udcff", "x" * 1001])
def test_names_that_cannot_be_printed_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"class '.*expected at most 1000 printable") as caught:
        check_name(name, "class")
    assert str(caught.value).isprintable()
    assert check_name("Zoë O'Neil 4\u202fpm", "patient") == "Zoë O'Neil 4\u202fpm"


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("pipe", "folder", "device", "dangling", "loop"):
        with pytest.raises(DataError, match=rf"{name}\.png"):
            decode_file(tmp_path / f"{name}.png", 8, 1)
    for path in (Path("a\0b.png"), Path("x" * 5000 + ".png")):
        with pytest.raises(DataError, match="cannot read the image") as caught:
            decode_file(path, 8, 1)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_only_three_formats_are_opened(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "a.png").write_text(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({mark}) (w) file closefile\n%%EOF\n"
    )
    Image.new("L", (8, 8)).save(tmp_path / "b.png", format="GIF")
    for name in ("a", "b"):
        with pytest.raises(DataError, match=rf"{name}\.png is no PNG, JPEG or TIFF"):
            decode_file(tmp_path / f"{name}.png", 8, 1)
    assert not mark.exists()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_claiming(IMAGE_PIXELS // 1000 + 1, 1000))
    with pytest.raises(DataError, match=r"a\.png has 32001 x 1000 pixels: expected 1 to 32000000"):
        decode_file(tmp_path / "a.png", 8, 1)


def test_a_jpeg_of_many_scans_is_not_decoded(tmp_path: Path) -> None:
    Image.new("L", (2000, 2000)).save(tmp_path / "a.jpg", progressive=True)
    data = (tmp_path / "a.jpg").read_bytes()
    assert decode_file(tmp_path / "a.jpg", 8, 1).max() == 0
    last = data[data.rfind(b"\xff\xda") : -2]
    (tmp_path / "b.jpg").write_bytes(data[:-2] + 2000 * last + data[-2:])
    start = time.process_time()
    with pytest.raises(DataError, match=r"b\.jpg has 20\d\d scans: expected at most 16"):
        decode_file(tmp_path / "b.jpg", 8, 1)
    assert time.process_time() - start < 2


def member(path: Path, claim: str, data: bytes = b"\0" * 64, **options: Any) -> Path:
    """An .npz with one train_images.npy, whose header is ``claim``."""
    header = claim.ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path, "w", **options) as written:
        written.writestr("train_images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)
        written.writestr("__reduce__.txt", b"not an array")
    return path


BYTES = "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4, 4), }"


def test_an_archive_is_what_its_headers_say(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(4, 6)
    np.savez_compressed(tmp_path / "a.npz", c=values, f=np.asfortranarray(values), text=np.array(["x", "yz"]))
    arrays = read_arrays(tmp_path / "a.npz")
    assert np.array_equal(arrays["c"], values) and np.array_equal(arrays["f"], values)
    assert arrays["text"].tolist() == ["x", "yz"] and arrays["c"].flags.writeable
    assert list(read_arrays(tmp_path / "a.npz", ["c"])) == ["c"]
    assert read_arrays(member(tmp_path / "b.npz", BYTES))["train_images"].shape == (4, 4, 4)


@pytest.mark.parametrize(
    ("claim", "options", "message"),
    [
        (BYTES.replace("(4, 4, 4)", "(100000, 1000, 1000)"), {}, "cut off"),
        (BYTES.replace("(4, 4, 4)", "(4, 4, 3)"), {}, "holds more than its"),
        (BYTES.replace("(4, 4, 4)", "(4, -4, -4)"), {}, "more than its|cannot read"),
        (BYTES.replace("|u1", "|O"), {}, "holds object: expected numbers or text"),
        (BYTES.replace("'|u1'", "[('a', '|u1')]"), {}, "expected numbers or text"),
        (BYTES, {"compression": zipfile.ZIP_LZMA}, "compressed in a way of its own"),
        (BYTES, {"compression": zipfile.ZIP_BZIP2}, "compressed in a way of its own"),
        ("(" * 100, {}, "cannot read .npz"),
    ],
)
def test_members_that_are_refused(tmp_path: Path, claim: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.npz.*({message})|({message}).*a\.npz") as caught:
        read_npz(path=member(tmp_path / "a.npz", claim, **options), image_size=8, channels=1)
    assert "\n" not in str(caught.value)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    data = bytearray(member(tmp_path / "a.npz", BYTES).read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz: train_images\.npy is encrypted"):
        read_arrays(tmp_path / "a.npz")


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", train_images=np.zeros((25, 1000, 1000), np.uint8))
    assert read_arrays(tmp_path / "a.npz")["train_images"].shape == (25, 1000, 1000)
    monkeypatch.setattr(archive, "SMALL", 24_000_000)
    with pytest.raises(DataError, match=r"a\.npz would inflate to 25000128 bytes: expected at most 24000000"):
        read_arrays(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", train_images=np.zeros((25, 1000, 1000), np.uint8))
    assert read_arrays(tmp_path / "b.npz")["train_images"].nbytes == 25_000_000


def test_a_label_does_not_become_two_thousand_million_names(tmp_path: Path) -> None:
    for label in (2147483647, 1e300, np.inf):
        np.savez(tmp_path / "a.npz", train_images=np.zeros((2, 8, 8), np.uint8), train_labels=np.array([0, label]))
        with pytest.raises(DataError, match=r"a\.npz: train_labels: label .*: expected 0 to 999"):
            read_npz(path=tmp_path / "a.npz", image_size=8, channels=1)


def test_links_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
        (tmp_path / name / "again").symlink_to(tmp_path)
        (tmp_path / name / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".hidden").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / ".hidden" / "0.png")
    assert [file.relative_to(tmp_path).as_posix() for file in list_below(tmp_path, (".png",))] == ["a/0.png", "b/0.png"]
    parts = read_image_folder(path=tmp_path, image_size=8, channels=1)
    assert parts.train.sample_ids == ("a/0.png", "b/0.png")
    assert parts.notes[0].startswith("2 hidden files passed over")


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a" / "0.png")
    tmp_path.chmod(stat.S_IRWXU | stat.S_IXOTH | stat.S_IROTH)
    (tmp_path / "b").chmod(0)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        for read in (list_below, lambda root, suffixes: list_class_folders(root, suffixes, None)):
            with pytest.raises(DataError, match=r"cannot read the folder \.: Permission denied; make it readable"):
                read(Path(), (".png",))
    finally:
        os.seteuid(user)
        (tmp_path / "b").chmod(stat.S_IRWXU)
