"""The record of a run, and the pictures that go with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from shadow_defense.metrics.recognition import Recognition, recognition, share_of_the_way
from shadow_defense.report.records.reading import Settings
from shadow_defense.report.records.scores import Attack, Data, Defense, Header, Numbers, Row, ScoreTable

BEST_REMOVER = "best remover"
"""The attacker who is handed the protected images themselves, where images are protected once (docs/protect.md)."""


@dataclass(frozen=True)
class Round:
    """One round of a training, counted from 0.

    Attributes:
        clients: each one's ``loss`` and what its defense measured, such as ``noise_rms``.
        test, validation: utility on those images; empty where the model was not tested.
    """

    round: int
    loss: float
    clients: Mapping[str, Numbers]
    test: Numbers = field(default_factory=dict)
    validation: Numbers = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Arm(Defense):
    """One training with one defense; ``title`` is what a page calls it, and a command takes it too."""

    title: str
    history: tuple[Round, ...]

    @property
    def test(self) -> Numbers:
        """The final model on the test images."""
        return self.history[-1].test


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How close one attacker came to one image in one arm, in the round (from 1) in which it came closest.

    Attributes:
        attack: by the run's name for it, or :data:`BEST_REMOVER`.
        reconstruction: which of the images that it rebuilt of that update, from 0.
        ssim: to the true image; ``mean_image_ssim``: of the mean of public images.
    """

    arm: str
    attack: str
    client: str
    sample_id: str
    reconstruction: int
    round: int
    ssim: float
    mean_image_ssim: float | None

    @property
    def share(self) -> float:
        """Of the way from the mean image to the true one."""
        return share_of_the_way(self.ssim, self.mean_image_ssim)

    @property
    def recognition(self) -> Recognition:
        """What the rule says (:mod:`shadow_defense.metrics.recognition`)."""
        return recognition(self.ssim, self.mean_image_ssim)


@dataclass(frozen=True, kw_only=True)
class RunRecord(Header):
    """What ``results.json`` holds.

    Attributes:
        utilities: for each arm what its final model is worth.
        tables: not of :attr:`arms` alone, the last row of each is the mean image.
        sights: one for each arm, attacker and image.
    """

    seed: int
    config: Settings
    data: Data
    arms: Mapping[str, Arm]
    attacks: Mapping[str, Attack]
    utilities: tuple[Row, ...]
    tables: tuple[ScoreTable, ...]
    sights: tuple[Sight, ...] = ()
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pooled(self) -> list[ScoreTable]:
        """The tables over all attacked rounds, one an attack."""
        return [table for table in self.tables if table.round is None]

    def closest(self, arm: str, attacks: Collection[str] | None = None) -> dict[str, Sight]:
        """Of each image, by its id, the sight that is closest to it; of some attackers, or (None) of all."""
        found: dict[str, Sight] = {}
        for sight in self.sights:
            if sight.arm == arm and (attacks is None or sight.attack in attacks):
                held = found.get(sight.sample_id)
                if held is None or sight.share > held.share:
                    found[sight.sample_id] = sight
        return found

    @property
    def attackers(self) -> dict[str, list[str]]:
        """Those who looked, by what they know; only kinds that there are."""
        kinds = {
            "attacks that do not know the defense": [n for n, each in self.attacks.items() if not each.knows_defense],
            "attackers who know the defense": [n for n, each in self.attacks.items() if each.knows_defense],
            BEST_REMOVER: [BEST_REMOVER],
        }
        looked = {sight.attack for sight in self.sights}
        return {kind: names for kind, names in kinds.items() if looked.intersection(names)}

    @property
    def answer(self) -> str | None:
        """The arm that hides most: the fewest recognisable images, and then rather one whose worst case was tried.

        None where nothing but the first arm was attacked.
        """
        attacked = {name: list(sights.values()) for name in list(self.arms)[1:] if (sights := self.closest(name))}

        def left(name: str) -> tuple[int, bool, int, float]:
            said = [sight.recognition for sight in attacked[name]]
            worst_case = bool(self.closest(name, [BEST_REMOVER]))
            share = max(sight.share for sight in attacked[name])
            return said.count("recognisable"), not worst_case, said.count("partly"), share

        return min(attacked, key=left, default=None)

    @property
    def shown(self) -> str | None:
        """The image to show: of those that leak most without protection, the one of which :attr:`answer` leaves most.

        None where nothing was attacked.
        """
        undefended = self.closest(next(iter(self.arms)))
        left = undefended if self.answer is None else self.closest(self.answer)
        leaking = [
            sample for sample in left if sample in undefended and undefended[sample].recognition == "recognisable"
        ]
        return max(leaking or left, key=lambda sample: left[sample].share, default=None)


@dataclass(frozen=True)
class Explanation:
    """What a defense did to an image in one round.

    Attributes:
        protected: the image that was trained on, in [0, 1], clamped; None where the batch was not changed.
        noise: what was added, in units of [0, 1] images, signed.
        vulnerability: N3, scaled to [0, 1]: bright where the shadow generator can rebuild the image.
        cam: Grad-CAM++ in [0, 1]: bright where the diagnosis looks.
        rebuilt: what the shadow generator rebuilt, in [0, 1].
    """

    protected: Float[Tensor, "c h w"] | None = None
    noise: Float[Tensor, "c h w"] | None = None
    vulnerability: Float[Tensor, "h w"] | None = None
    cam: Float[Tensor, "h w"] | None = None
    rebuilt: Float[Tensor, "c h w"] | None = None


@dataclass(frozen=True)
class Patient:
    """One of a client's images, (c, h, w) in [0, 1], and what became of it.

    Attributes:
        rebuilt: by arm and attacker, the reconstruction of the sight.
        explained: by round (from 1) and arm, what the defense did to it.
    """

    sample_id: str
    client: str
    class_name: str
    original: Float[Tensor, "c h w"]
    rebuilt: Mapping[tuple[str, str], Float[Tensor, "c h w"]]
    explained: Mapping[int, Mapping[str, Explanation]] = field(default_factory=dict)
