"""The journal of a restore: on each target, how much of the content is written and flushed.

It lies where the table or the boot sector comes last: bytes 20480 to 28671 of the disk, two slots
of 4 KiB that are written in turn, so that a torn write leaves the older note. No table, label or
filesystem that libblkid or a kernel knows begins there, whatever the size of sectors, and a first
partition at sector 63 leaves that much room. Where there is less, there is no journal, and an
interrupted restore begins anew. What the image has in that place overwrites the journal in the end.

A slot, little-endian: magic (16), version (2), zeros (2), length of the body (4), number of the
note (8), BLAKE3-256 of these 32 bytes and the body (32), the body: a `Note` in JSON.

What a note promises: the first `done` windows (`restore.windows`), and the zeros that come before
them, were written, and then all targets were flushed, before the note was written; chunks are
checked before they are written. The targets are noted one after the other, so the smallest count of
all is what holds. What kind of verification was asked for is no part of it: that reads everything
back in the end, also what was there. Nor is the phase: when all windows are there, what is left are
tables and boot areas, and they are written whole. A restore of differences keeps none, since it
compares all anyway: repeating it is its resume.

A restore is resumed if every target has a note of it, was meant for the same saved disk, is still
the disk it was (size, sectors, WWN, serial, model; of a file its size), takes each volume in the
same place and with the same length, and the rest of the head is still zeros. That last one tells a
disk that somebody partitioned and used since: what else would be in the head of such a disk? When power is cut in the short last phase, while boot areas are written,
the restore therefore begins anew. It does, too, when filesystems were being shrunk: the notes are
erased before, since what is written is not what the windows say any more. So it does when a
verification failed: then the notes are erased.

What it can't know: whether somebody wrote into the middle of a target and left its head alone, and
whether a disk told the truth when it said that all is on stable storage. `--verify-written` finds
both.
"""

import json
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec
from blake3 import blake3

from imager import blockdev
from imager.errors import SourceError, WriteFailed
from imager.layout.disk import Disk, VolumeRole
from imager.units import KIB
from restore import clock, windows
from restore.device import OpenTarget
from restore.steps import BeginJournal, Resume, Subject
from restore.target import Target, TargetKind

SLOT: Final = 4 * KIB
START: Final = 20 * KIB
END: Final = START + 2 * SLOT

