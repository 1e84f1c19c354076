"""Update-space defenses as an NVFlare filter, around any client's own training: it sees the update, never a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FilterKey, FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AlgorithmConstants
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.defenses.base import RoundContext
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import DefenseError, ShadowDefenseError, UpdateError
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client_state import ClientState, ClientStateFolder, restore_defense
from shadow_defense.federated.control_variates import control_change
from shadow_defense.federated.nvflare.exchange import from_tensors, to_tensors
from shadow_defense.federated.nvflare.leaving import leaving_headers, leaving_meta, round_of
from shadow_defense.federated.nvflare.site_state import epsilon_budget, state_root
from shadow_defense.federated.privacy_budget import spend
from shadow_defense.federated.sent_only import build_sent_only, check_sent_only
from shadow_defense.federated.site_secret import secret_seed
from shadow_defense.federated.states import digest, in_types_of
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.folder_lock import holding

OWN_CONTROL = "scaffold_c_local"
"""The key of a task's meta data under which the filter hands the training its own control variate c_i."""


class UpdateDefenseFilter(Filter):
    """Puts the protected update in place of a training result's ``WEIGHT_DIFF``, and lets nothing else leave.

    For the results of the task ``train``, as the last filter that touches them. Whatever it is given but a difference
    of weights is refused: NVFlare's own filters would take whole weights for one and pass what they do not know, and
    jobs send whole weights (``FULL``) unless told otherwise. Meta data pass by a list (:mod:`leaving`), headers by
    another. Whatever is raised, NVFlare answers with a code and the update stays. The text stands in ``withheld.txt``
    beside the defense's state only: a job may stream a site's log.

    The state (such as a privacy budget) and the secret of the draws lie below the folder that the site named
    (:func:`shadow_defense.federated.nvflare.site_state.state_root`). A round asked again with the same result leaves as
    it did before; with another it is refused, since equal draws would cancel. Where the site set a budget
    (``SHADOW_DEFENSE_EPSILON_BUDGET``), each update is counted before it leaves, over all runs, and none leaves beyond.

    Args:
        defense, preset, options: one that acts on the update alone (``place: update``).
        model: of the architecture that is trained; its parameters' names tell them from buffers. The job's
            configuration names its class, so that the constructor must do without arguments or keep them as attributes.
        run: a name of the training. Another name begins anew, with a privacy budget counted from nothing.
        rounds: R, which a defense plans with; the server cannot ask for more.
        share_bn: what of batch norm leaves. The rest is left out of the difference, so that the server's average of it
            stays as it was; that the training goes on with its own is the training script's part.
        metrics: names of the script's metrics that may leave: single numbers, rounded.
        scaffold_learning_rate: eta of the training's steps, where the job is a SCAFFOLD one. The filter then belongs
            to the data of the task too (``add_client_input_filter``): it keeps the server's c, hands the script c_i as
            ``scaffold_c_local``, and what leaves as ``scaffold_c_diff`` is computed from the protected difference
            (:func:`control_change`), whatever the script put there.

    Raises:
        DefenseError: for a defense that acts anywhere else or needs images.
    """

    def __init__(
        self,
        defense: str,
        model: nn.Module,
        run: str,
        rounds: int,
        preset: str = "paper",
        options: Mapping[str, Any] | None = None,
        share_bn: SharedBatchNorm = "all",
        metrics: Collection[str] = (),
        scaffold_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        # NVFlare writes a component into a job's configuration by the attributes of its constructor's names.
        self.defense, self.model, self.run, self.rounds = defense, model, run, rounds
        self.preset, self.options, self.share_bn = preset, dict(options or {}), share_bn
        self.metrics, self.scaffold_learning_rate = list(metrics), scaffold_learning_rate
        self.settings = DefenseSettings(defense=defense, preset=preset, options=self.options, share_bn=share_bn)
        check_sent_only(self.settings, "filter")

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The protected result, made anew of what may leave; of a failed training the code alone.

        Raises:
            ShadowDefenseError: whatever goes wrong, of one line without the cause's own words.
        """
        if fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.IN:
            return shareable if self.scaffold_learning_rate is None else self._received(shareable, fl_ctx)
        try:
            code = shareable.get_return_code()
        except ValueError as error:
            raise UpdateError(
                "the result has no headers but something else: send an FLModel; nothing leaves"
            ) from error
        if code != ReturnCode.OK:
            # NVFlare's base class would let a failed training's tensors pass; a code is one of NVFlare's own.
            return make_reply(code if code in vars(ReturnCode).values() else ReturnCode.EXECUTION_EXCEPTION)
        try:
            dxo = from_shareable(shareable)
        except ValueError as error:
            raise UpdateError("the result is no DXO: send an FLModel, whose difference can be protected") from error
        if dxo.data_kind != DataKind.WEIGHT_DIFF:
            raise UpdateError(
                f"the result holds {dxo.data_kind}, not {DataKind.WEIGHT_DIFF}: set params_transfer_type to DIFF in "
                "the job, or send FLModel(params_type=DIFF); nothing leaves"
            )
        states = self._states(fl_ctx)
        try:
            # Two processes that protect as one site would draw the same noise for two updates.
            with holding(states.folder):
                leaving = self._protected(dxo, shareable, states)
        except Exception as error:
            # A full disk may be what went wrong.
            with suppress(OSError, ShadowDefenseError):
                states.refuse(f"update withheld: {type(error).__name__}: {' '.join(str(error).split())}")
            raise DefenseError(
                f"update withheld: {type(error).__name__}; see withheld.txt in the site's folder for states"
            ) from None
        states.forget_refusal()
        return leaving

    def _protected(self, dxo: DXO, shareable: Shareable, states: ClientStateFolder) -> Shareable:
        round = round_of(shareable, self.rounds)
        scaffold = self.scaffold_learning_rate is not None
        meta = leaving_meta(dxo.meta, named=self.metrics, replaced=scaffold)
        like = self.model.state_dict()
        given = to_tensors(dxo.data, "the update")
        _check(given, like)
        withheld = withheld_names(self.model, self.settings.share_bn)
        difference = in_types_of({name: given[name] for name in like if name in given.keys() - withheld}, like)
        control = self._control(states, round) if scaffold else {}
        asked = digest({**difference, **{f"control {name}": tensor for name, tensor in control.items()}})
        defense = build_sent_only(self.settings, states.client, secret_seed(state_root(), self.run, states.client))
        defense.check_model(self.model)
        before = states.resume(round, asked)
        own_control = {} if before is None else dict(before.control)
        if before is None:
            states.save(ClientState.prepared(defense.state_dict(), {}))
        else:
            restore_defense(defense, before, states.path(before))
        # A filter is not shown the global model, and no defense that passes check_sent_only reads it.
        context = RoundContext(self.model, {}, F.cross_entropy, round, self.rounds, 1.0)
        defense.begin_round(context)
        # A ModelUpdate is finite.
        update = ModelUpdate(dict(defense.protect_update(difference, context)), 1, 0, round, states.client)
        if self.scaffold_learning_rate is not None:
            steps = meta.get(FLMetaKey.NUM_STEPS_CURRENT_ROUND, 0)
            control = {name: tensor for name, tensor in control.items() if name in update.tensors}
            changed = control_change(control, update.tensors, steps=steps, learning_rate=self.scaffold_learning_rate)
            own_control = {name: own_control.get(name, 0) + tensor for name, tensor in changed.items()}
            meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF] = from_tensors(changed, dxo.data)
        spend(state_root(), self.run, states.client, defense.measurements(), epsilon_budget())
        states.save(ClientState(round, asked, defense.state_dict(), {}, own_control))
        states.note(defense.measurements())
        protected = from_tensors(update.tensors, dxo.data)
        leaving = DXO(DataKind.WEIGHT_DIFF, data=protected, meta=meta).to_shareable()
        for key, value in leaving_headers(shareable).items():
            leaving.set_header(key, value)
        return leaving

    def _received(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The task itself, with the client's control variate; the server's is kept for the result."""
        dxo, states, round = from_shareable(shareable), self._states(fl_ctx), round_of(shareable, self.rounds)
        given = dxo.meta.get(AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL)
        if not isinstance(given, Mapping):
            raise UpdateError(
                f"the task has no {AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL}: use NVFlare's ScaffoldRecipe"
            )
        tensors, like = to_tensors(given, "the server's control variate"), self.model.state_dict()
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        control = {name: tensor for name, tensor in tensors.items() if name in trained}
        _check(control, like)
        states.make()
        write_tensors(states.folder / "control-global.safetensors", in_types_of(control, like), {"round": round})
        # Where the round is asked again: as it stood before.
        before = states.before(round)
        own = {} if before is None else before.control
        zeros = {name: torch.zeros_like(tensor) for name, tensor in in_types_of(control, like).items()}
        dxo.meta[OWN_CONTROL] = from_tensors({**zeros, **own}, given)
        return dxo.update_shareable(shareable)

    def _control(self, states: ClientStateFolder, round: int) -> dict[str, Tensor]:
        hint = "add this filter to the data of the task too, by recipe.add_client_input_filter"
        tensors, metadata = read_tensors(states.folder / "control-global.safetensors", hint)
        if metadata.get("round") != round:
            raise UpdateError(f"the server's control variate is not of round {round + 1}: {hint}")
        return tensors

    def _states(self, fl_ctx: FLContext) -> ClientStateFolder:
        return ClientStateFolder(state_root(), self.run, f"{fl_ctx.get_identity_name()}-filter")


def _check(given: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    for name, tensor in given.items():
        if name not in like:
            raise UpdateError(f"the update has an unexpected tensor '{name}': give the model that is trained")
        if tensor.shape != like[name].shape:
            raise UpdateError(
                f"tensor '{name}' of the update has shape {tuple(tensor.shape)}: expected {tuple(like[name].shape)}"
            )
