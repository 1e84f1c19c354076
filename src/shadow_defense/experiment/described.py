"""What records say of their origin, and of data, defenses, attacks and trainings, for every plan alike."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.sources import SOURCES
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.provenance import versions
from shadow_defense.experiment.scene import Scene
from shadow_defense.federated.training_folder import read_journal, train_again
from shadow_defense.report.records.reading import read_record
from shadow_defense.report.records.run import Round
from shadow_defense.report.records.scores import Attack, Client, Data, Defense, Header, Origin


def made(title: str, command: str, threads: int | None = None, tasks: tuple[Origin, ...] = ()) -> Header:
    """Of a record that is made now; ``tasks``: the results that its numbers come from."""
    of = versions() if threads is None else {**versions(), "threads": str(threads)}
    return Header(title=title, created=datetime.date.today().isoformat(), command=command, versions=of, tasks=tasks)


def data_of(scene: Scene, sha256: str | Mapping[str, str] | None = None) -> Data:
    """The data that a scene plays on; ``sha256``: of each seed, where there are several."""
    data = scene.dataset
    return Data(
        name=data.name,
        classes=data.class_names,
        image_size=data.image_size,
        channels=data.channels,
        clients={
            client.name: Client(len(client.train), client.batch_size, len(client.validation), len(client.test))
            for client in data.clients
        },
        public=len(data.public),
        test=len(data.test),
        sha256=scene.images.sha256 if sha256 is None else sha256,
        in_words=SOURCES.find(scene.config.data.source).in_words,
    )


def defense_of(settings: DefenseSettings) -> Defense:
    return Defense(
        defense=settings.defense,
        preset=settings.preset,
        options=settings.options,
        share_bn=settings.share_bn,
        summary=settings.kind().summary,
        acts_on=tuple(settings.acts_on()),
    )


def attack_of(scene: Scene, name: str) -> Attack:
    """One of the attacks that a scene is attacked by."""
    settings = scene.config.attacks[name]
    return Attack(
        attack=settings.attack,
        settings=settings.resolved(),
        threat_model=threat_model(settings.threat_model).describe(),
        rounds=tuple(round + 1 for round in scene.config.attacked_rounds(name)),
        clients=tuple(dict.fromkeys(client.name for _, client in scene.attacked_updates(name))),
        knows_defense=settings.adaptive is not None,
    )


def rounds_of(training: Path) -> tuple[Round, ...]:
    """What was measured in each round of a training. Raises :class:`RunError` where its journal is damaged."""
    path = training / "history.json"
    return tuple(read_record(Round, entry, str(path), train_again(training)) for entry in read_journal(training)[1])


def arm_titles(arms: Mapping[str, DefenseSettings]) -> dict[str, str]:
    """What pages call the arms: in words, each another.

    >>> arm_titles({"fedavg": DefenseSettings(), "published-strength-0.19": DefenseSettings(defense="clip")})
    {'fedavg': 'No defense', 'published-strength-0.19': 'Published strength 0.19'}
    """
    unprotected = [name for name, settings in arms.items() if settings.kind().protects_nothing]
    titles = {name: _in_words(name) for name in arms}
    if len(unprotected) == 1:
        titles[unprotected[0]] = "No defense"
    return titles if len(set(titles.values())) == len(titles) else {name: name for name in arms}


def _in_words(name: str) -> str:
    words = name.replace("-", " ").replace("_", " ").strip() or name
    return words[:1].upper() + words[1:]
