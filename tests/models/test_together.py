"""Two models that answer together, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import shadow_defense
from shadow_defense.errors import DataError, ModelError
from shadow_defense.models.together import answer_together, together, weight


class Says(nn.Module):
    """Logits that are a part of each image, times a factor."""

    def __init__(self, row: int, factor: float) -> None:
        super().__init__()
        self.row, self.factor, self.seen = row, factor, nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.seen(images[:, 0, self.row])


def images(count: int = 300) -> Tensor:
    return torch.randn(count, 1, 2, 3, generator=torch.Generator().manual_seed(0))


def test_the_surer_one_does_not_outvote_the_other() -> None:
    """A factor of logits, and what is common to all classes, change nothing; the mean of both decides."""
    given = images()
    models = [Says(0, 1.0), Says(1, 100.0)]
    model = answer_together(models, given)
    assert not model.training
    rows = [given[:, 0, row] - given[:, 0, row].mean(dim=1, keepdim=True) for row in (0, 1)]
    even = sum(row / row.var(dim=0, correction=0).mean().sqrt() for row in rows)
    assert isinstance(even, Tensor)
    answers = model(given)
    torch.testing.assert_close(answers.softmax(dim=1), even.softmax(dim=1))
    shifted = [torch.log_softmax(given[:, 0, row] * factor, dim=1) for row, factor in ((0, 1.0), (1, 100.0))]
    torch.testing.assert_close(together(shifted, [weight(each) for each in shifted]), answers)


def test_a_state_dict_holds_the_weights() -> None:
    model, other = answer_together([Says(0, 1.0), Says(1, 2.0)], images()), images(7)
    again = answer_together([Says(0, 1.0), Says(1, 2.0)], other)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(other), model(other))


def test_what_cannot_answer_together_is_said() -> None:
    with pytest.raises(ModelError, match="1 images: give two"):
        answer_together([Says(0, 1.0)], images(1))
    with pytest.raises(ModelError, match="expected one a class of each"):
        answer_together([Says(0, 1.0), nn.Sequential(Says(0, 1.0), nn.Linear(3, 2))], images())


def test_a_public_network_beside_a_model() -> None:
    """Images whose brightness tells the class: beside a model that says nothing of it, the network's answer stays."""
    labels = torch.arange(60) % 2
    public = (0.3 + 0.4 * labels.view(-1, 1, 1, 1) + 0.05 * torch.randn(60, 1, 16, 16)).clamp(0, 1)
    network = shadow_defense.public_network(public, labels)
    nothing = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    nn.init.zeros_(nothing[1].weight)
    both = shadow_defense.answer_together([nothing, network], public)
    assert (both(public).argmax(dim=1) == labels).float().mean() > 0.95
    assert torch.equal(both(public).argmax(dim=1), network(public).argmax(dim=1))
    with pytest.raises(DataError, match="no labels"):
        shadow_defense.public_network(public)
