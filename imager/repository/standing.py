"""What was said about images: holds, releases, and drills that passed (FORMAT.md section 11)."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from imager.errors import OBJECT_FAULTS, ObjectMissing
from imager.repository import statement as statements
from imager.repository.repository import Problem, Repository
from imager.repository.statement import DrillBody, HoldBody, ReleaseBody

_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold that was not released.

    Attributes:
        id: SHA-256 of its statement, hex.
        images: ids of the images it names, hex.
        reason: for people.
        until: RFC 3339 time after which it holds no longer, or None.
        created: RFC 3339 time.
    """

    id: str
    images: tuple[str, ...]
    reason: str
    until: str | None
    created: str

    def holds_at(self, now: float) -> bool:
        """Whether it still holds; one whose end can't be read holds for ever."""
        return self.until is None or seconds_of(self.until) > now


@dataclass(frozen=True, slots=True)
class Standing:
    """All that was said about images.

    Attributes:
        holds: that were not released, oldest first.
        drilled: ids of images that passed a drill.
        problems: statements that can't be read or believed.
    """

    holds: tuple[Hold, ...]
    drilled: frozenset[str]
    problems: tuple[Problem, ...]

    def reasons(self, now: float) -> Mapping[str, tuple[str, ...]]:
        """Return by image id why it must stay."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for hold in self.holds:
            if hold.holds_at(now):
                for image in hold.images:
                    found[image].append(f"hold: {hold.reason}")
        return {image: tuple(reasons) for image, reasons in found.items()}


def read_standing(repository: Repository) -> Standing:
    """Read all holds, releases and drills.

    A release that can't be read does not release, and a hold that can't be read is reported.
    """
    holds: list[Hold] = []
    released: set[str] = set()
    drilled: set[str] = set()
    problems: list[Problem] = []
    for entry in repository.backend.list(statements.PREFIX):
        try:
            body = repository.read_statement(entry.name).body
        except ObjectMissing:
            continue
        except OBJECT_FAULTS as error:
            problems.append(Problem(entry.name, error))
            continue
        match body:
            case HoldBody():
                name = entry.name.removeprefix(statements.PREFIX)
                holds.append(Hold(name, body.images, body.reason, body.until, body.created))
            case ReleaseBody():
                released.update(body.holds)
            case DrillBody(passed=True):
                drilled.add(body.image)
            case _:
                pass
    kept = sorted((h for h in holds if h.id not in released), key=lambda h: (h.created, h.id))
    return Standing(tuple(kept), frozenset(drilled), tuple(problems))


def seconds_of(stamp: str) -> float:
    """Return an RFC 3339 time as seconds since the epoch; infinite if it is none."""
    try:
        moment = datetime.fromisoformat(stamp)
        return moment.timestamp() if moment.tzinfo else _NEVER
    except (ValueError, OverflowError):
        return _NEVER
