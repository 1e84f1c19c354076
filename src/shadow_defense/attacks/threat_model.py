"""What an attacker is granted, said out loud: every attack is checked against it before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from shadow_defense.errors import ThreatModelError, unknown_name

Knowledge = Literal[
    "labels",
    "local training",
    "buffers",
    "template",
    "public images",
    "generator",
    "data distribution",
    "defense",
    "earlier rounds",
    "own model",
]

EXPLANATIONS: dict[Knowledge, str] = {
    "labels": "the true labels of the client's images",
    "local training": "the client's optimiser, learning rate, batch size, number of local steps and batch-norm mode",
    "buffers": "the batch-norm buffers that the client uploads with its parameters",
    "template": "the mean of public images of the same kind, and how strong their contrast is",
    "public images": "public images of the same kind, with labels",
    "generator": "a generator trained on public images of the same kind, such as the run's own shadow generator",
    "data distribution": "images from where the client's come from, such as those of other clients, with labels",
    "defense": "which defense the client applies, with its settings",
    "earlier rounds": "the client's updates of the rounds before",
    "own model": "that clients train a model of the attacker's own making",
}


@dataclass(frozen=True)
class ThreatModel:
    """An attacker: where it sits, and which knowledge it has beyond what every attacker sees.

    Every attacker sees the architecture, the global model before the round, the client's update of the parameters,
    its number of samples, and how images are normalised.
    """

    name: str
    position: str
    granted: frozenset[Knowledge]

    def describe(self) -> str:
        """The threat model in words, for reports and for the terminal.

        >>> print(THREAT_MODELS["eavesdropper"].describe())
        eavesdropper: reads the traffic between one client and the server.
        It sees the architecture, the global model before the round, the client's update of the parameters, its \
number of samples, and how images are normalised.
        Granted besides: nothing.
        Not granted: the true labels of the client's images; the client's optimiser, learning rate, batch size, \
number of local steps and batch-norm mode; the batch-norm buffers that the client uploads with its parameters; the \
mean of public images of the same kind, and how strong their contrast is; public images of the same kind, with \
labels; a generator trained on public images of the same kind, such as the run's own shadow generator; images from \
where the client's come from, such as those of other clients, with labels; which defense the client applies, with its \
settings; the client's updates of the rounds before; that clients train a model of the attacker's own making.
        """
        granted = [EXPLANATIONS[item] for item in get_args(Knowledge) if item in self.granted]
        withheld = [EXPLANATIONS[item] for item in get_args(Knowledge) if item not in self.granted]
        return (
            f"{self.name}: {self.position}.\n"
            "It sees the architecture, the global model before the round, the client's update of the parameters, its "
            "number of samples, and how images are normalised.\n"
            f"Granted besides: {'; '.join(granted) or 'nothing'}.\n"
            f"Not granted: {'; '.join(withheld) or 'nothing is withheld'}."
        )

    def require(self, needs: frozenset[Knowledge], attack: str) -> None:
        """Raise :class:`ThreatModelError` naming what ``attack`` would read without being granted it."""
        missing = sorted(needs - self.granted)
        if missing:
            raise ThreatModelError(
                f"attack '{attack}' reads {', '.join(missing)}, which threat model '{self.name}' does not grant: "
                f"choose another threat model ({', '.join(THREAT_MODELS)}) or other options of the attack"
            )


_SERVER: frozenset[Knowledge] = frozenset({"local training", "buffers", "template"})
_AUXILIARY: frozenset[Knowledge] = frozenset({"public images", "generator"})

THREAT_MODELS: dict[str, ThreatModel] = {
    model.name: model
    for model in (
        ThreatModel("eavesdropper", "reads the traffic between one client and the server", frozenset()),
        ThreatModel(
            "informed eavesdropper",
            "reads the traffic between one client and the server, and knows how clients train and what they send",
            frozenset({"local training", "buffers"}),
        ),
        ThreatModel("honest-but-curious server", "runs the protocol as agreed and looks at what it receives", _SERVER),
        ThreatModel(
            "server with auxiliary data",
            "runs the protocol as agreed, looks at what it receives, and has learned from public images what to expect",
            _SERVER | _AUXILIARY,
        ),
        ThreatModel(
            "server with the client's data distribution",
            "runs the protocol as agreed and holds images from where the client's come from, as a server does that "
            "other clients collude with",
            _SERVER | _AUXILIARY | {"data distribution"},
        ),
        ThreatModel(
            "informed server",
            "runs the protocol as agreed and also knows the labels: the strongest honest attacker that does not know "
            "the defense, the default, since a defense should be measured against the worst",
            _SERVER | _AUXILIARY | {"labels"},
        ),
        ThreatModel(
            "adaptive server",
            "runs the protocol as agreed, knows the labels and the defense, and keeps what it received: the strongest "
            "honest attacker, against which a defense should hold if it does not rest on being secret",
            _SERVER | _AUXILIARY | {"labels", "defense", "earlier rounds"},
        ),
        ThreatModel(
            "malicious server",
            "breaks the protocol: it sends clients a model made to give their images away",
            _SERVER | {"own model"},
        ),
    )
}


def threat_model(name: str) -> ThreatModel:
    """A named threat model; an unknown name raises :class:`ThreatModelError` listing the valid ones."""
    if name not in THREAT_MODELS:
        raise ThreatModelError(unknown_name("threat model", name, THREAT_MODELS))
    return THREAT_MODELS[name]
