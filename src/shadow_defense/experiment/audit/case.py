"""What is audited: what is told of one client's update, and the case that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.build import ATTACKS, AttackSettings
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.threat_model import Knowledge, ThreatModel
from shadow_defense.config import RunConfig
from shadow_defense.errors import ThreatModelError
from shadow_defense.experiment.audit.reading import TensorSource
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.models.losses import LossName

FLAGS: dict[Knowledge, str] = {
    "labels": "--labels 0,1 (one for each image)",
    "local training": "--learning-rate LR --steps K --batch-size B",
    "template": "--template FILE or FOLDER",
    "public images": "--public FOLDER (with a sub-folder a class), .npz or .csv",
    "generator": "--generator FILE",
}
"""How each piece of knowledge is given; what is not here is part of the update, or of the attack's model."""


@dataclass(frozen=True)
class Gallery:
    """Images among which a reconstruction should point to the client's own: theirs, and those of others, in [0, 1]."""

    own: Float[Tensor, "n c h w"]
    others: Float[Tensor, "m c h w"]


@dataclass(frozen=True)
class Case:
    """One update under audit.

    Attributes:
        name: the update in words, for headings.
        subject: where it comes from, for the page and the JSON.
        attacks: what is tried on it.
        observe: what each attack's threat model leaves of what is known.
        seed: of an attack by its name.
        local_training: the client's, where the auditor knows it, whether or not an attacker does.
        optimiser, loss: the client's; None: not known, so that nothing may rest on it.
        truths: the images the update comes from, in [0, 1], for scoring alone; no attack sees them.
        mean_image: of public images, in [0, 1].
        notes: what was assumed on the way here, in sentences.
    """

    name: str
    subject: Mapping[str, object]
    config: RunConfig
    attacks: Mapping[str, AttackSettings]
    observe: Callable[[str], Observation]
    seed: Callable[[str], int]
    local_training: LocalTraining | None = None
    optimiser: OptimiserName | None = None
    loss: LossName | None = None
    truths: Float[Tensor, "n c h w"] | None = None
    mean_image: Float[Tensor, "c h w"] | None = None
    gallery: Gallery | None = None
    notes: tuple[str, ...] = field(default=())


def cut_to_given(
    threat: ThreatModel, given: frozenset[Knowledge], needs: frozenset[Knowledge], attack: str
) -> ThreatModel:
    """The threat model with only that granted which the auditor gave: nobody can grant what is not there.

    Raises:
        ThreatModelError: naming the flags that are missing for what ``attack`` reads.
    """
    threat.require(needs, attack)
    missing = sorted(needs - given)
    if missing:
        flags = "; ".join(FLAGS.get(item, item) for item in missing)
        raise ThreatModelError(f"attack '{attack}' reads {', '.join(missing)}, which was not given: give {flags}")
    return ThreatModel(threat.name, threat.position, threat.granted & given)


def chosen_attacks(
    config: RunConfig, names: tuple[str, ...], threat_model: str | None, iterations: int | None
) -> dict[str, AttackSettings]:
    """The attacks to try: an entry of the configuration's, or the registry's of that name with its defaults.

    Args:
        threat_model: in place of each attack's own.
        iterations: in place of each attack's own, for attacks that iterate.

    Raises:
        ConfigError: for a name that neither knows, or a number of iterations out of range.
        ThreatModelError: for an unknown threat model, or one that does not grant what an attack needs.
    """
    chosen = {}
    for name in names:
        settings = config.attacks.get(name)
        values = {"attack": name} if settings is None else settings.model_dump()
        if threat_model is not None:
            values["threat_model"] = threat_model
        chosen[name] = AttackSettings.model_validate(values)
        if iterations is not None and "iterations" in ATTACKS[chosen[name].attack].attack.model_fields:
            options = {**chosen[name].options, "iterations": iterations}
            chosen[name] = AttackSettings.model_validate({**values, "options": options})
    return chosen


@dataclass(frozen=True)
class Given:
    """What is told of an update, by the command line or a program; None: not given.

    Attributes:
        model: what was trained: a preset or YAML file with ``model`` and ``data``, or a model of one's own.
        before: the global model before the round.
        after: the client's model after it, in place of ``update``.
        training: what else is known of the local training, by the settings' names.
        public: images with labels; their mean is the mean image where no ``template`` is given.
    """

    model: str
    overrides: tuple[str, ...] = ()
    update: TensorSource | None = None
    before: TensorSource | None = None
    after: TensorSource | None = None
    attacks: tuple[str, ...] = ("inverting-gradients",)
    threat_model: str | None = None
    iterations: int | None = None
    labels: tuple[int, ...] | None = None
    samples: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    template: Path | None = None
    public: str | None = None
    generator: Path | None = None
    truth: str | None = None
    gallery: str | None = None
