"""The tasks that plans are made of, a file each: a shadow generator, a training, an attack, its scores, a cost."""

from shadow_defense.experiment.tasks.attacking import Attacking
from shadow_defense.experiment.tasks.costing import Costing
from shadow_defense.experiment.tasks.pretraining import Pretraining
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.experiment.tasks.training import Training

__all__ = ["Attacking", "Costing", "Pretraining", "Scoring", "Training"]
