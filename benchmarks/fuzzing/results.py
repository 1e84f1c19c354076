"""Results on their way through NVFlare's filter: what a training script hands over, and what stands beside it."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import TEXTS
from fuzzing.replies import ROUNDS, leaks, network, secrets_of


def make(random: np.random.Generator, folder: Path) -> Input:
    """A result on its way through NVFlare's filter: the protected difference leaves, or nothing."""
    from nvflare.apis.dxo import DXO, DataKind
    from nvflare.apis.fl_constant import FLContextKey, ReservedKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.app_common.app_constant import AppConstants

    from shadow_defense.federated.nvflare.update_defense_filter import UpdateDefenseFilter

    state = {name: tensor.numpy().copy() for name, tensor in network().state_dict().items()}
    params: dict[Any, Any] = {name: random.normal(size=each.shape).astype(each.dtype) for name, each in state.items()}
    secret = secrets_of(params)
    raw = copy.deepcopy(params)
    done, meta, kind = [], {}, DataKind.WEIGHT_DIFF
    for _ in range(int(random.integers(0, 4))):
        name = pick(random, tuple(params) or ("x",))
        how = pick(random, ("value", "value", "drop", "rename", "meta", "meta", "kind", "extra"))
        if how == "value" and params:
            params[name] = pick(
                random,
                (
                    None,
                    5,
                    "x",
                    [1.0, 2.0],
                    np.array("x"),
                    np.array([{}], dtype=object),
                    np.zeros(getattr(params[name], "shape", 3), complex),
                    np.full(3, np.nan),
                    b"x",
                    {"a": raw.get(name)},
                ),
            )
        elif how == "drop":
            params.pop(name, None)
        elif how == "rename" and params:
            params[pick(random, (*TEXTS, 5, None))] = params.pop(name)
        elif how == "meta":
            key = pick(
                random,
                (
                    "scaffold_c_diff",
                    "initial_metrics",
                    "num_steps_current_round",
                    "x",
                    "_fl_model_params_type",
                    *TEXTS[:10],
                ),
            )
            meta[key] = pick(
                random,
                (
                    raw,
                    list(raw.values()),
                    {"a": 0.5},
                    5,
                    "x" * 100,
                    None,
                    float("nan"),
                    raw and next(iter(raw.values())),
                ),
            )
        elif how == "kind":
            kind = pick(random, (DataKind.WEIGHTS, DataKind.METRICS, DataKind.COLLECTION, "x"))
        else:
            params["leak"] = next(iter(raw.values()))
        done.append(f"{how} {name}"[:60])
    shareable: Any = DXO(kind, data=params, meta=meta).to_shareable()
    shareable.set_header(AppConstants.CURRENT_ROUND, pick(random, (0,) * 9 + (None, -1, "0", 10**9, 1.5)))
    if random.random() < 0.2:
        key = pick(random, ("leak", "DXO", "__headers__", "PEER_CTX"))
        shareable[key] = pick(random, (raw, None, 5, Shareable()))
        done.append(f"beside {key}")
    made = FLContext()
    made.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=False, sticky=False)
    made.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    os.environ["SHADOW_DEFENSE_STATE"] = str(folder / "state")
    guard = UpdateDefenseFilter("noise", network(), "r", ROUNDS, options={"place": "update"})

    def give() -> None:
        assert not leaks(secret, guard.process(shareable, made)), "the raw update leaves"

    return Input("; ".join(done) or "valid", give)


KIND = Kind(make, ("shadow_defense.federated.nvflare.update_defense_filter",))
