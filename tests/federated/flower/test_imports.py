"""What a process of a deployment imports: Flower starts one for every message, so that it is paid for every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

HEAVY = (
    "matplotlib", "monai", "numba", "pandas", "ray", "scipy.optimize", "scipy.signal", "scipy.stats", "skimage",
    "sklearn", "sympy", "torch._dynamo", "torchmetrics",
)  # fmt: skip


@pytest.mark.slow
def test_the_apps_and_a_round_import_nothing_that_only_other_stages_need(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"def heavy(): return sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "import shadow_defense.experiment.flower_apps\n"
        "print('IMPORTED', heavy())\n"
        "from pathlib import Path\n"
        "from tests.federated.flower import sites\n"
        f"sites.on_flower(Path({str(tmp_path)!r}), sites.named('noise'))\n"
        "print('TRAINED', heavy())\n"
        "from shadow_defense.generators.build import load_generator, save_generator\n"
        "from shadow_defense.generators.dcgan import DCGANGenerator\n"
        f"path = Path({str(tmp_path / 'generator.safetensors')!r})\n"
        "save_generator(path, DCGANGenerator(z_dim=4, width=4), 'dcgan', {})\n"
        "import torch\n"
        "from shadow_defense import ShadowGuard, ShadowSettings\n"
        "guard = ShadowGuard(load_generator(path), ShadowSettings(latent_iterations=1))\n"
        "from torch import nn\n"
        "model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(392, 2))\n"
        "where = {'model': model, 'global_model': model, 'loss_fn': torch.nn.functional.cross_entropy}\n"
        "guard.protect(torch.zeros(1, 1, 16, 16), [0], ['a'], round=0, rounds=1, **where)\n"
        "print('COMPILER', 'torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert "IMPORTED []\nTRAINED []\nCOMPILER False\n" in done.stdout, done.stdout + done.stderr
