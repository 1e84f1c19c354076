"""What a study is: a comparison's grid, and the images that are attacked in it."""

from __future__ import annotations

from pydantic import Field, model_validator

from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.comparison.grid import Grid
from shadow_defense.experiment.victims import Victims


class Study(Grid):
    """A grid whose attacks are on victims, and whose images are audited; the first defense is no defense.

    A defense whose images are drawn once is not attacked: the audit of its images bounds every attack.
    """

    victims: Victims = Victims()
    audited: int = Field(300, ge=2, le=100_000, description="protected images that the worst case is measured on")
    remover_steps: int = Field(700, ge=1, le=100_000, description="steps in which the learned remover is trained")
    remarks: tuple[str, ...] = Field((), description="what its page says besides: what was cut, and what it would take")
    attack_all: bool = Field(False, description="attack also what the worst case bounds")

    @model_validator(mode="after")
    def _on_single_updates(self) -> Study:
        if self.engine != "in-process" or self.training.clients_per_round is not None:
            raise ConfigError("a study trains all clients in one process: leave out engine and clients_per_round")
        return self
