"""The registry of defenses, and what no defense does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Batch, Defense, RoundContext
from shadow_defense.defenses.build import DEFENSES, DefenseSettings, Resources
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.errors import DefenseError
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.shadow.settings import ShadowSettings


def resources(client: str = "site-1", *, generator: bool = True) -> Resources:
    made = DCGANGenerator(image_size=16, z_dim=4, width=4) if generator else None
    no_images = ImageSet(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ())
    return Resources(made, Normalisation((0.3,), (0.2,)), no_images, 2, client, seed=0)


@pytest.mark.parametrize("name", [name for name, kind in DEFENSES.items() if not kind.needs_generator])
def test_every_preset_builds_without_a_generator(name: str) -> None:
    for preset in DEFENSES[name].presets:
        defense = DefenseSettings(defense=name, preset=preset).build(resources(generator=False))
        assert defense.acts_on or DEFENSES[name].adapt_model or name == "none"


def test_no_defense_changes_nothing() -> None:
    defense = DefenseSettings().build(resources(generator=False))
    assert type(defense) is Defense and not defense.acts_on
    batch = Batch(torch.ones(1, 1, 2, 2), torch.tensor([0]), ("a",))
    tensors = {"w": torch.ones(2)}
    context = RoundContext(nn.Linear(1, 1), {}, F.cross_entropy, 0, 1, 0.1)
    assert defense.protect_batch(batch, context) is batch
    assert defense.protect_gradients(tensors, batch, context) is tensors
    assert defense.protect_update(tensors, context) is tensors
    assert defense.state_dict() == {} == defense.measurements() == defense.explanations()


def test_shadow_gets_preset_options_and_normalisation() -> None:
    chosen = DefenseSettings(defense="shadow", preset="article", options={"strength": 0.5})
    defense = chosen.build(resources())
    assert isinstance(defense, ShadowDefense)
    assert defense.acts_on == {"batch"}
    assert defense.guard.settings == ShadowSettings(
        floor=0.0, momentum=0.9, vulnerability_temperature=1.0, strength=0.5
    )
    assert defense.guard.normalisation == Normalisation((0.3,), (0.2,))


def test_every_client_draws_its_own_codes() -> None:
    chosen = DefenseSettings(defense="shadow", options={"latent_pretraining": False})
    images, codes = torch.zeros(1, 1, 16, 16), []
    for client in ("site-1", "site-2", "site-1"):
        defense = chosen.build(resources(client))
        assert isinstance(defense, ShadowDefense)
        defense.prepare(images, ("a",))
        codes.append(defense.guard.latents["a"])
    assert torch.equal(codes[0], codes[2]) and not torch.equal(codes[0], codes[1])


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(DefenseError, match="no generator"):
        DefenseSettings(defense="shadow").build(resources(generator=False))
    with pytest.raises(DefenseError, match="did you mean 'shadow'"):
        DefenseSettings(defense="shadwo")
    with pytest.raises(DefenseError, match=r"preset of defense 'shadow'.*did you mean 'article'"):
        DefenseSettings(defense="shadow", preset="artikel")
