"""How many images get next to no noise: the paper's formula beside the floor of the default settings.

    python benchmarks/least_noise.py --data pneumoniamnist.npz

Prints for both, over all training images: how many get less than a quarter of the median noise (root mean square), the
least noise as a share of the median, and the median. The generator is untrained and codes stay at their starts, since
the floor acts on the noise's scale.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from shadow_defense import ShadowGuard, ShadowSettings
from shadow_defense.data.dataset import Normalisation
from shadow_defense.generators.dcgan import DCGANGenerator

AT_ONCE = 256


def noise_of(images: Tensor, normalisation: Normalisation, floor: float) -> Tensor:
    """(n,), root mean square of each image's noise in round 0."""
    torch.manual_seed(0)
    side = images.shape[2]
    settings = ShadowSettings(floor=floor, latent_pretraining=False, shadow_rounds=0, foreground=False)
    generator = DCGANGenerator(image_size=32, channels=images.shape[1], z_dim=16, width=4)
    guard = ShadowGuard(generator, settings, mean=normalisation.mean, std=normalisation.std)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images.shape[1] * side * side, 2))
    found = []
    for start in range(0, len(images), AT_ONCE):
        chunk = normalisation.apply(images[start : start + AT_ONCE])
        protection = guard.protect_with_details(
            chunk,
            torch.zeros(len(chunk)).long(),
            range(start, start + len(chunk)),
            model=model,
            global_model=model,
            loss_fn=nn.functional.cross_entropy,
            round=0,
            rounds=1,
        )
        found.append(protection.noise.square().mean(dim=(1, 2, 3)).sqrt())
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an npz file of MedMNIST")
    data = np.load(parser.parse_args().data)["train_images"]
    images = torch.from_numpy(data).float() / 255
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    mean, std = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    measured = Normalisation(tuple(mean.tolist()), tuple(std.tolist()))
    for name, normalisation in (
        ("mean and std measured", measured),
        ("mean and std 0.5", Normalisation((0.5,), (0.5,))),
    ):
        for floor in (0.0, ShadowSettings().floor):
            noise = noise_of(images, normalisation, floor)
            median = noise.median()
            below, least = int((noise < median / 4).sum()), float(noise.min() / median)
            print(
                f"{name}, floor {floor}: {below} of {len(noise)} images below a quarter of the median; "
                f"least {least:.3f} of the median {float(median):.4f}"
            )


if __name__ == "__main__":
    main()
