"""What the command prints of a snapshot."""

from __future__ import annotations

import torch

from shadow_defense.cli.import_snapshot import snapshot_lines
from shadow_defense.generators.snapshots.importing import Snapshot
from shadow_defense.generators.snapshots.network_record import NetworkRecord

ARGUMENTS = {"z_dim": 512, "w_dim": 256, "c_dim": 0, "img_resolution": 64, "img_channels": 3}


def test_what_is_found_is_said() -> None:
    networks = {
        "G_ema": NetworkRecord("Generator", ARGUMENTS, {}, 1234567),
        "G": NetworkRecord("Generator", ARGUMENTS | {"c_dim": 7, "conv_kernel": 1, "use_radial_filters": True}, {}, 5),
        "augment_pipe": NetworkRecord("AugmentPipe", {"xflip": 1}, {"p": torch.tensor(0.25)}, 0),
    }
    assert snapshot_lines(Snapshot(networks, {"path": "x.zip", "max_size": 9}, 200)) == [
        "G_ema: Generator, 1,234,567 parameters, configuration T, z 512, w 256, 64 px, 3 channels, unconditional",
        "G: Generator, 5 parameters, configuration R, z 512, w 256, 64 px, 3 channels, conditional on 7 classes",
        "augment_pipe: AugmentPipe, 0 parameters",
        "trained on 200 thousand images, by its file name",
        "training set: path='x.zip', max_size=9",
        "augmentation probability: 0.25",
    ]


def test_texts_of_the_file_cannot_move_the_cursor() -> None:
    evil = "\x1b[2J\n\ud800"
    arguments = {"img_resolution": evil, "c_dim": [evil], "conv_kernel": [1], "z_dim": {evil: evil}}
    networks = {evil: NetworkRecord(evil, {}, {}, 0), "G": NetworkRecord("Generator", arguments, {}, 0)}
    lines = snapshot_lines(Snapshot(networks, {evil: [evil]}, None))
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert "neither T nor R" in lines[1]
