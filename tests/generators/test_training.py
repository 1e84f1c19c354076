"""GAN training: the losses as formulas, the average of the weights, and going on after a stop."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.generators import held_out
from shadow_defense.generators.adversarial import discriminator_loss, generator_loss, move_average, r1_penalty
from shadow_defense.generators.build import load_generator, save_generator
from shadow_defense.generators.dcgan import DCGANDiscriminator, DCGANGenerator
from shadow_defense.generators.held_out import energy_distance
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator
from shadow_defense.generators.training import GanTraining, as_generator_images, pretrain


def settings(steps: int, **changes: object) -> GeneratorSettings:
    chosen = {"z_dim": 4, "width": 4, "batch_size": 4, "save_every": 3, "r1_every": 2, **changes}
    return GeneratorSettings(steps=steps, **chosen)


def public(count: int = 12, channels: int = 1, side: int = 16) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), generator=draws, dtype=torch.uint8)


def test_losses_by_hand() -> None:
    logits = torch.tensor([0.0, 2.0], dtype=torch.float64)
    softplus = torch.log1p(torch.exp(torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64)))
    torch.testing.assert_close(generator_loss(logits), (softplus[0] + softplus[2]) / 2)
    expected = (softplus[0] + softplus[2]) / 2 + softplus[1]
    torch.testing.assert_close(discriminator_loss(logits, torch.full((3,), 2.0, dtype=torch.float64)), expected)


def test_r1_penalty_against_finite_differences() -> None:
    discriminator = DCGANDiscriminator(image_size=16, channels=1, width=4).double()
    with torch.no_grad():
        # At the initial weights of N(0, 0.02) the penalty drowns in the differences' rounding.
        for parameter in discriminator.parameters():
            parameter.mul_(10)
    real = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    step, slopes = 1e-6, torch.zeros_like(real)
    with torch.no_grad():
        for index in range(real[0].numel()):
            shifted = torch.zeros_like(real).flatten(1)
            shifted[:, index] = step
            shifted = shifted.view_as(real)
            slope = (discriminator(real + shifted) - discriminator(real - shifted)) / (2 * step)
            slopes.flatten(1)[:, index] = slope
    penalty = r1_penalty(discriminator, real)
    torch.testing.assert_close(penalty.detach(), slopes.square().sum(dim=(1, 2, 3)).mean(), rtol=1e-4, atol=0)
    # And it trains the discriminator: the derivative for the logit's weights, which scale it, is 2 R1 / scale.
    penalty.backward()
    weight = discriminator.logit.weight
    torch.testing.assert_close((weight.grad * weight.detach()).sum(), 2 * penalty.detach())


def test_moving_average() -> None:
    average, current = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        average.weight.fill_(4.0)
        current.weight.fill_(8.0)
        current.running_mean.fill_(3.0)
    move_average(average, current, 0.75)
    assert average.weight.tolist() == [5.0, 5.0]
    assert average.running_mean.tolist() == [3.0, 3.0]
    assert current.weight.tolist() == [8.0, 8.0]


def test_the_average_trails_the_generator() -> None:
    """After step one the half-life is one image: with a batch of 4 a sixteenth of the old weights stays."""
    training = GanTraining(settings(1), image_size=16, channels=1, seed=0)
    before = training.generator.project[0].weight.detach().clone()
    training.step(public())
    after = training.generator.project[0].weight.detach()
    assert not torch.equal(before, after)
    expected = before / 16 + after * 15 / 16
    torch.testing.assert_close(training.average.project[0].weight, expected, rtol=0, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in training.average.parameters())


def test_both_networks_train_and_the_penalty_comes_every_second_step() -> None:
    training = GanTraining(settings(4), image_size=16, channels=1, seed=0)
    logit = training.discriminator.logit.weight.detach().clone()
    penalties = [training.step(public())["r1"] for _ in range(4)]
    # Between the steps at which it is due, the last one measured is told.
    assert penalties[0] == penalties[1] > 0
    assert penalties[2] == penalties[3] != penalties[0]
    assert not torch.equal(training.discriminator.logit.weight, logit)


def test_bytes_become_the_generators_images() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    assert as_generator_images(images, 2).flatten().tolist() == [-1, 1, -1, 1]
    assert as_generator_images(public(side=20), 16).shape == (12, 1, 16, 16)


def equal(first: nn.Module, second: nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())


def test_resumed_training_equals_the_unbroken_one(tmp_path: Path) -> None:
    straight = pretrain(settings(6), public(), seed=0, folder=tmp_path / "straight")
    stopped = pretrain(settings(3), public(), seed=0, folder=tmp_path / "resumed")
    assert not equal(straight, stopped)
    resumed = pretrain(settings(6), public(), seed=0, folder=tmp_path / "resumed")
    assert equal(straight, resumed)
    checkpoints = [read_tensors(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "resumed")]
    assert checkpoints[0][1] == checkpoints[1][1]
    assert checkpoints[0][0].keys() == checkpoints[1][0].keys()
    assert all(torch.equal(tensor, checkpoints[1][0][name]) for name, tensor in checkpoints[0][0].items())
    assert (tmp_path / "resumed" / "grid-000006.png").exists()


def test_energy_distance_by_hand() -> None:
    """Points 0 and 2, and 0 and 4, on a line: 2 (0 + 4 + 2 + 2) / 4 - 2 - 4."""
    assert energy_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])) == pytest.approx(-2)
    draws = torch.Generator().manual_seed(0)
    near, same = torch.randn(200, 3, generator=draws), torch.randn(200, 3, generator=draws)
    assert abs(energy_distance(near, same)) < 0.05 < energy_distance(near, same + 1)


def planted(distances: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The distances of the checkpoints to come, in order."""
    left = iter(distances)
    monkeypatch.setattr(held_out, "energy_distance", lambda *_: next(left))


