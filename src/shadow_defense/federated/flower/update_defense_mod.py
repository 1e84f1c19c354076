"""Update-space defenses as a Flower mod, around any client's own training: it sees the message, never a batch."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from torch import nn
from torch.nn import functional as F

from shadow_defense.defenses.base import Defense, RoundContext
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import UpdateError
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client_state import ClientState, ClientStateFolder, restore_defense, secret_seed
from shadow_defense.federated.flower.client_app import PARTITION, SAMPLES, arrays_of, round_of
from shadow_defense.federated.flower.records import ARRAYS, read_record, to_record
from shadow_defense.federated.flower.refusal import refuse
from shadow_defense.federated.flower.site_state import state_root
from shadow_defense.federated.sent_only import build_sent_only, check_sent_only
from shadow_defense.federated.states import change, digest, in_types_of
from shadow_defense.federated.update import ModelUpdate


class UpdateDefenseMod:
    """Replies with the received tensors plus the protected update, instead of what the training gave.

    ``@app.train(mods=[UpdateDefenseMod(...)])``. The first mod of a list is the last to touch the update: this one
    belongs first. Whatever is raised, by the training too, nothing is uploaded. The defense's state (such as a privacy
    budget) lies below the folder that the site gave its node, ``--node-config 'state-dir="..."'``.

    With ``share_bn`` the tensors of batch norm that the policy keeps come from the client's own state, and the server
    gets back what it sent: its average stays as it was, whatever the strategy.

    Args:
        settings: of a defense that acts on the update alone.
        model: builds the architecture that is trained; its parameters' names tell them from buffers.
        run: a name of the training. Another name begins anew, with a privacy budget counted from nothing.
        rounds: R, which a defense plans with; the server cannot ask for more.
        seed: of the draws; None: a number drawn once and kept at the site, since whoever knows it can take the noise
            off again.

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
        seed: int | None = None,
    ) -> None:
        check_sent_only(settings, "mod")
        self.settings, self.model, self.run, self.rounds, self.seed = settings, model, run, rounds, seed

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if not message.metadata.message_type.startswith("train"):
            return call_next(message, context)
        client = f"partition-{context.node_config.get(PARTITION, 0)}"
        states: ClientStateFolder | None = None
        try:
            states = ClientStateFolder(state_root(context), self.run, client)
            reply = self._protected(message, context, call_next, states)
        except Exception as error:
            return refuse(message, error, states)
        states.forget_refusal()
        return reply

    def _protected(
        self, message: Message, context: Context, call_next: ClientAppCallable, states: ClientStateFolder
    ) -> Message:
        round, model = round_of(message.content, self.rounds), self.model()
        like = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        # Read before the training is called, which may reuse the record.
        received = in_types_of(read_record(arrays_of(message.content), like, "the server's global model"), like)
        asked, withheld = digest(received), withheld_names(model, self.settings.share_bn)
        defense = self._defense(context, states.client)
        defense.check_model(model)
        before = states.resume(round, asked)
        own = {name: received[name] for name in sorted(withheld)}
        if before is None:
            states.save(ClientState.prepared(defense.state_dict(), own))
        else:
            restore_defense(defense, before, states.path(before))
            own = dict(before.own)
        message.content.array_records[ARRAYS] = to_record({**received, **own})
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        after = in_types_of(read_record(arrays_of(reply.content), like, "the training's model"), like)
        model.load_state_dict(after)
        shared = {name: tensor for name, tensor in received.items() if name not in withheld}
        round_context = RoundContext(model, received, F.cross_entropy, round, self.rounds, 1.0)
        defense.begin_round(round_context)
        protected = defense.protect_update(change(shared, after), round_context)
        # A ModelUpdate is finite.
        update = ModelUpdate(dict(protected), _samples(reply), 0, round, states.client)
        own = {name: after[name] for name in sorted(withheld)}
        states.save(ClientState(round, asked, defense.state_dict(), own))
        states.note(defense.measurements())
        sent = {name: tensor + update.tensors[name] if name in shared else tensor for name, tensor in received.items()}
        reply.content.array_records[ARRAYS] = to_record(sent)
        return reply

    def _defense(self, context: Context, client: str) -> Defense:
        seed = secret_seed(state_root(context), self.run) if self.seed is None else self.seed
        return build_sent_only(self.settings, client, seed)


def _samples(reply: Message) -> int:
    for metrics in reply.content.metric_records.values():
        samples = metrics.get(SAMPLES)
        if isinstance(samples, int):
            return samples
    raise UpdateError(f"the training's reply does not say how many images it comes from: give '{SAMPLES}'")
