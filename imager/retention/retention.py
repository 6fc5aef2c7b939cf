"""From images to keep or remove, with every reason.

Who can add images must not be able to age out those of others, nor, with a forged clock, its own:

- Ages and periods go by the store's clock only.
- Rules count each credential's images of each machine on their own.
- An image whose own time can't be true is kept, reported, and counted by no rule.

What remains: a credential that was taken over can add images with true times. Rules that count
images (`last`) or choose the newest of a period then prefer them; `within` does not, which is why
the default policy has it: what is older stays untouched for 90 days in which one can notice.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from imager.retention.policy import Period, Policy
from imager.units import DAY, HOUR

TOLERANCE: Final = HOUR  # by how much a clock may be ahead of the store's, seconds
BEYOND: Final = "beyond every rule"


class Doubt(StrEnum):
    """Why an image's time can't be true."""

    AHEAD = "clock is ahead of the store's"
    BACKWARDS = "older than its predecessor"
    STORED_AHEAD = "stored at a time that the store says is still to come"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What retention must know of an image.

    Attributes:
        id: SHA-256 of the object, hex.
        machine_id: whose image it is.
        machine_name: what people call the machine.
        series: names the credential that signed; opaque.
        stored: when the store took it, by the store's clock; seconds since the epoch.
        claimed: when it was finished, by the machine's clock; infinite if what it says is no time.
        size: bytes, for the table only.
        protected: why it must stay whatever the policy says: "hold: court case 12".
        passed_drill: a drill brought the machine back from it.
    """

    id: str
    machine_id: str
    machine_name: str
    series: str
    stored: float
    claimed: float
    size: int = 0
    protected: tuple[str, ...] = ()
    passed_drill: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of an image.

    Attributes:
        image: which.
        keep: whether it stays.
        reasons: all of them, at least one.
        doubt: why its own time can't be true, if so; it is kept then.
    """

    image: StoredImage
    keep: bool
    reasons: tuple[str, ...]
    doubt: Doubt | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """Images of one machine and credential whose times can't be true.

    Attributes:
        doubt: why.
        machine_name: of the newest of them by the store's clock.
        series: the credential that signed them.
        images: their ids, in the order the store took them.
        first: the earliest time they claim, seconds since the epoch.
        last: the latest.
    """

    doubt: Doubt
    machine_name: str
    series: str
    images: tuple[str, ...]
    first: float
    last: float

    @property
    def text(self) -> str:
        """One sentence for people."""
        one = len(self.images) == 1
        who = f"{len(self.images)} image{'' if one else 's'} of {self.machine_name}"
        end = f"{'it is' if one else 'they are'} kept, and counted by no rule"
        signed = f"signed by credential {self.series}"
        if self.doubt is Doubt.AHEAD:
            claim = f"claim{'s' if one else ''} a time ahead of the store's clock"
            return f"{who}, {signed}, {claim} (up to {_time(self.last)}): {end}."
        if self.doubt is Doubt.BACKWARDS:
            claim = f"claim{'s' if one else ''} to be older than the image before"
            return f"{who}, {signed}, {claim} (down to {_time(self.first)}): {end}."
        return f"{who}, {signed}, {self.doubt} (was its clock set back?): {end}."


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of all images.

    Attributes:
        decisions: one for each image, by machine name, machine, credential and time.
        observations: what one should know about the times that images claim.
    """

    decisions: tuple[Decision, ...]
    observations: tuple[Observation, ...]


def decide(images: Iterable[StoredImage], policy: Policy, now: float) -> Verdict:
    """Decide which images stay.

    The order of `images` does not matter. To remove what is to be removed and to decide again at
    the same `now` removes nothing more; a policy with larger numbers keeps at least as much.

    These stay under every policy, for each machine and credential: the newest image, the newest
    that passed a drill, what is protected, what claims a time that can't be true, and the image
    that shows of another that it can't be true.

    Args:
        images: of any machines, each id once.
        policy: what is wanted.
        now: by the store's clock, seconds since the epoch.
    """
    series: dict[tuple[str, str], list[StoredImage]] = defaultdict(list)
    for image in images:
        series[image.machine_id, image.series].append(image)
    decisions: list[Decision] = []
    observations: list[Observation] = []
    for members in series.values():
        # The store's clock may be coarse; equal times are ordered as the machine says.
        members.sort(key=lambda image: (image.stored, image.claimed, image.id))
        found = _decide_series(members, policy, now)
        decisions += found
        observations += _observe(found)
    decisions.sort(key=lambda decision: _place(decision.image))
    observations.sort(key=lambda seen: (seen.machine_name, seen.series, seen.doubt, seen.images))
    return Verdict(tuple(decisions), tuple(observations))


