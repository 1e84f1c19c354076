"""Shadow Defense in an NVFlare script of one's own: the site's rounds, with a guard that lies on its disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import nvflare.client as flare
from nvflare.apis.fl_constant import FLMetaKey
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.defenses.base import RoundContext
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.errors import DefenseError, UpdateError
from shadow_defense.federated.client_state import ClientState, ClientStateFolder, restore_defense
from shadow_defense.federated.guarded import Guarding, guarding
from shadow_defense.federated.guarded import guarded as guarded
from shadow_defense.federated.nvflare.exchange import SAMPLES, from_tensors, to_tensors
from shadow_defense.federated.nvflare.leaving import counted
from shadow_defense.federated.nvflare.site_state import epsilon_budget, state_root
from shadow_defense.federated.privacy_budget import spend
from shadow_defense.federated.site_secret import secret_seed
from shadow_defense.federated.states import change, digest, in_types_of, on_host
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.folder_lock import holding
from shadow_defense.generators.build import load_generator
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

SENT = "update"
"""The set of tensors under which a state keeps what left."""


class ShadowGuardSite:
    """``flare.receive`` and ``flare.send`` of a training whose difference leaves only where it drew guarded batches.

    ::

        site = ShadowGuardSite("/site/generator.safetensors", run="study-1")
        while (message := site.receive()) is not None:
            model.load_state_dict(message.params)
            for images, labels in guarded(loader, model):
                ...
            site.send(model, steps=len(loader), samples=len(loader.dataset))

    The guard's state, what left, and the secret of the draws lie in the folder that the site names
    (``SHADOW_DEFENSE_STATE``); a round asked again is answered by what left before, without a training.

    Args:
        generator: file that ``shadow-defense pretrain`` wrote, or a module to [-1, 1].
        run: a name of the training. Another name begins anew.
        settings: of the guard.
        mean, std: of the images' normalisation.
        z_dim: length of the generator's codes, where it does not say.
    """

    def __init__(
        self,
        generator: str | Path | nn.Module,
        run: str,
        settings: ShadowSettings = ShadowSettings(),
        *,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        z_dim: int | None = None,
    ) -> None:
        given = generator if isinstance(generator, nn.Module) else load_generator(Path(generator).expanduser())
        site, root = flare.get_site_name(), state_root()
        self._states = ClientStateFolder(root, run, site)
        seed = secret_seed(root, run, site)
        self._guard = partial(ShadowGuard, given, settings, mean=tuple(mean), std=tuple(std), seed=seed, z_dim=z_dim)
        self._round = ExitStack()
        self._asked: tuple[Guarding, str, Mapping[str, Any]] | None = None

    def receive(self) -> flare.FLModel | None:
        """The next round's message, as ``flare.receive`` gives it; None at the end.

        Raises:
            ShadowDefenseError: for a message that does not fit, a damaged state, or a round that is over.
        """
        self._round.close()
        self._asked = None
        while (message := flare.receive()) is not None:
            received = to_tensors(message.params, "the server's global model")
            round, rounds = _whole(message.current_round, "round"), _whole(message.total_rounds, "number of rounds")
            asked = digest(received)
            again = self._states.answered(round, asked)
            if again is not None:
                self._send(again, message.params)
                continue
            # Two processes that trained as one site would draw the same noise for two updates.
            self._states.make()
            self._round.enter_context(holding(self._states.folder))
            # A new one each time: of a round that failed nothing is left in it.
            defense, before = ShadowDefense(self._guard()), self._states.resume(round, asked)
            if before is not None:
                restore_defense(defense, before, self._states.path(before))
            # The model and the loss are the training's, which `guarded` puts in their place.
            now = RoundContext(nn.Module(), received, F.cross_entropy, round, rounds, 1.0)
            defense.begin_round(now)
            self._asked = self._round.enter_context(guarding(defense, now)), asked, message.params
            return message
        return None

    def send(self, model: nn.Module, *, steps: int, samples: int) -> None:
        """Send the difference that the round made, once what the guard has to remember is on disk.

        Args:
            model: as it was trained, with the tensors that were received.
            steps, samples: how many; they are all that leaves besides. NVFlare weighs its average by the steps.

        Raises:
            DefenseError: where no guarded batch was drawn, or a budget is set, of which the guard counts nothing.
            UpdateError: for NaN or infinity, or a model of other tensors: nothing leaves.
        """
        if self._asked is None:
            raise DefenseError("no round was received: call receive() first, and send() once for each round")
        (seen, asked, like), self._asked = self._asked, None
        with self._round:
            if not seen.batches:
                raise DefenseError(
                    "the training drew no guarded batch: give it guarded(loader, model) in place of its loader"
                )
            difference = _difference(seen.round.global_state, on_host(model.state_dict()))
            said = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: counted("steps", steps), SAMPLES: counted("samples", samples)}
            # Raises for NaN and infinity.
            ModelUpdate(difference, samples, steps, seen.round.round, self._states.client)
            measured, state = seen.defense.measurements(), seen.defense.state_dict()
            spend(state_root(), self._states.run, self._states.client, measured, epsilon_budget())
            left = ClientState(seen.round.round, asked, state, {}, sent={SENT: difference}, said=said)
            self._states.save(left)
            self._states.note(measured)
            self._send(left, like)

    def _send(self, left: ClientState, like: Mapping[str, Any]) -> None:
        tensors: Mapping[str, Tensor] = left.sent[SENT]
        flare.send(flare.FLModel(params=from_tensors(tensors, like), params_type="DIFF", meta=dict(left.said)))


def _difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if {name: tensor.shape for name, tensor in before.items()} != {name: each.shape for name, each in after.items()}:
        raise UpdateError("the model has other tensors than what was received: send the one that was trained")
    return change(before, in_types_of(after, before))


def _whole(value: object, what: str) -> int:
    if not isinstance(value, int):
        raise UpdateError(f"the server's message does not say its {what}: use a controller that does, such as FedAvg")
    return value
