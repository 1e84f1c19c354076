"""Learning to Invert: a network that never saw the client's face rebuilds it from the update, and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from tests.attacks.clients import SHAPE, SIDE, baseline, lenet, normalisation, observation, private, public
from torch import Tensor, nn

from shadow_defense.attacks.gradient_features import FeatureHashing, Standardisation
from shadow_defense.attacks.inversion_network import Examples, inversion_network, learn, matched_error
from shadow_defense.attacks.learning_to_invert import LearningToInvert
from shadow_defense.attacks.observation import Observation, randomised
from shadow_defense.attacks.simulated_clients import draw_clients, image_pools, simulated_defense, simulated_updates
from shadow_defense.attacks.target import matching_target
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import ImageSet
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.errors import DataError, ThreatModelError
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.metrics.psnr import psnr
from shadow_defense.progress import Task

ATTACK = LearningToInvert(hidden=128, features=1024, epochs=40, batch_size=16, learning_rate=1e-3)
SPARSE = DefenseSettings(defense="gradient-sparsification", options={"percent": 95.0, "scope": "global"})


def auxiliary(count: int = 92, label: int | None = None) -> ImageSet:
    """Public faces, none of them a client's."""
    labels = torch.arange(count) % 2 if label is None else torch.full((count,), label)
    return ImageSet((public()[:count] * 255).round().byte(), labels, tuple(map(str, range(count))))


def perceptron() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.GELU(), nn.Linear(16, 2))


def seen_of(
    model: nn.Module, labels: tuple[int, ...] = (1,), images: ImageSet | None = None, **changes: object
) -> Observation:
    seen, _ = observation(model, labels, **changes)  # type: ignore[arg-type]
    return replace(seen, _auxiliary=images or auxiliary())


def knowing(seen: Observation, defense: DefenseSettings) -> Observation:
    return replace(seen, threat_model=threat_model("adaptive server"), _defense=defense)


def own_defense(settings: DefenseSettings) -> object:
    return settings.build(Resources(None, normalisation(), auxiliary(), 2, "site-1", 99))


def reached(seen: Observation, attack: LearningToInvert = ATTACK) -> float:
    return psnr(attack.reconstruct(seen, seed=0).images, private(seen.update.samples)).mean().item()


def test_hashing_by_hand() -> None:
    hashing = FeatureHashing(torch.tensor([0, 2, 0, 1]), 3)
    assert torch.allclose(hashing(torch.tensor([[2.0, 4.0, -1.0, 2.0]])), torch.tensor([[0.2, 0.4, 0.8]]))
    assert not hashing(torch.zeros(1, 4)).any()


def test_hashing_is_linear_but_for_the_length_balanced_and_drawn_from_its_seed() -> None:
    draws = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 1000, generator=draws)
    hashing = FeatureHashing.drawn(1000, 64, seed=3)
    norms = [each.norm() for each in (first, second, first + second)]
    both = hashing(first) * norms[0] + hashing(second) * norms[1]
    assert torch.allclose(hashing(first + second) * norms[2], both, atol=1e-4)
    # Late updates are tiny: squares of 1e-30 are zero in single precision.
    assert torch.allclose(hashing(first * 1e-28), hashing(first), atol=1e-6)
    counts = hashing.bins.bincount()
    assert len(counts) == 64 and counts.min() == 15 and counts.max() == 16
    assert torch.equal(hashing.bins, FeatureHashing.drawn(1000, 64, seed=3).bins)
    assert not torch.equal(hashing.bins, FeatureHashing.drawn(1000, 64, seed=4).bins)
    assert torch.allclose(FeatureHashing.drawn(1000, 1000, seed=3)(first), first / first.norm())


