"""What follows from an audit: red, amber, green or unknown by one rule, what to do next, and what is not covered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.report.kit.formatting import listed
from shadow_defense.report.records.audit import Assessment, AttackEnd, Facts, Reason, RiskRow, Status
from shadow_defense.report.sentences.audit_diagnosis import not_given

RULES: dict[Status, str] = {
    "red": "an attack rebuilt an image that can be recognised, or one lies above a limit that was set.",
    "amber": "something of an image shows; or nothing does, and nothing measured in the update hides the images.",
    "green": "no attack came a tenth of the way from the mean image to an image, and something measured in the update "
    "hides them.",
    "unknown": "how close the attacks came is not known: there are no images to compare with, or a training that was "
    "not given makes their failure meaningless.",
}
"""When an audit ends in which status."""

NOT_COVERED = (
    "Attacks that were not tried, and those that are not known yet.",
    "Membership (whether somebody's image was trained on), and attributes of a patient that are no pixels.",
    "A server that changes the model that it sends, but for the attacks above that say so.",
    "What several rounds, or other updates of the same patients, tell together.",
    "Differential privacy: an audit gives no epsilon.",
)

OFFICER = (
    "An update is personal data as long as a patient can be identified from it by all means reasonably likely to be "
    "used, by the server or by anybody else (GDPR, recital 26). EDPB Opinion 28/2024 asks the same of models: the "
    "likelihood that personal data of the training can be obtained from them must be insignificant.",
    "This page is evidence on one such means: rebuilding images from the update, by the attackers and with the "
    "knowledge named below. Red is evidence that identification is reasonably likely. Green is none that it is "
    "insignificant: it says that these attacks, with this effort, did not succeed.",
    "For an assessment the other means belong beside it: those under 'not covered', who receives the update, what "
    "contracts forbid, and what attacks will cost in the years for which the update is kept.",
)
"""For whoever answers for data protection."""


def assess(
    attacks: Mapping[str, AttackEnd],
    facts: Facts,
    diagnosis: Sequence[Reason],
    *,
    exceeded: Sequence[str] = (),
    not_known: Sequence[str] = (),
    not_tried: Mapping[str, str],
) -> Assessment:
    """The status by :data:`RULES`, with its headline and what to do next.

    Args:
        exceeded, not_known: sentences on limits that were set.
        not_tried: by name, in a line, attacks that there are besides.
    """
    hides = any(reason.effect == "hides" for reason in diagnosis)
    closest = _closest(attacks)
    status, headline = _status(closest, facts, hides, exceeded, not_known)
    return Assessment(status, headline, tuple(_next_steps(status, closest is None, facts, not_tried)), not_tried)


def _closest(attacks: Mapping[str, AttackEnd]) -> tuple[str, RiskRow] | None:
    """The attack and the reconstruction that came closest; None where nothing is known of that."""
    found = [(name, best) for name, end in attacks.items() if (best := end.best) is not None]
    return max(found, key=lambda each: each[1].share or 0.0, default=None)


def _status(
    closest: tuple[str, RiskRow] | None,
    facts: Facts,
    hides: bool,
    exceeded: Sequence[str],
    not_known: Sequence[str],
) -> tuple[Status, str]:
    if closest is not None and closest[1].recognition == "recognisable":
        name, row = closest
        return "red", f"This update gives image {_number(row)} away: {name} rebuilt it, and it can be recognised."
    if exceeded:
        return "red", "This update lies above the limit that was set."
    if closest is None:
        expected = (
            "It holds something that hides them; how well, only a comparison tells."
            if hides
            else "Nothing measured in it hides them: expect that they can be rebuilt."
        )
        return "unknown", f"There are no images to compare with, so that it is not known what leaks. {expected}"
    name, row = closest
    if row.recognition == "partly":
        against = "" if row.mean_image_ssim is None else f" where the mean image has {row.mean_image_ssim:.2f}"
        return "amber", f"Something of image {_number(row)} shows: {name} reaches SSIM {row.ssim:.2f}{against}."
    unknown = not_given(facts)
    if unknown:
        given = listed([f"the client's {what}" for what in unknown])
        return "unknown", f"No attack came close, which says nothing: {given} was not given, and may be another."
    if not_known:
        return "unknown", "Whether the limit that was set is kept is not known."
    if hides:
        return "green", "No attack that was tried came close to an image. That holds for these attacks alone."
    return "amber", "No attack came close, and nothing measured in the update keeps a better one from the images."


def _number(row: RiskRow) -> int:
    return (row.image or 0) + 1


def _next_steps(status: Status, blind: bool, facts: Facts, not_tried: Mapping[str, str]) -> list[str]:
    steps = []
    if status == "red":
        steps.append("Treat the update as the images themselves: it stays with the client, and with who may see them.")
        steps.append(
            "Protect the images once (`shadow-defense protect`) or defend with more strength, train again, and audit "
            "the update that comes of it."
        )
        return steps
    if blind:
        steps.append("Give the client's images with --truth: they are compared with, and no attack sees them.")
    unknown = not_given(facts)
    if unknown:
        steps.append(f"Give {' and '.join(f'--{name}' for name in unknown)}, as the client trained.")
    if not_tried:
        steps.append(f"Try what was not tried, such as --attack {next(iter(not_tried))}, and more --iterations.")
    if status == "amber":
        steps.append("Until then treat the update as personal data, and protect more strongly.")
    if status == "green":
        steps.append("Audit other rounds too, and attackers who know the defense (`adaptive` in a run's attacks).")
    return steps
