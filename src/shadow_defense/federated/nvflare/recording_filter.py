"""The auditor: a server's filter that writes down what the server sees, for ``shadow-defense audit``."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FilterKey, FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from shadow_defense.errors import UpdateError
from shadow_defense.federated.nvflare.exchange import SAMPLES, to_tensors
from shadow_defense.federated.training_folder import round_folder, update_path
from shadow_defense.federated.update import ModelUpdate, state_difference
from shadow_defense.files import read_tensors, write_tensors

log = logging.getLogger("shadow_defense.federated.nvflare")


class RecordingFilter(Filter):
    """Records each round's global model and every client's update; the training goes on as without it.

    The server's filter of the task ``train``, one for what goes out (``recipe.add_server_output_filter``) and one for
    what comes in (``recipe.add_server_input_filter``), with the same folder. Below it they write
    ``round-0000/global.safetensors`` and ``round-0000/update-<client>.safetensors``, which ``shadow-defense audit``
    takes as ``--global`` and ``--update``. Where a client sends whole weights, the difference is written. A result that
    is no update is named in the log and not recorded.

    The files say how many images and steps are behind an update where the client's meta data do (``num_samples`` and
    NVFlare's own ``NUM_STEPS_CURRENT_ROUND``); else they are bare tensors.

    Args:
        folder: the server's.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self._recorded = set[int]()

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """``shareable`` itself, untouched."""
        outgoing = fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.OUT
        try:
            if outgoing:
                self._record_global(shareable)
            else:
                self._record_update(shareable, str(fl_ctx.get_peer_context().get_identity_name()))
        except Exception as error:
            # Whatever a client sent: the training goes on as without a record.
            log.warning("not recorded: %s: %s", type(error).__name__, error)
        return shareable

    def _record_global(self, shareable: Shareable) -> None:
        round = _round(shareable)
        # Every client of a round is sent the same; what lies there from an earlier job is another model.
        if round not in self._recorded:
            tensors = to_tensors(from_shareable(shareable).data, "the global model")
            write_tensors(round_folder(Path(self.folder), round) / "global.safetensors", tensors)
            self._recorded.add(round)

    def _record_update(self, shareable: Shareable, client: str) -> None:
        code = shareable.get_return_code()
        if code != ReturnCode.OK:
            raise UpdateError(f"{client} answered {code}")
        if not re.fullmatch(r"[\w.-]+", client):
            raise UpdateError(f"the client's name {client!r} cannot be a file")
        dxo, folder, round = from_shareable(shareable), Path(self.folder), _round(shareable)
        tensors = to_tensors(dxo.data, f"the update of {client}")
        if dxo.data_kind == DataKind.WEIGHTS:
            before, _ = read_tensors(round_folder(folder, round) / "global.safetensors")
            tensors = state_difference({name: each for name, each in before.items() if name in tensors}, tensors)
        elif dxo.data_kind != DataKind.WEIGHT_DIFF:
            raise UpdateError(f"{client} sent {dxo.data_kind}, which is no update")
        path = update_path(folder, round, client)
        samples = _whole(dxo, SAMPLES)
        if samples is None:
            write_tensors(path, tensors)
        else:
            steps = _whole(dxo, FLMetaKey.NUM_STEPS_CURRENT_ROUND) or 0
            ModelUpdate(tensors, samples, steps, round, client).save(path)


def _round(shareable: Shareable) -> int:
    round = shareable.get_header(AppConstants.CURRENT_ROUND)
    if not isinstance(round, int) or round < 0:
        raise UpdateError(f"a message does not say its round ({AppConstants.CURRENT_ROUND})")
    return round


def _whole(dxo: DXO, key: str) -> int | None:
    value = dxo.get_meta_prop(key)
    return value if isinstance(value, int) and value > 0 else None
