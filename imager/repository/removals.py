"""What upkeep is about to remove, as everybody sees it (FORMAT.md section 11, "Removal").

Deletion has two phases. A CONDEMNED statement starts a quarantine, by the store's clock; when it
is over, and what it names is still not needed, a REMOVED statement is written and the objects go.
No capture waits for either: it sends again what may vanish before it ends, and looks once more
right before it writes its image.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from imager.errors import OBJECT_FAULTS, ObjectMissing
from imager.repository import statement as statements
from imager.repository.backend.protocol import Backend
from imager.repository.header import StatementKind
from imager.repository.pack import object_name
from imager.repository.repository import Problem, Repository
from imager.repository.statement import RemovalBody

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
LEAST_QUARANTINE: Final = HOUR
# A capture that finds less than this left when it ends does not count on the pack.
MARGIN: Final = HOUR
KEEP_REMOVED: Final = DAY
# Statements that name more than so many packs are written as several.
MOST_NAMED: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Removal:
    """A CONDEMNED or REMOVED statement.

    Attributes:
        name: of the object.
        images: ids, hex.
        packs: names of objects.
        begins: when the store took it, seconds since the epoch.
        ends: when its quarantine is over.
    """

    name: str
    images: frozenset[str]
    packs: frozenset[str]
    begins: float
    ends: float


@dataclass(frozen=True, slots=True)
class Removals:
    """All removals that the repository knows of.

    Attributes:
        condemned: in quarantine, or past it.
        removed: carried out, at least in part, not long ago.
        problems: statements that can't be read or believed.
    """

    condemned: tuple[Removal, ...]
    removed: tuple[Removal, ...]
    problems: tuple[Problem, ...]

    def doubtful_packs(self, now: float) -> set[str]:
        """Return packs that a capture that begins now must not count on."""
        return self._removed_packs() | {
            pack
            for removal in self.condemned
            if removal.ends - now < max((removal.ends - removal.begins) / 2, 2 * MARGIN)
            for pack in removal.packs
        }

    def vanishing_packs(self, now: float) -> set[str]:
        """Return packs that may be gone before an image that is written now can be seen."""
        return self._removed_packs() | {
            pack
            for removal in self.condemned
            if removal.ends - now < MARGIN
            for pack in removal.packs
        }

    def _removed_packs(self) -> set[str]:
        return {pack for removal in self.removed for pack in removal.packs}


def is_rotten(backend: Backend, name: str) -> bool:
    """Whether a removal statement was read whole and has other bytes than were written.

    Nobody believes it then, so it is as if it were not there, and no image needs it: what a
    CONDEMNED statement named stays and is condemned anew, and a REMOVED one is for a day only.
    """
    try:
        data = backend.get(name)
    except OBJECT_FAULTS:
        return False
    return hashlib.sha256(data).hexdigest() != name.removeprefix(statements.REMOVALS)


def read_removals(repository: Repository) -> Removals:
    """Read every removal statement; what vanishes meanwhile was carried out and is left out."""
    condemned: list[Removal] = []
    removed: list[Removal] = []
    problems: list[Problem] = []
    for entry in repository.backend.list(statements.REMOVALS):
        try:
            found = repository.read_statement(entry.name)
            if not isinstance(found.body, RemovalBody):
                continue
            removal = Removal(
                entry.name,
                frozenset(found.body.images),
                frozenset(object_name(bytes.fromhex(pack)) for pack in found.body.packs),
                entry.modified,
                entry.modified + found.body.quarantine,
            )
        except ObjectMissing:
            continue
        except OBJECT_FAULTS as error:
            problems.append(Problem(entry.name, error))
            continue
        (condemned if found.kind is StatementKind.CONDEMNED else removed).append(removal)
    return Removals(tuple(condemned), tuple(removed), tuple(problems))
