"""An image in memory: the smallest thing that keeps the reader's promises."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from imager.errors import LinkError
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.machine import Machine
from imager.repository.delivery import Report, Take
from imager.stages import Lane, Stages
from restore.runs import RUN

ZERO = bytes(32)
FREE = b"\xff" * 32


def identify(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass
class MemoryImage:
    machine: Machine
    runs: Mapping[str, list[tuple[int, bytes]]]
    store: dict[bytes, bytes]
    asked: list[int] = field(default_factory=list)

    def map_parts(self, volume_id: str) -> Iterator[np.ndarray]:
        runs = np.array(self.runs[volume_id], dtype=RUN)
        yield from np.array_split(runs, range(3, len(runs), 3))

    def map_from(self, volume_id: str, start: int) -> Iterator[tuple[int, np.ndarray]]:
        position = 0
        for part in self.map_parts(volume_id):
            end = position + int(part["length"].sum())
            if end > start:
                yield position, part
            position = end

    def lanes(self, taking: Sequence[str]) -> tuple[Lane, ...]:
        return (Lane("open", 1, ("fetch", "open", *taking)),)

    def deliver(self, ids: np.ndarray, take: Take, done: Report, _stages: Stages) -> None:
        numbers = {row.tobytes(): number for number, row in enumerate(ids)}
        assert len(numbers) == len(ids)
        self.asked.append(len(ids))
        for identity, data in self.stored(sorted(numbers)):  # not the disk's order
            take([numbers[identity]], [memoryview(data)], done)

    def stored(self, ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for identity in ids:
            yield identity, self.store[identity]

    def identify(self, data: bytes | memoryview) -> bytes:
        return identify(data)

    def chunks(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        return dict(self.stored(ids))


def image_of(
    machine: Machine, content: Mapping[str, Sequence[bytes | tuple[str, int]]]
) -> MemoryImage:
    """Build an image; the content of a volume is a list of bytes, ("zero", n) and ("free", n)."""
    store: dict[bytes, bytes] = {}
    runs: dict[str, list[tuple[int, bytes]]] = {}
    for _, volume in machine.volumes():
        runs[volume.id] = []
        for part in content.get(volume.id, [("zero", volume.length)]):
            if isinstance(part, tuple):
                runs[volume.id].append((part[1], {"zero": ZERO, "free": FREE}[part[0]]))
            else:
                store[identify(part)] = part
                runs[volume.id].append((len(part), identify(part)))
    return MemoryImage(machine, runs, store)


def disk(
    name: str = "disk0",
    size: int = 64 << 20,
    volumes: Sequence[Volume] = (),
    **identity: object,
) -> Disk:
    known = DiskIdentity(size=size, logical_sector=512)
    return Disk(
        id=name,
        origin="/dev/sda",
        identity=replace(known, **identity),
        table=None,
        volumes=tuple(volumes) or (Volume(f"{name}/whole", VolumeRole.WHOLE_DISK, 0, size),),
    )


def machine(*disks: Disk, firmware: Firmware | None = None) -> Machine:
    return Machine(
        id="6e0f",
        name="web1",
        architecture="x86_64",
        firmware=firmware or Firmware(FirmwareKind.BIOS),
        disks=disks,
    )


def ext4(label: str | None = None) -> Filesystem:
    return Filesystem("ext4", "0b4f", label)


class Cut(MemoryImage):
    """An image in a repository whose link breaks after some chunks."""

    left = 0

    def stored(self, ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for found in super().stored(ids):
            if not self.left:
                raise LinkError("the link is gone")
            self.left -= 1
            yield found


def cut_after(image: MemoryImage, chunks: int) -> Cut:
    cut = Cut(image.machine, image.runs, image.store)
    cut.left = chunks
    return cut
