"""Update-space defenses as a Flower mod, around any client's own training: it sees the message, never a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.defenses.base import Defense, RoundContext
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import UpdateError
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client_state import ClientState, ClientStateFolder, restore_defense
from shadow_defense.federated.control_variates import control_change
from shadow_defense.federated.evaluations import LEAST_EVALUATED
from shadow_defense.federated.flower.client_app import arrays_of, round_of
from shadow_defense.federated.flower.leaving import content_of, leaving_metrics
from shadow_defense.federated.flower.protecting_mod import ProtectingMod, leaving, numbers, whole
from shadow_defense.federated.flower.records import ARRAYS, CONTROL, OWN_CONTROL, SAMPLES, STEPS, from_record, to_record
from shadow_defense.federated.flower.site_state import epsilon_budget, state_root
from shadow_defense.federated.privacy_budget import spend
from shadow_defense.federated.sent_only import build_sent_only, check_sent_only
from shadow_defense.federated.site_secret import secret_seed
from shadow_defense.federated.states import change, digest, in_types_of
from shadow_defense.federated.update import ModelUpdate


class UpdateDefenseMod(ProtectingMod):
    """Replies with the received tensors plus the protected update, and with nothing else of what the training gave.

    ``@app.train(mods=[UpdateDefenseMod(...)])``, and the same for ``@app.evaluate`` where clients evaluate. The first
    mod of a list is the last to touch the reply: this one belongs first, or before it none but a
    :class:`BeforeUploadMod`. A reply that holds anything beside the model's tensors, the numbers of images and steps,
    ``partition-id`` and the ``metrics`` that were named is refused (:mod:`leaving`); whatever is raised, by the
    training too, nothing is uploaded.

    The defense's state (such as a privacy budget) and the secret of its draws lie below the folder that the site gave
    its node, ``--node-config 'state-dir="..."'``. A round asked again with the same model is answered by what left
    before, which is kept there; with another model it is refused, since equal draws would cancel.

    With ``share_bn`` the tensors of batch norm that the policy keeps come from the client's own state, and the server
    gets back what it sent: its average stays as it was, whatever the strategy.

    Where the site gave its node an ``epsilon-budget``, no update leaves that would spend more over all runs, or whose
    defense counts none (:mod:`shadow_defense.federated.privacy_budget`).

    Args:
        settings: of a defense that acts on the update alone.
        model: builds the architecture that is trained; its parameters' names tell them from buffers.
        run: a name of the training. Another name begins anew, with a privacy budget counted from nothing.
        rounds: R, which a defense plans with; the server cannot ask for more.
        metrics: names of the training's or the evaluation's metrics that may leave: single numbers, rounded.
        least_evaluated: images without which an evaluation stays at home.
        scaffold_learning_rate: eta of the training's steps, where the server runs SCAFFOLD. Its messages hold c as
            ``control-variate``; the training gets c_i as ``own-control-variate`` and says its ``steps``; what leaves as
            ``control-variate`` is computed from the protected update (:func:`control_change`).

    Raises:
        DefenseError: for a defense that acts anywhere else or needs images.
    """

    def __init__(
        self,
        settings: DefenseSettings,
        model: Callable[[], nn.Module],
        *,
        run: str,
        rounds: int,
        metrics: Collection[str] = (),
        least_evaluated: int = LEAST_EVALUATED,
        scaffold_learning_rate: float | None = None,
    ) -> None:
        super().__init__(metrics=metrics, least_evaluated=least_evaluated)
        check_sent_only(settings, "mod")
        self.settings, self.model, self.run, self.rounds = settings, model, run, rounds
        self.scaffold_learning_rate = scaffold_learning_rate

    def run_of(self, context: Context) -> str:
        return self.run

    def rounds_of(self, context: Context) -> int:
        return self.rounds

    def like(self, message: Message) -> dict[str, Tensor]:
        return self.model().state_dict()

    def protected(
        self, message: Message, context: Context, call_next: ClientAppCallable, states: ClientStateFolder
    ) -> RecordDict:
        round, model = round_of(message.content, self.rounds), self.model()
        like = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        # Read before the training is called, which may reuse the record.
        received = in_types_of(from_record(arrays_of(message.content), like, "the server's global model"), like)
        withheld = withheld_names(model, self.settings.share_bn)
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad and name not in withheld}
        control = self._control(message.content, trained)
        asked = digest({**received, **{f"{CONTROL} {name}": tensor for name, tensor in control.items()}})
        again = states.answered(round, asked)
        if again is not None:
            return leaving(again)
        defense = self._defense(context, states.client)
        defense.check_model(model)
        before = states.resume(round, asked)
        own = {name: received[name] for name in sorted(withheld)}
        own_control = {name: torch.zeros_like(tensor) for name, tensor in control.items()}
        if before is None:
            states.save(ClientState.prepared(defense.state_dict(), own))
        else:
            restore_defense(defense, before, states.path(before))
            own, own_control = dict(before.own), {**own_control, **before.control}
        message.content.array_records[ARRAYS] = to_record({**received, **own})
        if control:
            message.content.array_records[OWN_CONTROL] = to_record(own_control)
        content = content_of(call_next(message, context))
        metrics = leaving_metrics(content, context, named=self.metrics)
        after = in_types_of(from_record(arrays_of(content), like, "the training's model"), like)
        model.load_state_dict(after)
        shared = {name: tensor for name, tensor in received.items() if name not in withheld}
        round_context = RoundContext(model, received, F.cross_entropy, round, self.rounds, 1.0)
        defense.begin_round(round_context)
        protected = defense.protect_update(change(shared, after), round_context)
        # A ModelUpdate is finite.
        update = ModelUpdate(dict(protected), whole(metrics, SAMPLES), 0, round, states.client)
        sent = {name: tensor + update.tensors[name] if name in shared else tensor for name, tensor in received.items()}
        sets = {ARRAYS: sent}
        if control:
            changed = self._control_change(control, change(received, sent), metrics)
            own_control = {name: tensor + changed[name] for name, tensor in own_control.items()}
            sets[CONTROL] = changed
        own = {name: after[name] for name in sorted(withheld)}
        spend(state_root(context), self.run, states.client, defense.measurements(), epsilon_budget(context))
        now = ClientState(round, asked, defense.state_dict(), own, own_control, sets, numbers(metrics))
        states.save(now)
        states.note(defense.measurements())
        return leaving(now)

    def _defense(self, context: Context, client: str) -> Defense:
        return build_sent_only(self.settings, client, secret_seed(state_root(context), self.run, client))

    def _control(self, content: RecordDict, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """c of the server's message; nothing without SCAFFOLD."""
        if self.scaffold_learning_rate is None:
            return {}
        return read_control(content, trained)

    def _control_change(
        self, control: Mapping[str, Tensor], update: Mapping[str, Tensor], metrics: MetricRecord
    ) -> dict[str, Tensor]:
        assert self.scaffold_learning_rate is not None
        return control_change(control, update, steps=whole(metrics, STEPS), learning_rate=self.scaffold_learning_rate)


def read_control(content: RecordDict, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """c of a message, of the tensors of ``like``. Raises :class:`UpdateError` where it is missing or does not fit."""
    record = content.array_records.get(CONTROL)
    if not isinstance(record, ArrayRecord):
        raise UpdateError(f"the server's message has no '{CONTROL}': let its strategy send SCAFFOLD's, zeros at first")
    return in_types_of(from_record(record, like, "the server's control variate"), like)
