"""Three lines in an NVFlare script: it trains on protected batches, and its difference leaves only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("nvflare", reason="needs the extra nvflare")

import nvflare.client as flare
from nvflare.apis.fl_constant import FLMetaKey
from tests.federated.nvflare.results import Model

from shadow_defense.errors import DefenseError, RunError, UpdateError
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.nvflare.exchange import SAMPLES
from shadow_defense.federated.nvflare.shadow_guard_site import ShadowGuardSite, guarded
from shadow_defense.federated.nvflare.site_state import BUDGET, STATE_FOLDER
from shadow_defense.shadow.settings import ShadowSettings


class Net(Model):
    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.body(images)
        return answer


class Job:
    """What a server asks one site for, and what it gets."""

    def __init__(self) -> None:
        self.asked: list[flare.FLModel | None] = []
        self.sent: list[flare.FLModel] = []

    def ask(self, round: int, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        given = Net().state_dict() if state is None else state
        params = {name: tensor.numpy().copy() for name, tensor in given.items()}
        self.asked.append(flare.FLModel(params=params, current_round=round, total_rounds=3))
        return dict(given)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    made = Job()
    monkeypatch.setenv(STATE_FOLDER, str(tmp_path))
    monkeypatch.setattr(flare, "receive", lambda: made.asked.pop(0) if made.asked else None)
    monkeypatch.setattr(flare, "send", made.sent.append)
    monkeypatch.setattr(flare, "get_site_name", lambda: "site-1")
    return made


BATCH = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]))


def script(loader: Callable[[nn.Module], object], strength: float = 1.0) -> list[Tensor]:
    """Trains as long as there are rounds, and returns the images that it trained on."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    settings = ShadowSettings(latent_iterations=2, strength=strength)
    site, model, seen = ShadowGuardSite(generator, "study", settings, z_dim=8), Net(), []
    while (message := site.receive()) is not None:
        model.load_state_dict({name: torch.as_tensor(value) for name, value in message.params.items()})
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for images, labels in loader(model):  # type: ignore[attr-defined]
            seen.append(images)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
        site.send(model, steps=1, samples=2)
    return seen


def test_it_trains_on_protected_batches_and_goes_on(job: Job, tmp_path: Path) -> None:
    before = job.ask(0)
    [first] = script(lambda model: guarded([BATCH], model))
    assert (first - BATCH[0]).abs().mean() > 0.01
    [left] = job.sent
    assert left.params_type == "DIFF" and left.params.keys() == before.keys()
    assert left.meta == {FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1, SAMPLES: 2}
    # Another process, as NVFlare starts them: the codes of the first round are the second's.
    states = ClientStateFolder(tmp_path, "study", "site-1")
    codes = states.last().defense["latents"]["values"]  # type: ignore[union-attr]
    job.ask(1, {name: tensor + torch.as_tensor(left.params[name]) for name, tensor in before.items()})
    script(lambda model: guarded([BATCH], model))
    assert states.last_round() == 1 and len(job.sent) == 2
    assert torch.equal(states.last().defense["latents"]["values"], codes)  # type: ignore[union-attr]


def test_without_noise_it_is_the_scripts_own_training(job: Job) -> None:
    before = job.ask(0)
    script(lambda model: guarded([BATCH], model), strength=1e-9)
    model = Net()
    model.train()
    loss = nn.functional.cross_entropy(model(BATCH[0]), BATCH[1])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(torch.as_tensor(job.sent[0].params[name]), -0.1 * gradient, atol=1e-5, rtol=1e-3)
    assert before.keys() == job.sent[0].params.keys()


def test_a_round_asked_again_is_answered_by_what_left_without_a_training(job: Job) -> None:
    job.ask(0)
    job.ask(0)
    assert len(script(lambda model: guarded([BATCH], model))) == 1
    first, second = job.sent
    assert first.meta == second.meta
    for name, value in first.params.items():
        assert (value == second.params[name]).all()
    # With another model equal draws would cancel.
    job.ask(0, {name: tensor + 1 for name, tensor in Net().state_dict().items()})
    with pytest.raises(RunError, match="nothing is sent twice"):
        script(lambda model: guarded([BATCH], model))


def test_what_is_not_guarded_does_not_leave(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.ask(0)
    with pytest.raises(DefenseError, match="no guarded batch"):
        script(lambda model: [BATCH])
    job.ask(0)
    with pytest.raises(UpdateError, match="NaN or infinity"):
        script(lambda model: _spoiling(model))
    # A budget is of epsilons, and the guard counts none.
    monkeypatch.setenv(BUDGET, "8.0")
    job.ask(0)
    with pytest.raises(DefenseError, match="counts none"):
        script(lambda model: guarded([BATCH], model))
    with pytest.raises(DefenseError, match=r"ShadowGuardSite\(...\).receive"):
        guarded([BATCH], nn.Identity())
    assert job.sent == []


def _spoiling(model: nn.Module) -> object:
    yield from guarded([BATCH], model)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
