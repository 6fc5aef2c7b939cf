"""A short run of what `make fuzz` does at length, and every bug that fuzzing has found."""

from __future__ import annotations

import resource
import signal
import struct
from collections.abc import Iterator
from random import Random
from types import FrameType

import pytest

from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS

ROUNDS = 150


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """One target has 20 seconds, and memory for what it may need."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError("a parser takes too long")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, limits[1]))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_seeds_are_valid(name: str) -> None:
    assert all(TARGETS[name].accepts(seed) for seed in TARGETS[name].seeds)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_changed_inputs_are_read_or_refused(name: str) -> None:
    target = TARGETS[name]
    for number in range(ROUNDS):
        random = Random(number)
        data = mutate(target.seeds[number % len(target.seeds)], random)
        try:
            target.accepts(data)
        except Exception as error:
            raise AssertionError(f"{name}, round {number}: {data[:200]!r}") from error


def _large_fat() -> bytes:
    """FAT32: two tables that take nearly the whole volume, and few clusters."""
    disk = bytearray(TARGETS["large-fat"].seeds[0])
    struct.pack_into("<HBHBHHBHHHII", disk, 11, 4096, 1, 2, 2, 0, 0, 0xF8, 0, 1, 1, 0, 8_388_607)
    struct.pack_into("<IHHIHH", disk, 36, 4_194_300, 0, 0, 2, 1, 0)
    return bytes(disk)


def _large_gpt() -> bytes:
    disk = bytearray(TARGETS["large-gpt"].seeds[0])
    struct.pack_into("<II", disk, 512 + 80, 1 << 10, 1 << 22)
    return bytes(disk)


# Inputs that once got through, or raised what no reader expects.
FOUND = {
    "a pack in a removal that is no hash": (
        "statement-body",
        b'\x08{"images":[],"packs":["zz"],"quarantine":1,"created":"","certificate":""}',
    ),
    "a quarantine beyond all floats": (
        "statement-body",
        b'\x08{"images":[],"packs":[],"quarantine":1' + b"0" * 400 + b',"created":""}',
    ),
    "reserved bytes of an index": (
        "index-body",
        (1).to_bytes(4, "little") + bytes(4) + bytes(32) + b"\x01" + b"\x07" * 7,
    ),
    "reserved bytes of a directory": ("directory", b"\x01\x01" + bytes(44) + b"\x07" + bytes(3)),
    "a layout nested without end": ("layout", b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}"),
    "an index out of order": (
        "index-body",
        b"\x01\0\0\0\x02\0\0\0" + bytes(32) + b"\x01" + bytes(7)
        + b"\x02" * 32 + bytes(16) + b"\x01" * 32 + bytes(16),
    ),
    "a credential with half a key": (
        "credential",
        TARGETS["credential"].seeds[0].replace(b"VVVVVVVV", b"", 1),
    ),
    "sizes beyond all floats": (
        "summary",
        TARGETS["summary"].seeds[0].replace(b"1048576", b"1" + b"0" * 400, 1),
    ),
    "a passphrase that takes a year": (
        "recovery-key",
        TARGETS["recovery-key"].seeds[0].replace(b'"iterations": 1', b'"iterations": 4294967295'),
    ),
    "a FAT of 16 GiB for one cluster": ("large-fat", _large_fat()),
    "an array of partitions of 4 GiB": ("large-gpt", _large_gpt()),
    "more bytes of a file than were asked for": (
        "sftp",
        TARGETS["sftp"].seeds[0].replace(
            struct.pack(">IBII", 14, 103, 11, 5), struct.pack(">IBII", 15, 103, 11, 6) + b"0"
        ),
    ),
    "an answer to a request that was not made": (
        "sftp",
        TARGETS["sftp"].seeds[0].replace(
            struct.pack(">IBI", 37, 201, 1),
            struct.pack(">IBII", 9, 101, 999, 0) + struct.pack(">IBI", 37, 201, 1),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FOUND)
def test_what_fuzzing_found_is_refused(what: str) -> None:
    name, data = FOUND[what]
    assert data not in TARGETS[name].seeds
    if name == "large-gpt":
        TARGETS[name].parse(data)  # an array that can't be is no table, and no error
    else:
        assert not TARGETS[name].accepts(data)
