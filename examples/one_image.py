"""Where the noise of Shadow Defense goes on one image, and why: Grad-CAM++ and the noise map, as one picture.

Run it with: .venv/bin/python examples/one_image.py [picture.png]
"""

import sys
from pathlib import Path

import torch
from torch import nn

from shadow_defense import ShadowGuard, ShadowSettings
from shadow_defense.data.build import load_dataset
from shadow_defense.data.settings import DataSettings
from shadow_defense.generators.build import build_networks
from shadow_defense.generators.grid import save_grid
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

data = load_dataset(DataSettings(source="chest_phantom", images=40, image_size=64), seed=0)
patient = next(client for client in data.clients if len(client.train) == 1)
image = data.normalisation.apply(patient.train.unit_images())
model = build_model(ModelSettings(name="convnet"), channels=1, classes=2, image_size=(64, 64), seed=0)
generator, _ = build_networks(GeneratorSettings(z_dim=64, width=16), image_size=64, channels=1, seed=0)  # untrained

guard = ShadowGuard(generator, ShadowSettings(strength=1.0), mean=data.normalisation.mean, std=data.normalisation.std)
protection = guard.protect_with_details(
    image,
    patient.train.labels,
    patient.train.sample_ids,
    model=model,
    global_model=model,
    loss_fn=nn.CrossEntropyLoss(),
    round=0,
    rounds=10,
)

assert protection.cam is not None
panels = [
    data.normalisation.invert(image),
    protection.cam.unsqueeze(1),
    protection.noise_map / protection.noise_map.max(),
    data.normalisation.invert(protection.images),
]
path = Path(sys.argv[1] if len(sys.argv) > 1 else "one_image.png")
save_grid(path, torch.cat(panels), columns=4)
print(f"{path}: the image, Grad-CAM++, the noise map, the protected image")
