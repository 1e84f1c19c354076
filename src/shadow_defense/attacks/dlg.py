"""Deep Leakage from Gradients (Zhu et al. 2019; spec/attacks.md, section 1): images and labels sought together."""

from __future__ import annotations

from shadow_defense.attacks.deep_leakage import DeepLeakage
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.target import client_simulation
from shadow_defense.progress import Task


class DLG(DeepLeakage):
    """The attack with its settings."""

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild images and labels from the update, from noise.

        Minimises ``sum ||U(x, softmax(l)) - U*||^2`` over images x and label logits l. The label returned for an
        image is the largest of its own optimised logits. True labels are not read, even where they are granted.

        Raises:
            ThreatModelError: where the local training is not granted.
        """
        observation.threat_model.require(self.needs, "dlg")
        simulation = client_simulation(observation, self.longest_unroll)
        return self.search(observation, simulation, None, name="dlg", seed=seed, task=task)
