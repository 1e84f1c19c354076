"""Cases computed with the paper authors' published functions (tests/conformance)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shadow_defense.models.batchnorm import BatchStatistics
from shadow_defense.models.class_activation import class_activation_maps, grad_cam_plus_plus, scale_to_image
from shadow_defense.shadow.foreground import spare_foreground, sparing_strength
from shadow_defense.shadow.noise import noise_amplitude, scale_noise
from shadow_defense.shadow.pseudo_attack import shadow_loss
from shadow_defense.shadow.victim import VictimSignals

TOLERANCE = 1e-4


def cases(file: Path) -> dict[str, dict[str, Tensor]]:
    if not file.exists():
        pytest.skip(f"no {file}")
    grouped: dict[str, dict[str, Tensor]] = {}
    with np.load(file, allow_pickle=False) as arrays:
        for key in arrays.files:
            case, name = key.split("/", 1)
            grouped.setdefault(case, {})[name] = torch.as_tensor(arrays[key])
    assert grouped, f"{file} holds no case"
    return grouped


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def same_map(ours: Tensor, theirs: Tensor) -> bool:
    """A map without any positive weight is constant: the authors' scaling divides 0 by 0, ours gives zeros."""
    if theirs.isnan().all():
        return bool((ours == 0).all())
    return relative_error(ours, theirs) < TOLERANCE


def test_conformance_add_noise(conformance: Path) -> None:
    for name, case in cases(conformance / "add_noise.npz").items():
        round_, rounds, share, low, high, strength = case["meta"].tolist()
        image = case["image"].unsqueeze(0)
        alpha = sparing_strength(int(round_), int(rounds), low, high)
        spared = spare_foreground(case["noise_map"].unsqueeze(0), case["cam"].unsqueeze(0), alpha, share=share)
        noise = scale_noise(spared, image, noise_amplitude(int(round_), int(rounds), strength))
        noise_error = relative_error(noise[0], case["protected"] - case["image"])
        assert relative_error((image + noise)[0], case["protected"]) < TOLERANCE, name
        # The noise alone, too: it is small beside the image and could hide in its error.
        assert noise_error < 10 * TOLERANCE, name


def test_conformance_gradcampp_map(conformance: Path) -> None:
    for name, case in cases(conformance / "gradcampp.npz").items():
        cam = grad_cam_plus_plus(
            case["activations"].unsqueeze(0), case["gradients"].unsqueeze(0), case["score"].float().view(1)
        )
        assert same_map(scale_to_image(cam, (224, 224))[0], case["cam_224"]), name


class LittleNetwork(nn.Module):
    def __init__(self, case: dict[str, Tensor]) -> None:
        super().__init__()
        weights = {key.removeprefix("model/"): value for key, value in case.items() if key.startswith("model/")}
        first, second = weights["features.0.0.0.weight"], weights["features.0.0.2.weight"]
        self.features = nn.Sequential(
            nn.Sequential(
                nn.Sequential(
                    nn.Conv2d(first.shape[1], first.shape[0], 3, stride=2, padding=1),
                    nn.Softplus(),
                    nn.Conv2d(second.shape[1], second.shape[0], 3, padding=1),
                    nn.Softplus(),
                )
            )
        )
        self.fc = nn.Linear(second.shape[0], weights["fc.weight"].shape[0])
        self.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean(dim=(2, 3)))


def test_conformance_gradcampp_through_the_network(conformance: Path) -> None:
    """From the image: the same map, also inside a batch whose other images ask for other classes."""
    for name, case in cases(conformance / "gradcampp.npz").items():
        model = LittleNetwork(case)
        image, wanted = case["image"].unsqueeze(0), int(case["class"])
        batch = torch.cat([image.flip(3), image, image.flip(2)])
        count = model.fc.out_features
        classes = torch.tensor([(wanted + 1) % count, wanted, (wanted + 2) % count])
        maps = class_activation_maps(model, model, batch, classes, "features")
        expected = case["cam_224"]
        # The case's map is at 224 px, ours at the image's size: compare before the resizing of either.
        seen: list[Tensor] = []
        handle = model.features.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        logits = model(image)
        handle.remove()
        (gradient,) = torch.autograd.grad(logits[0, wanted], seen[0])
        alone = grad_cam_plus_plus(seen[0].detach(), gradient, logits[0, wanted].detach().view(1))
        assert same_map(scale_to_image(alone, (224, 224))[0], expected), name
        assert torch.allclose(maps[1], scale_to_image(alone, tuple(image.shape[2:]))[0], atol=TOLERANCE), name


def test_conformance_shadow_loss(conformance: Path) -> None:
    for name, case in cases(conformance / "shadow_loss.npz").items():
        fake = case["fake"]
        gradients = {key: value for key, value in case.items() if key.startswith("g_true_")}
        ours = {key: case[key.replace("true", "fake")] for key in gradients}
        target = BatchStatistics(case["bn_mean"], case["bn_var"], 1)
        variance, mean = torch.var_mean(fake, dim=(0, 2, 3), unbiased=False)
        loss = shadow_loss(
            fake,
            case["real"],
            ours,
            VictimSignals(gradients, {"bn": target}),
            {"bn": BatchStatistics(mean, variance, fake.numel() // fake.shape[1])},
        )
        expected = case["losses_total_grad_bn_tv_norm_rec"]
        for term, ours_term, theirs in zip(loss._fields, loss, expected, strict=True):
            assert abs(float(ours_term) - float(theirs)) <= TOLERANCE * abs(float(theirs)), (name, term)
