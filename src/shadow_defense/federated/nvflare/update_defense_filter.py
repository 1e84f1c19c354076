"""Update-space defenses as an NVFlare filter, around any client's own training: it sees the update, never a batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.defenses.base import Defense, RoundContext, SharedBatchNorm
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import DefenseError, ShadowDefenseError, UpdateError
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client_state import ClientState, ClientStateFolder, restore_defense, secret_seed
from shadow_defense.federated.nvflare.exchange import from_tensors, to_tensors
from shadow_defense.federated.nvflare.site_state import state_root
from shadow_defense.federated.sent_only import build_sent_only, check_sent_only
from shadow_defense.federated.states import digest, in_types_of
from shadow_defense.federated.update import ModelUpdate


class UpdateDefenseFilter(DXOFilter):
    """Puts the protected update in place of a training result's ``WEIGHT_DIFF``, and lets nothing else leave.

    For the results of the task ``train``, as the last filter that touches them. Whatever it is given but a difference
    of weights is refused: NVFlare's own filters would take whole weights for one and pass what they do not know, and
    jobs send whole weights (``FULL``) unless told otherwise. Whatever is raised, NVFlare answers with a code and the
    update stays. The text stands in ``withheld.txt`` beside the defense's state only: a job may stream a site's log.

    The state (such as a privacy budget) lies below the folder that the site named
    (:func:`shadow_defense.federated.nvflare.site_state.state_root`). A round asked again with the same result leaves as
    it did before; with another it is refused, since equal draws would cancel.

    Args:
        defense, preset, options: one that acts on the update alone (``place: update``).
        model: of the architecture that is trained; its parameters' names tell them from buffers. The job's
            configuration names its class, so that the constructor must do without arguments or keep them as attributes.
        run: a name of the training. Another name begins anew, with a privacy budget counted from nothing.
        rounds: R, which a defense plans with; the server cannot ask for more.
        share_bn: what of batch norm leaves. The rest is left out of the difference, so that the server's average of it
            stays as it was; that the training goes on with its own is the training script's part.
        seed: of the draws; None: a number drawn once and kept at the site, since whoever knows it can take the noise
            off again, and a job's configuration is no secret.

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
        seed: int | None = None,
    ) -> None:
        # No kinds: NVFlare lets those that a filter does not name pass untouched.
        super().__init__(supported_data_kinds=None, data_kinds_to_filter=None)
        # NVFlare writes a component into a job's configuration by the attributes of its constructor's names.
        self.defense, self.model, self.run, self.rounds = defense, model, run, rounds
        self.preset, self.options, self.share_bn, self.seed = preset, dict(options or {}), share_bn, seed
        self.settings = DefenseSettings(defense=defense, preset=preset, options=self.options, share_bn=share_bn)
        check_sent_only(self.settings, "filter")

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The result with its difference protected, and the meta data as given; of a failed training the code alone.

        Raises:
            ShadowDefenseError: whatever goes wrong, of one line without the cause's own words.
        """
        code = shareable.get_return_code()
        if code != ReturnCode.OK:
            # NVFlare's base class would let a failed training's tensors pass.
            return make_reply(code)
        try:
            kind = from_shareable(shareable).data_kind
        except ValueError as error:
            raise UpdateError("the result is no DXO: send an FLModel, whose difference can be protected") from error
        if kind != DataKind.WEIGHT_DIFF:
            raise UpdateError(
                f"the result holds {kind}, not {DataKind.WEIGHT_DIFF}: set params_transfer_type to DIFF in the job, or "
                "send FLModel(params_type=DIFF); nothing leaves"
            )
        protected = super().process(shareable, fl_ctx)
        # Whatever a script put beside the difference stays; of NVFlare itself are the headers alone.
        leaving = from_shareable(protected).to_shareable()
        leaving[ReservedHeaderKey.HEADERS] = protected[ReservedHeaderKey.HEADERS]
        return leaving

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        """The same DXO with the protected difference."""
        states = ClientStateFolder(state_root(), self.run, f"{fl_ctx.get_identity_name()}-filter")
        try:
            dxo.data = self._protected(dxo.data, _round_of(shareable, self.rounds), states)
        except Exception as error:
            # A full disk may be what went wrong.
            with suppress(OSError, ShadowDefenseError):
                states.refuse(f"update withheld: {type(error).__name__}: {' '.join(str(error).split())}")
            raise DefenseError(
                f"update withheld: {type(error).__name__}; see withheld.txt in the site's folder for states"
            ) from None
        states.forget_refusal()
        return dxo

    def _protected(self, data: Mapping[str, Any], round: int, states: ClientStateFolder) -> dict[str, Any]:
        like = self.model.state_dict()
        given = to_tensors(data, "the update")
        _check(given, like)
        withheld = withheld_names(self.model, self.settings.share_bn)
        difference = in_types_of({name: given[name] for name in like if name in given.keys() - withheld}, like)
        asked = digest(difference)
        defense = self._build(states.client)
        defense.check_model(self.model)
        before = states.resume(round, asked)
        if before is None:
            states.save(ClientState.prepared(defense.state_dict(), {}))
        else:
            restore_defense(defense, before, states.path(before))
        # A filter is not shown the global model, and no defense that passes check_sent_only reads it.
        context = RoundContext(self.model, {}, F.cross_entropy, round, self.rounds, 1.0)
        defense.begin_round(context)
        # A ModelUpdate is finite.
        update = ModelUpdate(dict(defense.protect_update(difference, context)), 1, 0, round, states.client)
        states.save(ClientState(round, asked, defense.state_dict(), {}))
        states.note(defense.measurements())
        return from_tensors(update.tensors, data)

    def _build(self, client: str) -> Defense:
        seed = secret_seed(state_root(), self.run) if self.seed is None else self.seed
        return build_sent_only(self.settings, client, seed)


def _round_of(shareable: Shareable, rounds: int) -> int:
    round = shareable.get_header(AppConstants.CURRENT_ROUND)
    if not isinstance(round, int):
        raise UpdateError(f"the result does not say its round ({AppConstants.CURRENT_ROUND}): use the Client API")
    if not 0 <= round < rounds:
        raise UpdateError(f"the server asks for round {round + 1} of {rounds}: use one configuration")
    return round


def _check(given: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    for name, tensor in given.items():
        if name not in like:
            raise UpdateError(f"the update has an unexpected tensor '{name}': give the model that is trained")
        if tensor.shape != like[name].shape:
            raise UpdateError(
                f"tensor '{name}' of the update has shape {tuple(tensor.shape)}: expected {tuple(like[name].shape)}"
            )
