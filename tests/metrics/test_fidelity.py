"""Rows of scores: matching, regions, what is missing, and what is refused."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DataError
from shadow_defense.metrics.fidelity import METRICS, score_reconstructions
from shadow_defense.metrics.foreground import REGIONS, lpips_by_region, psnr_by_region, ssim_by_region
from shadow_defense.metrics.lpips import Lpips, load_lpips
from shadow_defense.seeds import named_generator


@pytest.fixture(scope="module")
def lpips_model() -> Lpips:
    return load_lpips("st-lpips")


def images(count: int, name: str = "truths") -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=named_generator(0, name))


def halves(count: int) -> torch.Tensor:
    masks = torch.zeros(count, 16, 16, dtype=torch.bool)
    masks[:, :, :8] = True
    return masks


def test_regions_by_hand() -> None:
    # Off by 0.1 in the left half and by 0.01 in the right: 20 and 40 dB, the whole (0.01 + 0.0001) / 2 = 22.967 dB.
    truth = torch.zeros(1, 1, 16, 16)
    reconstruction = torch.where(halves(1)[:, None], 0.1, 0.01)
    result = psnr_by_region(reconstruction, truth, halves(1))
    assert list(result) == list(REGIONS)
    values = {name: value.item() for name, value in result.items()}
    assert values == pytest.approx({"whole": 22.967, "inside": 20.0, "outside": 40.0}, rel=1e-4)


def test_every_metric_sees_where_the_image_was_rebuilt(lpips_model: Lpips) -> None:
    truth = torch.rand(1, 1, 64, 64, generator=named_generator(0, "truth"))
    noise = torch.rand(1, 1, 64, 64, generator=named_generator(0, "noise"))
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, :, :32] = True
    rebuilt_inside = torch.where(mask[:, None], truth, noise)
    for scores, closer in (
        (psnr_by_region(rebuilt_inside, truth, mask), 1),
        (ssim_by_region(rebuilt_inside, truth, mask), 1),
        (lpips_by_region(lpips_model, rebuilt_inside, truth, mask), -1),
    ):
        inside, whole, outside = (closer * scores[name] for name in ("inside", "whole", "outside"))
        assert inside > whole > outside


def test_rows_follow_the_reconstructions_and_name_their_truths(lpips_model: Lpips) -> None:
    truths = images(3)
    reconstructions = (truths + 0.01)[torch.tensor([2, 0, 1])]
    masks = halves(3)
    rows = score_reconstructions(reconstructions, truths, masks, lpips_model)
    assert [row["reconstruction"] for row in rows] == [0, 1, 2]
    assert [row["truth"] for row in rows] == [2, 0, 1]
    for row in rows:
        truth = truths[row["truth"]].numpy()
        reconstruction = reconstructions[row["reconstruction"]].clamp(0, 1).numpy()
        expected = peak_signal_noise_ratio(truth, reconstruction, data_range=1)
        assert row["psnr_whole"] == pytest.approx(expected, rel=1e-5)
        inside = peak_signal_noise_ratio(truth[:, :, :8], reconstruction[:, :, :8], data_range=1)
        assert row["psnr_inside"] == pytest.approx(inside, rel=1e-5)
        for metric in METRICS:
            assert row[f"best_match_{metric}"] == pytest.approx(row[f"{metric}_whole"], rel=1e-3)
            assert all(isinstance(row[f"{metric}_{region}"], float) for region in REGIONS)


def test_masks_belong_to_the_truths() -> None:
    truths = images(2)
    masks = halves(2)
    masks[1] = ~masks[1]
    # Reconstruction 0 shows truth 1: exact where truth 1's foreground is, wrong elsewhere.
    reconstructions = truths[[1, 0]].clone()
    reconstructions[0, :, :, :8] = 1 - reconstructions[0, :, :, :8]
    rows = score_reconstructions(reconstructions, truths, masks)
    assert rows[0]["truth"] == 1
    assert rows[0]["psnr_inside"] == pytest.approx(100)
    assert rows[0]["psnr_outside"] < 10


def test_what_does_not_exist_is_none() -> None:
    truths = images(1)
    rows = score_reconstructions(torch.cat([images(1, "noise"), truths]), truths)
    left_over, exact = rows
    assert left_over["truth"] is None and left_over["psnr_whole"] is None
    assert left_over["best_match_psnr"] < 15
    assert exact["truth"] == 0 and exact["psnr_whole"] == pytest.approx(100)
    assert exact["psnr_inside"] is None and exact["lpips_whole"] is None and exact["best_match_lpips"] is None
    assert set(left_over) == set(exact)
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    row = score_reconstructions(truths, truths, nothing)[0]
    assert row["ssim_inside"] is None and row["ssim_outside"] is not None
    assert score_reconstructions(truths[:0], truths) == []


def test_best_match_looks_at_all_of_the_clients_images(lpips_model: Lpips) -> None:
    client = images(4)
    reconstruction = client[3:]
    row = score_reconstructions(reconstruction, client[:2], None, lpips_model, client_images=client)[0]
    assert row["truth"] in (0, 1) and row["psnr_whole"] < 15
    assert row["best_match_psnr"] == pytest.approx(100)
    assert row["best_match_ssim"] == pytest.approx(1)
    assert row["best_match_lpips"] == pytest.approx(0, abs=1e-6)


def test_reconstructions_are_clamped() -> None:
    truth = torch.ones(1, 1, 16, 16)
    assert score_reconstructions(truth * 7, truth)[0]["psnr_whole"] == pytest.approx(100)


def test_images_that_cannot_be_scored_are_refused() -> None:
    truths = images(2)
    broken = truths.clone()
    broken[1, 0, 3, 3] = float("nan")
    with pytest.raises(DataError, match="reconstructions: image 1 holds NaN"):
        score_reconstructions(broken, truths)
    with pytest.raises(DataError, match="truths: image 1 holds NaN"):
        score_reconstructions(truths, broken)
    normalised = Normalisation((0.5,), (0.25,)).apply(truths)
    with pytest.raises(DataError, match=r"truths lie in \[-1\.99, 1\.99\], expected \[0, 1\]"):
        score_reconstructions(truths, normalised)
    with pytest.raises(DataError, match=r"client_images lie in"):
        score_reconstructions(truths, truths, client_images=normalised)
    with pytest.raises(DataError, match="no true images"):
        score_reconstructions(truths, truths[:0])
