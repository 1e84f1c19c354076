"""Shadow Defense in a Flower app of one's own: a mod in front of the training, and a loader around its batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.defenses.base import RoundContext
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.errors import ConfigError, DefenseError, UpdateError
from shadow_defense.federated.client_state import ClientState, ClientStateFolder, restore_defense
from shadow_defense.federated.flower.client_app import arrays_of, round_of
from shadow_defense.federated.flower.leaving import content_of, leaving_metrics
from shadow_defense.federated.flower.protecting_mod import ProtectingMod, leaving, numbers, whole
from shadow_defense.federated.flower.records import ARRAYS, NUMPY, SAMPLES, from_record
from shadow_defense.federated.flower.site_state import epsilon_budget, state_root
from shadow_defense.federated.guarded import guarded as guarded
from shadow_defense.federated.guarded import guarding
from shadow_defense.federated.privacy_budget import spend
from shadow_defense.federated.site_secret import secret_seed
from shadow_defense.federated.states import change, digest, in_types_of
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.generators.build import load_generator
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

GENERATOR = "shadow-generator"
"""The key of the node's own configuration that names its generator's file; it goes before the app's."""

ROUNDS = "num-server-rounds"
"""The key of the app's configuration under which Flower's templates say how many rounds there are."""


class ShadowGuardMod(ProtectingMod):
    """Keeps a guard for the node and lets a training's model leave only where it drew guarded batches.

    ``ClientApp(mods=[ShadowGuardMod(...)])``, so that evaluations pass it too, and ``guarded(loader, model)`` in place
    of the training's loader. It belongs first in the list of mods. The guard's state and the secret of its draws lie in
    the folder of the site (docs/flower.md); a round asked again is answered by what left before.

    Args:
        generator: file that ``shadow-defense pretrain`` wrote, or a module to [-1, 1]; the node's ``shadow-generator``
            goes before it.
        settings: of the guard.
        mean, std: of the images' normalisation.
        rounds: R; not given: ``num-server-rounds`` of the app.
        metrics: names of the metrics that may leave: single numbers, rounded.
        z_dim: length of the generator's codes, where it does not say.
    """

    def __init__(
        self,
        generator: str | Path | nn.Module | None = None,
        settings: ShadowSettings = ShadowSettings(),
        *,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        rounds: int | None = None,
        metrics: Collection[str] = (),
        z_dim: int | None = None,
    ) -> None:
        super().__init__(metrics=metrics)
        self.generator, self.settings, self.rounds, self.z_dim = generator, settings, rounds, z_dim
        self.mean, self.std = tuple(mean), tuple(std)

    def run_of(self, context: Context) -> str:
        return f"run-{context.run_id}"

    def rounds_of(self, context: Context) -> int:
        rounds = context.run_config.get(ROUNDS) if self.rounds is None else self.rounds
        if not isinstance(rounds, int) or rounds < 1:
            raise ConfigError(
                f"the number of rounds is not known: set {ROUNDS} in the app's configuration, or rounds=R"
            )
        return rounds

    def like(self, message: Message) -> dict[str, Tensor]:
        """The server's own tensors: the model is the training's, which takes them or raises."""
        record = arrays_of(message.content)
        if any(array.stype != NUMPY for array in record.values()):
            raise UpdateError(f"the server's global model is not written as {NUMPY}: use one of Flower's strategies")
        return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}

    def protected(
        self, message: Message, context: Context, call_next: ClientAppCallable, states: ClientStateFolder
    ) -> RecordDict:
        round, rounds = round_of(message.content, self.rounds_of(context)), self.rounds_of(context)
        received = {name: tensor.clone() for name, tensor in self.like(message).items()}
        asked = digest(received)
        again = states.answered(round, asked)
        if again is not None:
            return leaving(again)
        defense = ShadowDefense(self._guard(context, states.client))
        before = states.resume(round, asked)
        if before is not None:
            restore_defense(defense, before, states.path(before))
        # The model and the loss are the training's, which `guarded` puts in their place.
        now = RoundContext(nn.Module(), received, F.cross_entropy, round, rounds, 1.0)
        defense.begin_round(now)
        with guarding(defense, now) as seen:
            content = content_of(call_next(message, context))
        if not seen.batches:
            raise DefenseError(
                "the training drew no guarded batch: give it guarded(loader, model) in place of its loader"
            )
        metrics = leaving_metrics(content, context, named=self.metrics)
        after = in_types_of(from_record(arrays_of(content), received, "the training's model"), received)
        # Raises for NaN and infinity.
        ModelUpdate(change(received, after), whole(metrics, SAMPLES), 0, round, states.client)
        spend(state_root(context), states.run, states.client, defense.measurements(), epsilon_budget(context))
        left = ClientState(round, asked, defense.state_dict(), {}, sent={ARRAYS: after}, said=numbers(metrics))
        states.save(left)
        states.note(defense.measurements())
        return leaving(left)

    def _guard(self, context: Context, client: str) -> ShadowGuard:
        given = context.node_config.get(GENERATOR, self.generator)
        if given is None:
            raise ConfigError(
                f"the guard has no generator: give ShadowGuardMod a file of `shadow-defense pretrain`, or the node "
                f"--node-config '{GENERATOR}=\"FILE\"'"
            )
        generator = given if isinstance(given, nn.Module) else _read(str(given))
        seed = secret_seed(state_root(context), self.run_of(context), client)
        return ShadowGuard(generator, self.settings, mean=self.mean, std=self.std, seed=seed, z_dim=self.z_dim)


@lru_cache(maxsize=1)
def _read(file: str) -> nn.Module:
    return load_generator(Path(file).expanduser())
