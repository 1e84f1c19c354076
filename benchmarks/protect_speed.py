"""Images that one thread protects in a second of processor time, as `shadow-defense protect` draws and writes them.

    python benchmarks/protect_speed.py --sizes 32 64 224

Grey images of white noise under the texture of `recommended`, whose network nobody trained, with as many directions as
public images allow: what is in an image, or in the network, has no part in what it costs.
"""

from __future__ import annotations

import argparse
import time

import torch

from shadow_defense.data.dataset import Normalisation
from shadow_defense.models.build import build_model
from shadow_defense.protection.directions import MODEL, Classifier
from shadow_defense.protection.features import Features, told_by
from shadow_defense.protection.frozen import FrozenProtection
from shadow_defense.protection.reader import measure_reader
from shadow_defense.protection.whitening import measure_whitening
from shadow_defense.seeds import named_generator

SECRET = 2**255 + 1
"""As long as a site's own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224])
    parser.add_argument("--public", type=int, default=600)
    parser.add_argument("--images", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for size in given.sizes:
        draws = named_generator(0, "speed", size)
        public = torch.rand(given.public, 1, size, size, generator=draws)
        private = torch.randint(0, 256, (given.images, 1, size, size), generator=draws, dtype=torch.uint8)
        whitening = measure_whitening(public)
        model = build_model(MODEL, channels=1, classes=2, image_size=(size, size), seed=0).eval()
        reader = measure_reader(Classifier(model, Normalisation((0.0,), (1.0,))), public, 4)
        shown = torch.eye(whitening.count)[:, :4]
        texture = Features(whitening, reader, told_by(reader, whitening, public), shown, 1.5)
        frozen = FrozenProtection(texture, SECRET, "speed")
        begun = time.process_time()
        frozen.trained_on(private)
        rate = given.images / (time.process_time() - begun)
        print(f"{size} px, {whitening.count} directions: {rate:.0f} images a second", flush=True)


if __name__ == "__main__":
    main()
