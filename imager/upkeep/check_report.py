"""What a check says: findings, counts, and how far a round is."""

from dataclasses import dataclass
from enum import StrEnum

from imager.errors import RemetalError, UntrustedObject


class Depth(StrEnum):
    """How much a check reads, and which key it needs."""

    STRUCTURE = "structure"
    CIPHERTEXT = "ciphertext"
    FULL = "full"


class Fault(StrEnum):
    """What is wrong with an object.

    A lie is an object that is as it was written, and was written wrong; what is untrusted is intact,
    and signed by nobody who counts; what is disowned likewise, because its credential was revoked.
    Everything else happened to an object later.
    """

    DAMAGED = "damaged"
    MISSING = "missing"
    LIE = "lie"
    UNINDEXED = "unindexed"
    UNTRUSTED = "untrusted"
    DISOWNED = "disowned"


def fault_of(error: RemetalError) -> Fault:
    """Return what is wrong with an object that gives this error when it is read."""
    if isinstance(error, UntrustedObject):
        return Fault.DISOWNED if error.is_disowned else Fault.UNTRUSTED
    return Fault.DAMAGED


@dataclass(frozen=True, slots=True)
class Bad:
    """An object that is not as it must be, before it is known which images that touches.

    Attributes:
        name: of the object.
        message: what is wrong.
        fault: of which sort.
        ids: of a pack, the only blobs that are wrong; None for all of it.
        session: of the capture that wrote it, where that matters.
    """

    name: str
    message: str
    fault: Fault = Fault.DAMAGED
    ids: frozenset[bytes] | None = None
    session: bytes | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, and which images it touches.

    Attributes:
        name: of the object.
        message: what is wrong with it.
        images: ids of the images that need it; empty where no key tells.
        repairable: whether every image still restores bit-exact without it.
        machines: names of the machines of these images, as far as they can be read.
        fault: of which sort.
        writer: credential and machine of the image of the same capture; only for lies.
    """

    name: str
    message: str
    images: tuple[str, ...]
    repairable: bool = False
    machines: tuple[str, ...] = ()
    fault: Fault = Fault.DAMAGED
    writer: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a round of checks with a budget is, after this run.

    Attributes:
        number: of the round, from 1.
        began: RFC 3339 time.
        done_bytes: bytes of the objects that this round has seen.
        total_bytes: bytes of all objects that are there now.
        runs_left: about how many runs like this one it takes; 0 when the round is complete.
        remembered: whether the next run can go on here.
        lost: whether what earlier runs remembered could not be read, so that this began anew.
    """

    number: int
    began: str
    done_bytes: int
    total_bytes: int
    runs_left: int
    remembered: bool
    lost: bool = False

    @property
    def percent(self) -> int:
        """How much is seen; 100 only when all is."""
        if not self.runs_left:
            return 100
        return min(99, 100 * self.done_bytes // max(self.total_bytes, 1))


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        depth: how much it read.
        images: how many images were looked at, readable or not; None without keys.
        objects: how many objects were verified.
        read_bytes: how much of them was read whole and compared.
        opened_chunks: how many chunks were opened with the recovery key.
        findings: everything wrong; empty when all is well.
        ignored: what revoked credentials wrote and their revocations do not list: nothing uses it,
            and nobody misses it.
        orphan_packs: packs that no index names and no image needs, of captures that run or were
            interrupted; no damage.
        orphan_bytes: their bytes.
        unopened_packs: packs whose session key this recovery key can't have (other groups, or
            captures after its removal); their bytes were compared, nothing was opened.
        strange: names of objects that the format does not know; they were not read.
        progress: of the round; None without a budget.
        tampered: names of objects that somebody tried to overwrite or to hide, in a store that keeps
            versions; no damage, for the first version is what is read.
        rotten_removals: statements of removals that have rotted; no damage, for no image needs
            them, and repair lets them go.
    """

    depth: Depth
    images: int | None
    objects: int
    read_bytes: int
    opened_chunks: int
    findings: tuple[Finding, ...]
    orphan_packs: int = 0
    orphan_bytes: int = 0
    unopened_packs: int = 0
    strange: tuple[str, ...] = ()
    progress: Progress | None = None
    ignored: tuple[Finding, ...] = ()
    rotten_removals: tuple[str, ...] = ()
    tampered: tuple[str, ...] = ()
