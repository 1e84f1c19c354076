"""A generator of decoys and a model of the hospital's own: what they change, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

import shadow_defense
from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import ShadowDefenseError
from shadow_defense.experiment.protecting.building import choose_constants, gallery_for
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.networks import Networks, check_networks, read_networks
from shadow_defense.experiment.protecting.settings import PROMISES, protect_preset, targets_of
from shadow_defense.experiment.protecting.weakest import LEAKS
from shadow_defense.generators.build import save_generator
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.generators.interface import Generator
from shadow_defense.models.build import build_model
from shadow_defense.models.naming import NAMED
from shadow_defense.models.settings import ModelSettings
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress
from shadow_defense.protection.building import build_texture, fingerprint
from shadow_defense.protection.directions import Classifier
from tests.experiment.protecting.conftest import labelled

IMAGES, LABELS = labelled(240, 20)
UNLABELLED = PublicImages(torch.from_numpy(IMAGES)[:, None], None, 2)
AS_THEY_ARE = Normalisation((0.0,), (1.0,))


class Square(nn.Module):
    """Whether the square is bright, by a margin that is linear in the image; ``sign`` -1 answers the other way."""

    def __init__(self, offset: float = -6.6, sign: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(12, 12))
        self.get_buffer("weight")[2:6, 2:6] = sign
        self.offset = sign * offset

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2"]:
        margin = (images[:, 0] * self.get_buffer("weight")).sum(dim=(1, 2)) + self.offset
        return torch.stack([-margin, margin], dim=1)


class Flat(Generator):
    """Images of one grey, by the first number of the code."""

    z_dim, image_size, channels = 3, 12, 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c s s"]:
        return (self.scale * torch.tanh(z[:, :1, None, None])).expand(-1, 1, 12, 12)


def test_a_models_directions_are_those_of_its_gradient_and_need_no_labels() -> None:
    settings = protect_preset("directions", directions=1, strength=1.0)
    networks = Networks(classifier=Classifier(Square(), AS_THEY_ARE))
    constants = choose_constants(settings, (), UNLABELLED, 64, Progress(), networks)
    whitening = constants.whitening
    expected = (Square().get_buffer("weight").flatten() @ whitening.directions) * whitening.deviations
    assert constants.spared is not None
    cosine = torch.nn.functional.cosine_similarity(constants.spared[:, 0], expected, dim=0)
    assert abs(float(cosine)) == pytest.approx(1, abs=1e-4)


def test_features_are_those_of_a_network_that_learned_the_models_answers() -> None:
    """Without a label; what is kept of other images follows the margin of a model that knows a square."""
    networks = Networks(classifier=Classifier(Square(), AS_THEY_ARE))
    constants = choose_constants(protect_preset("recommended", directions=1), (), UNLABELLED, 64, Progress(), networks)
    others = torch.from_numpy(labelled(60, 21)[0])[:, None].float() / 255
    assert constants.reader is not None
    read, margin = constants.reader.network.numbers(others)[:, 0], Square()(others)[:, 1]
    assert abs(float(torch.corrcoef(torch.stack([read, margin]))[0, 1])) > 0.8


@pytest.mark.parametrize(
    ("model", "labels", "wanted"),
    [
        (Square(offset=100.0), None, "the same class"),
        (Square(sign=-1.0), torch.from_numpy(LABELS[:, 0]), "the most frequent class"),
    ],
)
def test_a_model_that_cannot_tell_the_classes_apart_is_refused(
    model: nn.Module, labels: Tensor | None, wanted: str
) -> None:
    public = PublicImages(UNLABELLED.images, labels, 2)
    networks = Networks(classifier=Classifier(model, AS_THEY_ARE))
    with pytest.raises(ShadowDefenseError, match=wanted):
        choose_constants(protect_preset("recommended"), (), public, 64, Progress(), networks)


def test_a_generators_decoys_take_the_place_of_public_images(site: Path, quick: None) -> None:
    private, _ = labelled(60, 10)
    settings = {"preset": "decoy", "share": 0.9, "floor": 0.0, "audited": 20, "remover_steps": 50}
    protected, certificate = shadow_defense.protect(
        private[:, None], public=UNLABELLED.images.numpy(), generator=Flat(), **settings
    )
    assert certificate.record.hashes["generator"]
    # A tenth of the image, over a grey that is the same everywhere: what is left of its contrast is a tenth.
    left = protected.astype(float).std(axis=(1, 2, 3)) / private.astype(float).std(axis=(1, 2))
    assert left == pytest.approx(0.1, abs=0.02)
    assert "code inversion" in certificate.record.removers
    assert certificate.record.planted_breaks["decoy of a known code"]


def test_another_generator_draws_otherwise() -> None:
    settings, other = protect_preset("decoy"), Flat()
    with torch.no_grad():
        other.scale.mul_(0.5)
    constants = choose_constants(settings, (), UNLABELLED, 64, Progress())
    prints = {fingerprint(settings, constants, UNLABELLED.images, each) for each in (None, Flat(), other)}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("preset", "networks", "wanted"),
    [
        ("recommended", Networks(generator=Flat()), "add --preset decoy"),
        ("white", Networks(classifier=Classifier(Square(), AS_THEY_ARE)), "leave it out"),
    ],
)
def test_a_network_that_a_texture_has_no_use_for_is_refused(preset: str, networks: Networks, wanted: str) -> None:
    with pytest.raises(ShadowDefenseError, match=wanted):
        check_networks(networks, protect_preset(preset), (1, 12, 12))


def test_a_generator_of_another_size_is_refused(tmp_path: Path) -> None:
    save_generator(tmp_path / "g.safetensors", DCGANGenerator(z_dim=8, image_size=32, channels=1, width=4), "dcgan", {})
    networks = read_networks(tmp_path / "g.safetensors", None, UNLABELLED.images, 2, CPU)
    with pytest.raises(ShadowDefenseError, match="makes images of 32 x 32 pixels in 1 channel, those to protect"):
        check_networks(networks, protect_preset("decoy"), (1, 12, 12))


def test_a_model_of_a_yaml_file_reads_images_as_it_says(tmp_path: Path) -> None:
    """Public images without labels; the classes are those of the images to protect."""
    settings = ModelSettings(name="convnet", width=8, normalisation="group")
    model = build_model(settings, channels=1, classes=2, image_size=(12, 12), seed=0)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "model.yaml").write_text(
        f"model: {{name: convnet, width: 8, normalisation: group, start: {tmp_path / 'weights.pt'}}}\n"
        "data: {mean: [0.5], std: [0.1]}\n"
    )
    found = read_networks(None, str(tmp_path / "model.yaml"), UNLABELLED.images, 2, CPU).classifier
    assert found is not None
    assert (found.normalisation.mean, found.normalisation.std) == ((0.5,), (0.1,))
    images = torch.rand(3, 1, 12, 12)
    assert torch.equal(found.model(images), model.eval()(images))


def _exported(folder: Path) -> str:
    many = torch.export.Dim("many", min=1, max=512)
    program = torch.export.export(Square(), (torch.zeros(2, 1, 12, 12),), dynamic_shapes=({0: many},))
    torch.export.save(program, folder / "net.pt2")
    return str(folder / "net.pt2")


def _scripted(folder: Path) -> str:
    torch.jit.save(torch.jit.trace(Square(), torch.zeros(2, 1, 12, 12)), folder / "net.ts")
    return str(folder / "net.ts")


@pytest.mark.parametrize(
    "made", [lambda folder: f"{__name__}:Square", _exported, _scripted], ids=["factory", "pt2", "ts"]
)
def test_a_model_of_any_form_answers_as_it_does(
    made: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAMED, "")
    found = read_networks(None, made(tmp_path), UNLABELLED.images, 2, CPU).classifier
    assert found is not None
    images = torch.rand(3, 1, 12, 12)
    torch.testing.assert_close(found.model(images), Square()(images))


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("model: {name: lenet}\n")
    with pytest.raises(ShadowDefenseError, match="names no weights"):
        read_networks(None, str(tmp_path / "model.yaml"), UNLABELLED.images, 2, CPU)


def test_the_presets_strength_keeps_its_promise_whatever_the_number_of_images() -> None:
    networks = Networks(classifier=Classifier(Square(), AS_THEY_ARE))
    settings, unit = protect_preset("directions"), UNLABELLED.images.float() / 255
    strengths = []
    for gallery in (64, 240):
        constants = choose_constants(settings, PROMISES["directions"], UNLABELLED, gallery, Progress(), networks)
        texture = build_texture(settings, constants, UNLABELLED.images)
        for target in PROMISES["directions"]:
            assert LEAKS[target.metric][0]([texture], unit, gallery) <= target.value
        strengths.append(constants.strength)
    # Among fewer images one is found more often, so that they need more noise.
    assert strengths[0] > 1.1 * strengths[1]
    assert gallery_for(300) == 256


def test_a_strength_that_is_given_is_taken_and_a_target_beside_it_refused() -> None:
    assert targets_of("recommended", None, {}) == PROMISES["recommended"]
    assert targets_of("recommended", None, {"strength": 2.0}) == ()
    assert [str(each) for each in targets_of("recommended", "psnr=+3", {})] == ["psnr=3"]
    with pytest.raises(ShadowDefenseError, match="leave one of them out"):
        targets_of("white", "psnr=+3", {"strength": 2.0})
