"""Real partitioned disk files for the tests here, and the proof that a map leaves nothing out."""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imager import blockdev, process
from imager.extents.extents import Extents
from imager.extents.used import used
from imager.layout.disk import Volume, VolumeRole
from imager.probe.disk import probe_disk
from imager.units import MIB

START = MIB


def noise(length: int, seed: int) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.randbytes(min(MIB, length - at)) for at in range(0, length, MIB))


def make_disk(path: Path, size: int, *, seed: int | None = 1) -> None:
    """Make a GPT disk with one partition from 1 MiB on; full of noise, as a used disk is."""
    with path.open("wb") as file:
        if seed is None:
            file.truncate(START + size + MIB)
        else:
            for part in range(0, START + size + MIB, MIB):
                file.write(noise(MIB, seed * 1_000_003 + part))
            file.seek(0)
            file.write(bytes(START))
            file.seek(START + size)
            file.write(bytes(MIB))
    sectors = size // 512
    script = f"label: gpt\nstart=2048, size={sectors}\n"
    process.run("sfdisk", "--quiet", "--wipe=never", path, stdin=script.encode())


def volume_of(path: Path) -> Volume:
    """Return the partition as the probe sees it."""
    disk = blockdev.identify(path)
    volumes = probe_disk(path, "disk0", disk.identity).volumes
    return next(volume for volume in volumes if volume.role is VolumeRole.PARTITION)


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), length, offset)


@contextmanager
def partition_image(disk: Path, size: int) -> Iterator[Path]:
    """Yield a file with the bytes of the partition, for tools that take no offset; then put it back."""
    image = disk.with_suffix(".partition")
    image.write_bytes(read(disk, START, size))
    yield image
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), image.read_bytes(), START)
    image.unlink()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_used(
    source: Path, volume: Volume, extents: Extents, target: Path, seed: int | None
) -> None:
    """Write only what the map names into a new file that was blank, or full of other noise."""
    filler = b"" if seed is None else noise(MIB, seed * 7_368_787)
    with source.open("rb") as reader, target.open("wb") as writer:
        for part in range(0, volume.length, MIB):
            writer.write(filler[: volume.length - part])
        writer.truncate(volume.length)
        for offset, length in extents.ranges.tolist():
            data = os.pread(reader.fileno(), length, volume.offset + offset)
            assert len(data) == length
            os.pwrite(writer.fileno(), data, offset)


def tree_digest(root: Path) -> dict[str, str]:
    """Return every file, link and directory below a folder with a hash of what it holds."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"link {path.readlink()}"
        elif path.is_dir():
            found[name] = "directory"
        else:
            found[name] = f"{path.stat().st_mode:o} {digest(path)}"
    return found


@dataclass(frozen=True)
class Patch:
    """Bytes of a file that are changed for one check, and put back."""

    path: Path
    offset: int
    data: bytes

    def __enter__(self) -> None:
        with self.path.open("r+b") as file:
            before = os.pread(file.fileno(), len(self.data), self.offset)
            os.pwrite(file.fileno(), self.data, self.offset)
        object.__setattr__(self, "before", before)

    def __exit__(self, *_: object) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), self.before, self.offset)  # type: ignore[attr-defined]


def covers(larger: Extents, smaller: Extents) -> bool:
    """Whether every byte of one map is in another."""
    ends = larger.ranges[:, 0] + larger.ranges[:, 1]
    for offset, length in smaller.ranges.tolist():
        index = int(ends.searchsorted(offset, side="right"))
        if index >= len(ends) or larger.ranges[index, 0] > offset or ends[index] < offset + length:
            return False
    return True


def assert_no_wrong_bit_makes_it_smaller(
    path: Path, places: Iterable[int], rng: random.Random
) -> None:
    """Assert that with any one bit wrong the map still holds all it should; or is everything."""
    volume, right = map_of(path)
    outcomes = set()
    for place in places:
        (byte,) = read(path, place, 1)
        with Patch(path, place, bytes([byte ^ 1 << rng.randrange(8)])):
            found = used(path, volume)
        assert covers(found, right), f"byte {place - START} of the volume"
        outcomes.add(found.method)
    assert "whole" in outcomes


def map_of(path: Path) -> tuple[Volume, Extents]:
    volume = volume_of(path)
    return volume, used(path, volume)


def assert_whole(path: Path, why: str, volume: Volume | None = None) -> None:
    """Assert that the partition is read whole, for a reason.

    Args:
        path: the disk.
        why: part of the reason.
        volume: as the probe saw it before something was changed; by default as it sees it now.
    """
    volume = volume or volume_of(path)
    extents = used(path, volume)
    assert extents.method == "whole"
    assert extents.ranges.tolist() == [[0, volume.length]]
    assert why in (extents.reason or "")
