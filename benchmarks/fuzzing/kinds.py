"""The kinds of input, by name."""

from __future__ import annotations

from fuzzing import (
    arrays,
    dicom,
    folders,
    generators,
    guard,
    images,
    replies,
    results,
    runs,
    settings,
    snapshots,
    tables,
    tensors,
)
from fuzzing.kind import Kind

KINDS: dict[str, Kind] = {
    "image": images.KIND,
    "dicom": dicom.KIND,
    "npz": arrays.KIND,
    "manifest": tables.KIND,
    "folder": folders.KIND,
    "configuration": settings.CONFIGURATION,
    "comparison": settings.COMPARISON,
    "override": settings.OVERRIDE,
    "small-run": settings.SMALL_RUN,
    "tensors": tensors.KIND,
    "generator": generators.KIND,
    "snapshot": snapshots.KIND,
    "run-directory": runs.RUN_DIRECTORY,
    "guard": guard.KIND,
    "flower-reply": replies.LIE,
    "flower-training": replies.TRAINING,
    "nvflare-result": results.KIND,
    "audit": runs.AUDIT,
}
