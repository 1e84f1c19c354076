"""The registry of image sources, and how one is read from the settings."""

from __future__ import annotations

from shadow_defense.data.dataset import Parts
from shadow_defense.data.settings import DataSettings
from shadow_defense.data.source import Source
from shadow_defense.errors import DataError
from shadow_defense.registry import Registry

SOURCES: Registry[Source] = Registry("source", Source, "shadow_defense.data", DataError)


def without_files() -> str:
    """The names of the package's own sources that read no file, in words."""
    return ", ".join(name for name, source in SOURCES.own.items() if "path" not in source.accepts)


def read_source(settings: DataSettings, seed: int) -> Parts:
    """Read ``settings.source``.

    Raises:
        DataError: for an unknown source, a missing path, or a path or classes given to a source that takes none.
    """
    source = SOURCES.find(settings.source)
    options = source.options_of(settings.options, DataError, "data.options")
    given = {
        "path": settings.path,
        "image_size": settings.image_size,
        "channels": settings.channels,
        "classes": settings.classes,
        "grey_range": settings.grey_range,
        "limit": settings.limit,
        "images": settings.images,
        "options": options,
        "seed": seed,
    }
    for name in ("path", "classes", "grey_range"):
        if given[name] is not None and name not in source.accepts:
            raise DataError(f"source '{settings.source}' takes no data.{name}: leave it out or choose another source")
    if source.needs_path and settings.path is None:
        raise DataError(f"source '{settings.source}' needs data.path: give the file or folder to read")
    return source.read(**{name: value for name, value in given.items() if name in source.accepts})
