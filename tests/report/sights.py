"""How close an attacker came to one image, for records that are made here."""

from __future__ import annotations

from shadow_defense.report.records.run import Sight


def sight(
    arm: str,
    attack: str,
    ssim: float,
    *,
    client: str = "hospital-1",
    sample_id: str = "train/0",
    round: int = 2,
    mean_image_ssim: float | None = 0.25,
) -> Sight:
    return Sight(
        arm=arm,
        attack=attack,
        client=client,
        sample_id=sample_id,
        reconstruction=0,
        round=round,
        ssim=ssim,
        mean_image_ssim=mean_image_ssim,
    )
