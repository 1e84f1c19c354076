"""Where models compute: one setting, resolved once. Data, draws and whatever leaves stay in the host's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from shadow_defense.errors import ConfigError

if TYPE_CHECKING:
    # Settings are read without torch.
    import torch

DeviceName = Literal["auto", "cpu", "cuda"]

DEVICE_MEANING = (
    "where models, attacks and generators compute; auto: on the first CUDA device where there is one. Another device "
    "gives other last digits"
)


def resolved_device(name: DeviceName) -> torch.device:
    """The device of a setting.

    Raises:
        ConfigError: where ``cuda`` is asked for and torch finds none.

    >>> resolved_device("cpu")
    device(type='cpu')
    """
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device = 'cuda': torch finds no CUDA device here; set device=auto or cpu")
    return torch.device("cuda")
