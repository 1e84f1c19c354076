"""An attack: it guesses the mean of public images, whatever was sent. Others should do better."""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.progress import Task


class PublicMean(BaseModel):
    """The attack's settings are its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"template"})

    contrast: float = Field(1.0, ge=0, le=1, description="1: the mean image; 0: its mean grey alone")

    def steps(self) -> int:
        return 1

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """The same image for all of the client's."""
        started = time.perf_counter()
        observation.threat_model.require(self.needs, PUBLIC_MEAN.name)
        template, count = observation.template, observation.update.samples
        image = self.contrast * template + (1 - self.contrast) * template.mean()
        if task:
            task.advance(1)
        return Reconstruction(
            image.expand(count, *image.shape).clone(),
            torch.zeros(count, dtype=torch.int64),
            matching_loss=0.0,
            iterations=1,
            seconds=time.perf_counter() - started,
            notes=("nothing of the update was read",),
        )


PUBLIC_MEAN = AttackKind("public-mean", "the mean of public images, whatever was sent", PublicMean)
