"""The client's own audit: its update is attacked before it leaves, and stays where an image can be rebuilt from it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings, reconstruct
from shadow_defense.attacks.observation import Observation, observe
from shadow_defense.attacks.threat_model import Knowledge, threat_model
from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation, measure_contrast
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError, DefenseError, ShadowDefenseError
from shadow_defense.experiment.audit.scoring import risk_rows
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.generators.interface import Generator
from shadow_defense.models.functional import LossFunction
from shadow_defense.plain_yaml import as_mapping, read_yaml
from shadow_defense.progress import Task
from shadow_defense.report.records.audit import RiskRow
from shadow_defense.seeds import seed_for
from shadow_defense.validation import validated

SELF_AUDIT = "self-audit"
"""The key of the node's own configuration with the limit or the file of settings: the site's choice, not a server's."""

NOT_AT_HOME: frozenset[Knowledge] = frozenset({"data distribution", "own model"})
"""What only others have: a site holds no other clients' images, and the server's model is what it got."""

log = logging.getLogger("shadow_defense.self_audit")


class SelfAuditSettings(BaseModel):
    """What an update must withstand before it leaves a client, and how often it is tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attack: AttackSettings = Field(
        AttackSettings(options={"iterations": 100}),
        description="the attack, its options and its threat model; where it is given, options not named are the "
        "attack's own, 1000 iterations for inverting-gradients",
    )
    metric: Literal["ssim", "psnr", "rdlv"] = Field(
        "ssim",
        description="of a reconstruction to the client's own image: ssim, psnr in dB, or rdlv (ssim relative to that "
        "of the mean of public images)",
    )
    threshold: float = Field(
        0.4, allow_inf_nan=False, description="an update from which any image is rebuilt with more than this stays"
    )
    every: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="rounds from one that is audited to the next, beginning with the first; more than 1 trusts the "
        "server, who chooses the rounds that it asks for",
    )
    most_images: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="updates of clients with more training images leave without an audit, said in the log; null: none",
    )

    @model_validator(mode="after")
    def _consistent(self) -> SelfAuditSettings:
        attack = self.attack
        if attack.rounds is not None or attack.clients is not None or attack.longest_client is not None:
            raise ConfigError(
                "self-audit: attack.rounds, attack.clients and attack.longest_client say what the stage `attack` looks "
                "at: leave them out; use every and most_images"
            )
        if attack.adaptive is not None and attack.adaptive.rounds > 1:
            raise ConfigError("self-audit: a client keeps no earlier updates: set attack.adaptive.rounds=1")
        missing = sorted(threat_model(attack.threat_model).granted & NOT_AT_HOME)
        if missing:
            raise ConfigError(
                f"self-audit: a client cannot try the {attack.threat_model}, who has {', '.join(missing)}: take "
                "'informed server' or 'adaptive server'"
            )
        return self


def is_asked_for(node_config: Mapping[str, object]) -> bool:
    """Whether a site's node wants its updates audited.

    Raises :class:`ConfigError` for a key that is nearly the right one: that nothing is audited would not be noticed.

    >>> is_asked_for({"partition-id": 0, "self-audit": "ssim=0.4"})
    True
    """
    nearest = difflib.get_close_matches(SELF_AUDIT, node_config, n=1, cutoff=0.75)
    if nearest and nearest[0] != SELF_AUDIT:
        raise ConfigError(f"unknown key '{nearest[0]}' in --node-config: did you mean '{SELF_AUDIT}'?")
    return bool(nearest)


def settings_of_site(given: object) -> SelfAuditSettings:
    """Settings from what a site gave its node: a limit such as ``ssim=0.4``, or the path of a YAML file with all.

    Raises :class:`ConfigError` for anything else.

    >>> settings_of_site("psnr=18").threshold
    18.0
    """
    if not isinstance(given, str) or not given:
        raise ConfigError(f"{SELF_AUDIT}={given!r}: expected metric=value, such as ssim=0.4, or a YAML file")
    path = Path(given).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return validated(SelfAuditSettings, _read_yaml(path), ConfigError, SELF_AUDIT)
    metric, separator, value = (part.strip() for part in given.partition("="))
    if not separator:
        raise ConfigError(f"{SELF_AUDIT}={given!r}: expected metric=value, such as ssim=0.4, or a YAML file")
    return validated(SelfAuditSettings, {"metric": metric, "threshold": value}, ConfigError, SELF_AUDIT)


def _read_yaml(path: Path) -> Mapping[str, object]:
    try:
        return as_mapping(read_yaml(path), str(path))
    except ConfigError as error:
        raise ConfigError(f"{SELF_AUDIT}: {error}; write such as `threshold: 0.4`") from error


@dataclass(frozen=True)
class SelfAudit:
    """Attacks an update as the server could, on the client's machine, with the client's images to compare with.

    A search of a few iterations that fails is no proof: what passes withstood this attack, not every attack. An update
    that is rounded to float32 on its way is attacked before, which favours the attack. That a round was withheld is
    seen by the server and depends on the images: an epsilon that a defense promises does not count that bit.

    Attributes:
        model: builds the architecture, in any state.
        client: ``train`` and ``batch_size`` are looked at.
        training: what the client trains with, as the server knows it.
        classes: number of labels.
        template: the mean of public images, in [0, 1].
        seed: of the attack's draws.
        defense: what a threat model that grants it is told.
        public: public images with labels, for attacks that learn from them; None: there are none.
        generator: loads a generator, for attacks that start from one; None: there is none.
    """

    settings: SelfAuditSettings
    model: Callable[[], nn.Module]
    client: ClientData
    training: TrainingSettings
    normalisation: Normalisation
    classes: int
    template: Float[Tensor, "c h w"]
    seed: int
    loss_fn: LossFunction
    defense: DefenseSettings | None = None
    public: ImageSet | None = None
    generator: Callable[[], Generator] | None = None

    def __call__(self, update: ModelUpdate, global_state: Mapping[str, Tensor]) -> dict[str, float]:
        """The highest value of the metric over all images, for the client's own notes; nothing where none is due.

        Args:
            update: as it would leave: after every defense.
            global_state: complete, as the server sent it.

        Raises:
            DefenseError: where an image was rebuilt beyond the threshold, and where that could not be found out, since
                the attack failed or the metric has no value.
        """
        if not self._due(update):
            return {}
        settings = self.settings
        try:
            rows = self._rows(update, global_state)
        except Exception as error:
            # Whatever it is: what could not be tried does not leave.
            if not isinstance(error, ShadowDefenseError):
                log.error("the self-audit of client '%s' failed", update.client, exc_info=error)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DefenseError(
                f"the self-audit by {settings.attack.attack} failed ({reason}): nothing leaves unaudited; correct it "
                f"or change {SELF_AUDIT}"
            ) from error
        values = [getattr(row, settings.metric) for row in rows]
        if not values or any(value is None for value in values):
            raise DefenseError(
                f"the self-audit by {settings.attack.attack} has no {settings.metric} of its reconstructions: nothing "
                "leaves unaudited; take metric ssim"
            )
        found = max(values)
        if found > settings.threshold:
            raise DefenseError(self._leak(rows[values.index(found)], found))
        log.info("round %d: self-audit passed: %s %.3f", update.round + 1, settings.metric, found)
        return {f"self_audit_{settings.metric}": found}

    def _due(self, update: ModelUpdate) -> bool:
        count, most = len(self.client.train), self.settings.most_images
        if update.round % self.settings.every:
            return False
        if most is not None and count > most:
            log.warning(
                "round %d: client '%s' has %d images and self-audits cover at most %d: the update leaves unaudited",
                *(update.round + 1, update.client, count, most),
            )
            return False
        return True

    def _rows(self, update: ModelUpdate, global_state: Mapping[str, Tensor]) -> list[RiskRow]:
        seed = seed_for(self.seed, "self-audit", update.round, self.client.name)
        seen = self._observation(update, global_state)
        found = reconstruct(self.settings.attack, seen, seed, Task())
        rows = risk_rows(found.images, self.client.train.unit_images(), self.template, None)
        return [row for row in rows if row.image is not None]

    @cached_property
    def _usual_contrast(self) -> float | None:
        return measure_contrast(self.public, self.normalisation) if self.public else None

    def _observation(self, update: ModelUpdate, global_state: Mapping[str, Tensor]) -> Observation:
        training, images = self.training, self.client.train
        batch_size = self.client.batch_size
        # A training that is not ours may not say them.
        steps = update.steps or training.steps(len(images), batch_size)
        return observe(
            threat_model(self.settings.attack.threat_model),
            model=self.model(),
            loss_fn=self.loss_fn,
            global_state=global_state,
            update=update,
            image_shape=(images.channels, *images.image_size),
            classes=self.classes,
            normalisation=self.normalisation,
            labels=images.labels,
            local_training=LocalTraining.of(training, update.round, batch_size, steps),
            template=self.template,
            usual_contrast=self._usual_contrast,
            generator=self.generator,
            public=self.public,
            defense=self.defense,
            rounds=training.rounds,
        )

    def _leak(self, row: RiskRow, found: float) -> str:
        settings = self.settings
        return (
            f"self-audit: {settings.attack.attack} rebuilt image '{self.client.train.sample_ids[row.image or 0]}' with "
            f"{settings.metric} {found:.3f}, above {settings.threshold:g} (the mean of public images has ssim "
            f"{row.mean_image_ssim:.3f}): use a stronger defense, or larger batches and more local steps"
        )
