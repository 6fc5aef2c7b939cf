"""Plans for images in memory, and what must come of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from memory_image import MemoryImage, disk

from imager import blockdev
from imager.blockdev import BlockDisk
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from restore.circumstances import Wishes
from restore.execute import execute
from restore.fit_planner import Fitter
from restore.match import Basis, Match, Survey
from restore.plan import Plan
from restore.planner import make_plan
from restore.steps import Subject
from restore.targets import surroundings

SUBJECT = Subject(repository="5e11", image="4f2a", machine="web1", taken="then")


def plan_for(
    image: MemoryImage,
    *targets: Path,
    wishes: Wishes,
    size: int | None = None,
    as_devices: bool = False,
) -> Plan:
    matches = []
    for saved, path in zip(image.machine.disks, targets, strict=True):
        if path.exists():
            found = replace(blockdev.identify(path), is_device=as_devices)
            matches.append(Match(saved, found, Basis.NAMED))
            continue
        identity = DiskIdentity(size or saved.identity.size, 512)
        new = BlockDisk(path, identity, (), read_only=False, removable=False, is_device=False)
        matches.append(Match(saved, new, Basis.NAMED, is_new=True))
    return make_plan(
        image,
        matches,
        subject=SUBJECT,
        wishes=wishes,
        fitter=Fitter(image, wishes),
        surroundings=replace(surroundings(image.machine, matches, Survey((), {}, {})), uefi=False),
    )


def old(folder: Path, size: int) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(b"\xa5" * size)
    return path


def go(
    image: MemoryImage,
    target: Path,
    wishes: Wishes,
    announce: Callable[[str], None] = lambda _: None,
) -> Plan:
    plan = plan_for(image, target, wishes=wishes, as_devices=True)
    moved: list[int] = []
    execute(
        plan,
        image,
        advance=moved.append,
        record=lambda _: None,
        measure=lambda _name, _stages: None,
        log=str,
        announce=announce,
    )
    assert sum(moved) == plan.written + plan.verified
    return plan


def two_parts(name: str, size: int) -> Disk:
    """A disk with a boot area of 64 KiB, a partition, and a gap of 64 KiB at the end."""
    edge = 1 << 16
    return disk(
        name,
        size,
        (
            Volume(f"{name}/boot-area", VolumeRole.BOOT_AREA, 0, edge),
            Volume(f"{name}/p1", VolumeRole.PARTITION, edge, size - 2 * edge, 1),
            Volume(f"{name}/gap1", VolumeRole.GAP, size - edge, edge),
        ),
    )


def expected(image: MemoryImage, saved: Disk, *, free: bytes = b"\0") -> bytes:
    """The bytes of a restored disk, built the slow way."""
    content = bytearray(saved.identity.size)
    for volume in saved.volumes:
        position = volume.offset
        for length, identity in image.runs[volume.id]:
            if identity in image.store:
                content[position : position + length] = image.store[identity]
            elif identity == b"\xff" * 32:
                content[position : position + length] = free * length
            position += length
    return bytes(content)