def test_a_feature_that_hardly_varies_is_not_blown_up() -> None:
    rows = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0 + 1e-6]])
    found = Standardisation.measured(rows)(rows)
    assert torch.allclose(found[:, 0], torch.tensor([-1.0, 1.0]), atol=0.02)
    assert found[:, 1:].abs().max() < 1e-3


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 0, 1], [0, 1, 2]])
def test_the_error_is_the_least_over_all_orders_that_keep_the_labels(labels: list[int]) -> None:
    draws = torch.Generator().manual_seed(1)
    predicted, images = torch.rand(2, 7, 3, 5, generator=draws)
    kept = [order for order in permutations(range(3)) if [labels[place] for place in order] == labels]
    errors = [(predicted - images[:, order]).square().mean((1, 2)) for order in kept]
    expected = torch.stack(errors).amin(0).mean()
    assert torch.allclose(matched_error(predicted, images, torch.tensor(labels)), expected)


def test_the_network_starts_at_the_mean_and_keeps_its_best_epoch() -> None:
    mean = 0.1 + 0.8 * torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    network = inversion_network(4, 8, mean, seed=0)
    assert torch.allclose(network(torch.zeros(1, 4))[0], mean, atol=0.1)
    draws = torch.Generator().manual_seed(1)
    one, other = (Examples(torch.randn(8, 4, generator=draws), torch.rand(8, 1, 9, generator=draws)) for _ in range(2))
    labels = torch.tensor([0])
    learned = learn(one, other, labels, hidden=32, epochs=20, batch_size=4, learning_rate=1e-2, seed=0)
    # Noise is learned by heart: the best epoch comes early, and the network is that epoch's.
    assert learned.held_out[learned.epoch - 1] == min(learned.held_out) < learned.held_out[-1]
    again = matched_error(learned.network(other.features), other.images, labels).item()
    assert again == pytest.approx(min(learned.held_out))


def test_pools_do_not_overlap_and_clients_use_all_of_a_pool_first() -> None:
    pools, own = image_pools(torch.tensor([0, 1] * 10), torch.tensor([0, 1, 1]))
    draws = torch.Generator().manual_seed(0)
    kept, left = zip(*(pool.split(0.3, draws) for pool in pools), strict=True)
    assert own and [len(pool.images) for pool in (*kept, *left)] == [7, 7, 3, 3]
    clients = draw_clients(kept, 7, draws)
    assert (clients % 2 == torch.tensor([0, 1, 1])).all()
    assert sorted(clients[:, 0].tolist()) == sorted(kept[0].images.tolist())
    assert not set(clients.flatten().tolist()) & {int(image) for pool in left for image in pool.images}
    assert image_pools(torch.tensor([0, 1, 0]), torch.tensor([1]))[0][0].images.tolist() == [0, 1, 2]


def flat_update(seen: Observation) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in matching_target(seen, 16).observed])


@pytest.mark.parametrize("defense", [None, SPARSE])
def test_a_simulated_client_sends_what_a_real_one_with_its_images_sends(defense: DefenseSettings | None) -> None:
    """The client's own images, in the attacker's hands for once: as a whole batch, in train mode of batch norm."""
    with torch.random.fork_rng(devices=[]):
        # Of weights that leave no two entries of the update equally large: which of them is dropped is chance.
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(196, 2))
    labels = (0, 1, 1)
    theirs = ImageSet((private(3) * 255).round().byte(), torch.tensor(labels), ("a", "b", "c"))
    seen = seen_of(model, labels, theirs, defense=own_defense(defense) if defense else None)
    found = list(
        simulated_updates(seen, matching_target(seen, 16), theirs, torch.tensor([[0, 1, 2], [0, 2, 1]]), defense, 0)
    )
    expected = flat_update(seen)
    assert torch.allclose(torch.cat(found), expected.expand(2, -1), atol=1e-6)
    assert ((expected == 0).float().mean() > 0.9) == (defense is not None)


def test_mapped_clients_are_those_simulated_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_of(lenet(), (0, 1), batch_size=1)
    clients = torch.tensor([[0, 1], [2, 3], [4, 5]])
    target = matching_target(seen, 16)
    assert target.local.steps == 2
    mapped = torch.cat(list(simulated_updates(seen, target, auxiliary(), clients, None, 0)))
    monkeypatch.setattr("shadow_defense.attacks.simulated_clients.can_be_mapped", lambda model: False)
    in_turn = torch.cat(list(simulated_updates(seen, target, auxiliary(), clients, None, 0)))
    assert torch.allclose(mapped, in_turn, atol=1e-6) and in_turn.abs().max() > 1e-3