def _place(image: StoredImage) -> tuple[str, str, str, float, float, str]:
    key = (image.machine_id, image.series, image.stored, image.claimed, image.id)
    return (image.machine_name, *key)


def _decide_series(members: Sequence[StoredImage], policy: Policy, now: float) -> list[Decision]:
    """Decide about the images of one machine and credential, given in the order of storing."""
    doubts, witnesses = _find_doubts(members, now)
    counted = [image for image in reversed(members) if image.id not in doubts]  # newest first
    reasons: dict[str, list[str]] = {image.id: list(image.protected) for image in members}
    if counted:
        reasons[counted[0].id].append(f"newest of {counted[0].machine_name}")
    drilled = next((image for image in counted if image.passed_drill), None)
    if drilled is not None:
        reasons[drilled.id].append("newest that passed a drill")
    for image in counted[: policy.last]:
        reasons[image.id].append(f"last {policy.last}")
    oldest = now - policy.within if policy.within else math.inf
    for image in counted:
        if image.stored >= oldest:
            reasons[image.id].append(f"within {_span(policy.within)}")
    for period in Period:
        _keep_periods(counted, period, policy.count(period), oldest, reasons)
    for identity in witnesses:
        reasons[identity].append("shows that a later image's time can't be true")
    for identity, doubt in doubts.items():
        reasons[identity].append(doubt.value)
    return [
        Decision(
            image,
            bool(reasons[image.id]),
            tuple(dict.fromkeys(reasons[image.id])) or (BEYOND,),
            doubts.get(image.id),
        )
        for image in members
    ]


def _find_doubts(
    members: Sequence[StoredImage], now: float
) -> tuple[dict[str, Doubt], dict[str, None]]:
    """Return the images whose time can't be true, and the predecessors that show it of some.

    A predecessor has to stay: were it removed, the image after it would look true the next time,
    and take the place of another. No predecessor is ahead of the store by more than the tolerance,
    so a machine whose clock is right again is believed again after that time.
    """
    doubts: dict[str, Doubt] = {}
    witnesses: dict[str, None] = {}
    before: StoredImage | None = None
    for image in members:
        if not image.stored <= now + TOLERANCE:
            doubts[image.id] = Doubt.STORED_AHEAD
        elif not (math.isfinite(image.claimed) and image.claimed <= image.stored + TOLERANCE):
            doubts[image.id] = Doubt.AHEAD
        elif before is not None and image.claimed < before.claimed:
            doubts[image.id] = Doubt.BACKWARDS
            witnesses[before.id] = None
        else:
            before = image
    return doubts, witnesses


def _keep_periods(
    counted: Sequence[StoredImage],
    period: Period,
    places: int,
    oldest: float,
    reasons: dict[str, list[str]],
) -> None:
    """Give the newest images of the newest `places` periods their reason.

    The newest image of a period stays the newest one for good, so the choice does not wander.
    """
    if not places:
        return
    newest: dict[str, StoredImage] = {}
    for image in counted:
        newest.setdefault(period.name_of(image.stored), image)
    beyond = [(name, image) for name, image in newest.items() if image.stored < oldest]
    for name, image in beyond[:places]:
        reasons[image.id].append(f"{period} {name}")


def _observe(decisions: Sequence[Decision]) -> list[Observation]:
    observations = []
    for doubt in Doubt:
        found = [decision.image for decision in decisions if decision.doubt is doubt]
        if found:
            claims = [image.claimed for image in found]
            observations.append(
                Observation(
                    doubt,
                    found[-1].machine_name,
                    found[-1].series,
                    tuple(image.id for image in found),
                    min(claims),
                    max(claims),
                )
            )
    return observations


def _span(seconds: int) -> str:
    for size, word in ((DAY, "day"), (HOUR, "hour"), (60, "minute"), (1, "second")):
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {word}{'' if count == 1 else 's'}"
    raise AssertionError(seconds)


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "a time that does not exist"