_BEGINNINGS: Final = frozenset({VolumeRole.BOOT_AREA, VolumeRole.WHOLE_DISK})
_MAGIC: Final = b"remetal journal\n"
_VERSION: Final = 1  # also of the order in which content is written
_HEADER: Final = struct.Struct("<16sH2xIQ")
_DIGEST: Final = 32
_MOST_NAME: Final = 64  # characters of a name that is there for people only


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a slot says.

    Attributes:
        restore: a random number that the restore has given itself.
        repository: id of the repository.
        image: id of the image.
        machine: its name, for people.
        taken: when the image was taken, for people.
        disk: id of the saved disk that this target takes.
        targets: what the targets were, as `fingerprint` says.
        done: windows that are written and flushed.
        begun: when the restore began, by the clock of the system that ran it.
        noted: when this was noted.
    """

    restore: str
    repository: str
    image: str
    machine: str
    taken: str
    disk: str
    targets: str
    done: int
    begun: str
    noted: str


@dataclass(frozen=True, slots=True)
class Found:
    """The journal of a target.

    Attributes:
        note: the newest one.
        sequence: its number.
        is_alone: the rest of the head is zeros.
    """

    note: Note
    sequence: int
    is_alone: bool


def encode(note: Note, sequence: int) -> bytes:
    """Return the bytes of a slot."""
    body = msgspec.json.encode(note)
    header = _HEADER.pack(_MAGIC, _VERSION, len(body), sequence)
    return (header + blake3(header + body).digest() + body).ljust(SLOT, b"\0")


def decode(slot: bytes) -> tuple[int, Note] | None:
    """Return number and note of a slot; None when it holds no whole one of this version."""
    magic, version, length, sequence = _HEADER.unpack_from(slot)
    if magic != _MAGIC or version != _VERSION:
        return None
    header, rest = slot[: _HEADER.size], slot[_HEADER.size :]
    digest, body = rest[:_DIGEST], rest[_DIGEST : _DIGEST + length]
    if blake3(header + body).digest() != digest:
        return None
    try:
        return sequence, msgspec.json.decode(body, type=Note)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def head_of(disk: Disk) -> int:
    """Return how many bytes from the start of a disk are written last; 0 if that is too few."""
    first = disk.volumes[0] if disk.volumes else None
    if first is None or first.offset or first.role not in _BEGINNINGS:
        return 0
    head = min(first.length, windows.HEAD)
    return head if head >= END else 0


def find(path: Path, head: int) -> Found | None:
    """Return the journal on a disk or file, if there is one. What can't be read holds none.

    Args:
        path: where to look; only read.
        head: bytes from the start that nothing but a journal may be in.
    """
    try:
        with blockdev.open_disk(path) as fd:
            data = blockdev.read_at(fd, 0, max(head, END))
    except SourceError:
        return None
    slots = (data[place : place + SLOT] for place in range(START, END, SLOT))
    notes = [found for slot in slots if (found := decode(slot)) is not None]
    if not notes:
        return None
    sequence, note = max(notes, key=lambda found: found[0])
    is_alone = not any(data[:START]) and not any(data[END:head])
    return Found(note, sequence, is_alone)


def fingerprint(targets: Iterable[Target]) -> str:
    """Return what tells these targets from others, and from the same ones in another order."""
    document = [
        [
            target.disk,
            target.kind is TargetKind.DEVICE,
            target.size,
            target.logical_sector,
            target.wwn,
            target.serial,
            target.model,
            *_fitted(target),
        ]
        for target in targets
    ]
    return blake3(json.dumps(document).encode()).hexdigest()


def _fitted(target: Target) -> list[list[str | int]]:
    return [list(place.mark) for place in target.places]


def fitting(
    subject: Subject, targets: Sequence[Target], found: Mapping[str, Found]
) -> tuple[Found, ...]:
    """Return the journals of one and the same restore that these targets hold; none if they don't.

    Args:
        subject: what is to be restored.
        targets: onto what.
        found: by saved disk, as `find` says.
    """
    journals = tuple(found[target.disk] for target in targets if target.disk in found)
    if len(journals) < len(targets) or not journals:
        return ()
    restores = {journal.note.restore for journal in journals}
    mark = fingerprint(targets)
    for target, journal in zip(targets, journals, strict=True):
        note = journal.note
        if (note.repository, note.image) != (subject.repository, subject.image):
            return ()
        if (note.disk, note.targets) != (target.disk, mark) or not journal.is_alone:
            return ()
    return journals if len(restores) == 1 else ()


def erase(opened: OpenTarget) -> None:
    """Make sure that a target holds no journal, whatever comes next.

    Raises:
        WriteFailed: the target refused.
    """
    end = min(END, opened.target.size)
    opened.overwrite_with_zeros(min(START, end), end - min(START, end))
    opened.flush()


class Journal:
    """Keeps the notes of a restore that runs."""

    def __init__(
        self, opened: Sequence[OpenTarget], notes: Sequence[Note], sequences: Sequence[int]
    ) -> None:
        """Take opened targets, what is noted on each, and the number of the last note there."""
        self._opened = tuple(opened)
        self._notes = list(notes)
        self._sequences = list(sequences)
        for each in self._opened:
            each.keep_notes(START, END)

    @classmethod
    def begin(cls, step: BeginJournal, opened: Mapping[Target, OpenTarget]) -> Self:
        """Begin the journal of a new restore.

        Raises:
            WriteFailed: a target refused.
        """
        identity = secrets.token_hex(16)
        notes = _notes(step.targets, step.subject, identity, clock.now(), 0)
        targets = [opened[target] for target in step.targets]
        journal = cls(targets, notes, [0] * len(notes))
        journal.note(0)
        return journal

    @classmethod
    def resume(cls, step: Resume, opened: Mapping[Target, OpenTarget]) -> Self:
        """Go on with the journal of an interrupted restore."""
        notes = _notes(step.targets, step.subject, step.restore, step.begun, step.done)
        targets = [opened[target] for target in step.targets]
        for each in targets:
            each.take_up()
        return cls(targets, notes, step.sequences)

    @property
    def done(self) -> int:
        """Windows that are noted."""
        return self._notes[0].done

    def note(self, done: int) -> None:
        """Flush all targets, then note on each that so many windows are there.

        Raises:
            WriteFailed: a target refused; then nothing more is noted.
        """
        for each in self._opened:
            each.flush()
        for number, each in enumerate(self._opened):
            self._sequences[number] += 1
            sequence = self._sequences[number]
            self._notes[number] = msgspec.structs.replace(
                self._notes[number], done=done, noted=clock.now()
            )
            each.write(START + sequence % 2 * SLOT, encode(self._notes[number], sequence))
        for each in self._opened:
            each.flush()

    def erase(self) -> None:
        """Make sure that this restore is not resumed; what refuses to be written is left."""
        for each in self._opened:
            with suppress(WriteFailed):
                erase(each)


def _notes(
    targets: Sequence[Target], subject: Subject, restore: str, begun: str, done: int
) -> list[Note]:
    mark = fingerprint(targets)
    return [
        Note(
            restore=restore,
            repository=subject.repository,
            image=subject.image,
            machine=subject.machine[:_MOST_NAME],
            taken=subject.taken[:_MOST_NAME],
            disk=target.disk,
            targets=mark,
            done=done,
            begun=begun,
            noted=begun,
        )
        for target in targets
    ]
