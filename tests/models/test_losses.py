"""The clients' losses against torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from shadow_defense.models.losses import ClassLoss


def test_the_losses_are_torchs() -> None:
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 2])
    hot = F.one_hot(labels, 3).float()
    assert torch.equal(ClassLoss()(logits, labels), nn.CrossEntropyLoss()(logits, labels))
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert torch.equal(ClassLoss("ce", 0.1)(logits, labels), smooth(logits, labels))
    for loss, reference in (("bce", nn.BCEWithLogitsLoss()), ("mse", nn.MSELoss())):
        ours = ClassLoss(loss)
        assert torch.equal(ours(logits, labels), reference(logits, hot))
        soft = 0.5 * hot + 0.1
        assert torch.equal(ours(logits, soft), reference(logits, soft))
        # As one sample at a time is differentiated by.
        each = vmap(lambda one, label, ours=ours: ours(one.unsqueeze(0), label.unsqueeze(0)))(logits, labels)
        torch.testing.assert_close(each.mean(), reference(logits, hot))
