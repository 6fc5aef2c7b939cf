"""The journal of a restore: what its notes say, and when they count."""

import os
from pathlib import Path

import msgspec
import pytest
from memory_image import disk

from imager import process
from imager.layout.disk import Volume, VolumeRole
from restore import journal
from restore.journal import END, SLOT, START, Note

KIB, MIB = 1 << 10, 1 << 20
NOTE = Note(
    restore="00" * 16,
    repository="5e11",
    image="4f2a",
    machine="web1",
    taken="then",
    disk="disk0",
    targets="ab" * 32,
    done=3,
    begun="2026-01-02 03:04:05 UTC",
    noted="2026-01-02 04:04:05 UTC",
)


def with_slots(path: Path, *slots: bytes, size: int = MIB) -> Path:
    data = bytearray(size)
    for number, slot in enumerate(slots):
        place = START + number * SLOT
        data[place : place + len(slot)] = slot
    path.write_bytes(data)
    return path


def noted(done: int, sequence: int) -> bytes:
    return journal.encode(msgspec.structs.replace(NOTE, done=done), sequence)


def test_a_note_comes_back() -> None:
    slot = journal.encode(NOTE, 17)
    assert len(slot) == SLOT
    assert journal.decode(slot) == (17, NOTE)


def test_the_longest_note_fits_a_slot() -> None:
    widest = "\x01" * 64  # six characters each in JSON
    note = msgspec.structs.replace(
        NOTE, repository="f" * 32, image="f" * 64, machine=widest, taken=widest, done=1 << 62
    )
    assert len(journal.encode(note, 1 << 63)) == SLOT


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_newer_slot_counts(tmp_path: Path, order: tuple[int, int]) -> None:
    slots = [noted(3, 7), noted(4, 8)]
    found = journal.find(with_slots(tmp_path / "a", *(slots[n] for n in order)), MIB)
    assert found is not None
    assert (found.note.done, found.sequence, found.is_alone) == (4, 8, True)


def test_any_wrong_byte_of_a_slot_leaves_the_older_one(tmp_path: Path) -> None:
    newer = noted(4, 8)
    used = len(newer.rstrip(b"\0"))
    for place in range(0, used, 7):
        torn = bytearray(newer)
        torn[place] ^= 1 << place % 8
        found = journal.find(with_slots(tmp_path / "a", noted(3, 7), bytes(torn)), MIB)
        assert found is not None, place
        assert found.note.done == 3, place


def test_a_slot_that_is_torn_at_a_sector_leaves_the_older_one(tmp_path: Path) -> None:
    # The slot held a note before the last one.
    old, new = noted(2, 6), journal.encode(msgspec.structs.replace(NOTE, machine="w" * 64), 8)
    for cut in range(0, len(new.rstrip(b"\0")), 512):
        for torn in (new[:cut] + old[cut:], old[:cut] + new[cut:]):
            found = journal.find(with_slots(tmp_path / "a", torn, noted(3, 7)), MIB)
            assert found is not None
            assert found.note.done == (4 if torn == new else 3) or torn in {new, old}


@pytest.mark.parametrize("what", ["zeros", "noise", "version", "body", "short"])
def test_what_is_no_journal_is_none(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a"
    slot = journal.encode(NOTE, 1)
    if what == "version":
        slot = slot[:16] + b"\x02" + slot[17:]
    elif what == "body":
        body = b'{"restore": 1}'
        header = journal._HEADER.pack(journal._MAGIC, 1, len(body), 1)
        slot = header + journal.blake3(header + body).digest() + body
    elif what == "noise":
        slot = os.urandom(SLOT)
    elif what == "zeros":
        slot = b""
    with_slots(path, slot)
    if what == "short":
        os.truncate(path, END - 1)
    assert journal.find(path, MIB if what != "short" else 0) is None


@pytest.mark.parametrize("place", [0, 510, START - 1, END, MIB - 1])
def test_a_disk_that_somebody_used_since_is_not_alone(tmp_path: Path, place: int) -> None:
    path = with_slots(tmp_path / "a", journal.encode(NOTE, 1))
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\x55")
    found = journal.find(path, MIB)
    assert found is not None
    assert not found.is_alone


def test_no_program_takes_it_for_anything(tmp_path: Path) -> None:
    path = with_slots(tmp_path / "a", noted(3, 7), noted(4, 8), size=64 * MIB)
    for sector in (512, 4096):
        assert process.run("blkid", "-p", "-S", "0", "-s", "TYPE", path, accept=(0, 2)) == ""
        assert process.run("wipefs", "--no-act", "--noheadings", path) == "", sector


@pytest.mark.parametrize(
    ("volume", "head"),
    [
        (Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, 2 * MIB), MIB),
        (Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, 63 * 512), 63 * 512),
        (Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, END), END),
        (Volume("disk0/boot-area", VolumeRole.BOOT_AREA, 0, END - 512), 0),
        (Volume("disk0/p1", VolumeRole.PARTITION, 0, MIB), 0),
        (Volume("disk0/p1", VolumeRole.PARTITION, 512, MIB), 0),
        (Volume("disk0/whole", VolumeRole.WHOLE_DISK, 0, 64 * MIB), MIB),
    ],
)
def test_where_there_is_room(volume: Volume, head: int) -> None:
    assert journal.head_of(disk(volumes=(volume,))) == head
