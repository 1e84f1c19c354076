"""A result as an NVFlare client's executor gives it, and the context in which its filters are asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor, nn

from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings


class Model(nn.Module):
    """With batch norm, so that there are buffers, whole numbers among them."""

    def __init__(self) -> None:
        super().__init__()
        chosen = ModelSettings(name="convnet", normalisation="batch", width=8)
        self.body = build_model(chosen, channels=1, classes=2, image_size=(8, 8), seed=0)


def context(site: str = "site-1", **properties: Any) -> FLContext:
    made = FLContext()
    made.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    made.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    for name, value in properties.items():
        made.set_prop(name, value, private=True, sticky=False)
    return made


def result(
    params: Mapping[str, Any], round: int | None = 0, kind: str = DataKind.WEIGHT_DIFF, **meta: Any
) -> Shareable:
    shareable = DXO(kind, data=dict(params), meta=meta).to_shareable()
    if round is not None:
        shareable.set_header(AppConstants.CURRENT_ROUND, round)
    return shareable


def as_numpy(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
