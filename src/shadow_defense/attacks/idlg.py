"""Improved Deep Leakage from Gradients (Zhao et al. 2020; spec/attacks.md, section 2): labels first, then images."""

from __future__ import annotations

from dataclasses import replace

from shadow_defense.attacks.deep_leakage import DeepLeakage
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.target import client_simulation, inferred_labels, labels_note
from shadow_defense.progress import Task


class IDLG(DeepLeakage):
    """The attack with its settings."""

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild images from the update, from noise, with the labels that its last layer gives away.

        Minimises ``sum ||U(x, y) - U*||^2`` over images x alone. The published rule (row sums of the last weight) is
        taken where that layer has no bias; elsewhere the bias, which needs no sign of the features. True labels are
        not read, even where they are granted.

        Raises:
            ThreatModelError: where the local training is not granted.
            ModelError: for a model without a linear layer.
        """
        observation.threat_model.require(self.needs, "idlg")
        simulation = client_simulation(observation, self.longest_unroll)
        labels = inferred_labels(observation, simulation)
        simulation = replace(simulation, notes=(*simulation.notes, labels_note(observation)))
        return self.search(observation, simulation, labels, name="idlg", seed=seed, task=task)