def test_training_ends_where_held_out_images_are_approached_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearest at step 4; at steps 6 and 8 the patience of two checkpoints runs out. Held out are 4 of 32 images."""
    planted([3.0, 1.0, 2.0, 2.0], monkeypatch)
    given = {"save_every": 2, "patience": 2}
    kept = pretrain(settings(40, **given), public(32), seed=0, folder=tmp_path / "whole")
    used, held = held_out.hold_out(public(32))
    assert (len(used), len(held)) == (28, 4)
    assert equal(kept, pretrain(settings(4), used, seed=0, folder=tmp_path / "nearest"))
    _, metadata = read_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    assert [(entry["step"], entry["held_out"]) for entry in metadata["losses"]] == [
        (2, 3.0),
        (4, 1.0),
        (6, 2.0),
        (8, 2.0),
    ]
    # Stopped in between, and called again at its end: the same, without another step.
    planted([3.0, 1.0, 2.0, 2.0], monkeypatch)
    for steps in (6, 40, 40):
        again = pretrain(settings(steps, **given), public(32), seed=0, folder=tmp_path / "resumed")
        assert equal(kept, again)


def test_too_few_images_to_hold_some_out(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match=r"24 public images .* give 32 or more"):
        pretrain(settings(1, patience=1), public(24), seed=0, folder=tmp_path)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    pretrain(settings(1), public(), seed=0, folder=tmp_path)
    with pytest.raises(GeneratorError, match="of another generator") as raised:
        pretrain(settings(1, z_dim=5), public(), seed=0, folder=tmp_path)
    assert "\n" not in str(raised.value)


def test_no_public_images(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="no public images"):
        pretrain(settings(1), public(0), seed=0, folder=tmp_path)


def test_divergence_is_reported(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="diverged at step"):
        pretrain(settings(40, learning_rate=1e20), public(), seed=0, folder=tmp_path)


def test_round_trip(tmp_path: Path) -> None:
    trained = pretrain(settings(2), public(channels=3), seed=0, folder=tmp_path)
    loaded = load_generator(tmp_path / "generator.safetensors")
    assert equal(trained, loaded) and not loaded.training
    assert (loaded.z_dim, loaded.channels, loaded.image_size) == (4, 3, 16)
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trained.eval()(z), loaded(z))


def test_files_that_are_no_generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_module_of_a_file.py").write_text("")
    path = tmp_path / "generator.safetensors"
    generator = DCGANGenerator(image_size=16, z_dim=4, width=4)
    save_generator(path, generator, "dcgan", {})
    whole = path.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(GeneratorError, match=message) as raised:
            load_generator(path)
        assert "\n" not in str(raised.value)

    for damaged in (whole[: len(whole) // 2], whole[:4], b"", b"\x80\x04not a tensor"):
        path.write_bytes(damaged)
        refused("cannot read .*generator.safetensors")
    path.unlink()
    refused("cannot read .*generator.safetensors")
    write_tensors(path, generator.state_dict(), {"kind": "update"})
    refused("holds no generator")
    for name in ("stylegan9", "a_module_of_a_file:ENTRY"):
        write_tensors(path, generator.state_dict(), {"kind": "generator", "name": name, "arguments": {}})
        refused(f"made by the generator '{name}', which is not known here")
    assert "a_module_of_a_file" not in sys.modules
    arguments = {"image_size": 32, "channels": 1, "z_dim": 4, "width": 4}
    write_tensors(path, generator.state_dict(), {"kind": "generator", "name": "dcgan", "arguments": arguments})
    refused("does not fit its architecture")
    write_tensors(path, generator.state_dict(), {"kind": "generator", "name": "dcgan", "arguments": {"depth": 3}})
    refused("does not fit its architecture")
    write_tensors(path, generator.state_dict(), {"kind": "generator", "name": "dcgan"})
    refused("does not fit its architecture")
    for wrong in ({"width": 10**9}, {"z_dim": 10**6}, {"width": "4"}, {"z_dim": -4}, {"width": 0}, {"channels": 2}):
        told = {"image_size": 16, "channels": 1, "z_dim": 4, "width": 4} | wrong
        write_tensors(path, generator.state_dict(), {"kind": "generator", "name": "dcgan", "arguments": told})
        refused("does not fit its architecture|channels was asked for")
    broken = {"synthesis.0.weight": generator.state_dict()["synthesis.0.weight"] * float("nan")}
    told = {"image_size": 16, "channels": 1, "z_dim": 4, "width": 4}
    write_tensors(path, generator.state_dict() | broken, {"kind": "generator", "name": "dcgan", "arguments": told})
    refused("NaN")


@pytest.mark.parametrize(
    "claim",
    [{"mapping_layers": 100_000}, {"channel_max": 10**6, "channel_base": 10**6}, {"z_dim": 10**6}, {"c_dim": 10**6}],
)
def test_what_a_stylegan3_file_claims_is_compared_before_it_is_built(tmp_path: Path, claim: dict[str, int]) -> None:
    path = tmp_path / "generator.safetensors"
    network = StyleGAN3Generator(image_size=16, z_dim=4, w_dim=4, channel_base=64, channel_max=8)
    save_generator(path, network, "stylegan3-t", {})
    assert equal(load_generator(path), network)
    tensors, metadata = read_tensors(path)
    metadata["arguments"] |= claim
    write_tensors(path, tensors, metadata)
    started = time.process_time()
    with pytest.raises(GeneratorError, match=r"generator.safetensors does not fit its architecture"):
        load_generator(path)
    assert time.process_time() - started < 5