@pytest.mark.slow
def test_rebuilds_a_face_it_never_saw() -> None:
    seen = seen_of(perceptron(), images=auxiliary(label=1))
    found = ATTACK.reconstruct(seen, seed=0)
    quality = psnr(found.images, private()).item()
    assert quality > baseline() + 3
    assert reached(randomised(seen, seed=1)) < baseline() + 0.5
    assert found.images.shape == (1, *SHAPE) and found.images.min() >= 0 and found.images.max() <= 1
    assert found.labels.tolist() == [1] and found.matching_loss < 0.2 and len(found.history) == ATTACK.epochs
    assert found.notes[0] == "defense unknown: learned from undefended updates"
    assert found.notes[1].startswith("learned from 83 simulated updates; after epoch ")
    assert torch.equal(found.images, ATTACK.reconstruct(seen, seed=0).images)


@pytest.mark.slow
def test_several_images_and_nothing_of_the_truth() -> None:
    """Labels that come in another order change nothing: each image is returned with its label."""
    attack = ATTACK.model_copy(update={"updates": 150, "epochs": 20})
    model = perceptron()
    seen = seen_of(model, (0, 1))
    found = attack.reconstruct(seen, seed=0)
    assert psnr(found.images, private(2)).mean() > baseline(2) + 0.5
    assert found.labels.tolist() == [0, 1]
    # The same update, from a client that listed its labels the other way round.
    other = replace(seen_of(model, (1, 0)), update=seen.update)
    assert torch.equal(attack.reconstruct(other, seed=0).images, found.images)


@pytest.mark.slow
def test_who_knows_the_defense_learns_to_see_through_it() -> None:
    seen = seen_of(perceptron(), images=auxiliary(label=1), defense=own_defense(SPARSE))
    attack = ATTACK.model_copy(update={"updates": 92})
    informed = attack.reconstruct(knowing(seen, SPARSE), seed=0)
    assert informed.notes[0] == "learned from updates under gradient-sparsification"
    quality = psnr(informed.images, private()).item()
    assert quality > reached(seen, attack) + 1 and quality > baseline() + 1


def test_which_defenses_are_simulated() -> None:
    seen = seen_of(perceptron())
    assert simulated_defense(knowing(seen, DefenseSettings())) == (None, ())
    chosen, notes = simulated_defense(knowing(seen, DefenseSettings(defense="shadow+clip")))
    assert chosen is None and notes == ("learned from undefended updates: shadow searches in every batch",)
    assert simulated_defense(knowing(seen, SPARSE))[0] == SPARSE


def test_long_trainings_labels_without_images_and_progress() -> None:
    attack = ATTACK.model_copy(update={"updates": 20, "epochs": 2, "longest_unroll": 2})
    seen = seen_of(perceptron(), (0, 1, 1), auxiliary(10, label=0), epochs=5, batch_size=2)
    assert seen.local_training == LocalTraining(0.1, 2, 10)

    class Counting(Task):
        done = 0

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.done += steps

    task = Counting()
    found = attack.reconstruct(seen, seed=0, task=task)
    assert found.images.shape == (2, *SHAPE)
    assert found.notes[0].startswith("10 local steps taken as one average step")
    assert "fewer than two auxiliary images of a label: all of them stand in for every label" in found.notes
    assert task.done == attack.steps() == 22


def test_refuses_too_few_images_images_of_another_size_and_who_may_not_know() -> None:
    seen = seen_of(perceptron())
    with pytest.raises(DataError, match="1 auxiliary images: expected 2 or more"):
        ATTACK.reconstruct(replace(seen, _auxiliary=auxiliary(1)), seed=0)
    small = ImageSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ("a", "b", "c"))
    with pytest.raises(DataError, match=r"shape \(1, 8, 8\) and the client's \(1, 16, 16\)"):
        ATTACK.reconstruct(replace(seen, _auxiliary=small), seed=0)
    with pytest.raises(ThreatModelError, match="public images"):
        ATTACK.reconstruct(replace(seen, threat_model=threat_model("honest-but-curious server")), seed=0)
