"""Disks that stay in the machine and carry what the restored disks will carry: stale twins.

The old disk of a mirror that was left in a bay, or a clone from the day before, has the same ids as
what is restored. The restored machine would see everything twice: md may start the old half, LVM
refuses groups of one name, and a filesystem is mounted from whichever comes first.
"""

from collections.abc import Iterable, Iterator

from imager.blockdev import BlockDisk
from imager.errors import RemetalError
from imager.layout.disk import Disk
from imager.layout.layers import Layers
from imager.layout.machine import Machine
from imager.layout.partition_table import TableKind
from imager.probe.disk import probe_disk
from imager.probe.layers import read_layers
from restore.match import describe

# Told of as layers, or by what is in them.
_LAYER_TYPES = frozenset({"linux_raid_member", "LVM2_member", "crypto_LUKS", "bcache"})


def twin_notes(machine: Machine, disks: Iterable[BlockDisk]) -> tuple[str, ...]:
    """Return a note for each of these disks that carries something of the machine.

    Only reads. A disk that can't be read or understood says nothing: it is not restored to, and
    must not hold up a restore.

    Args:
        machine: of the image.
        disks: of this machine that are not restored to.
    """
    saved = dict(_marks(machine.disks, machine.layers))
    return tuple(note for disk in disks if (note := _note(disk, saved)) is not None)


def _note(disk: BlockDisk, saved: dict[tuple[str, str], str]) -> str | None:
    try:
        found = probe_disk(disk.path, "disk0", disk.identity)
        layers = read_layers([(disk.path, found)])
    except RemetalError:
        return None
    same = [words for mark, words in _marks([found], layers) if mark in saved]
    if not same:
        return None
    listed = ", ".join(dict.fromkeys(same))
    return (
        f"{describe(disk.path, disk.identity)} is not restored to and carries the same as this "
        f"machine: {listed}. Detach it before the restored machine starts, or wipe it: the machine "
        "would see two of each, and may take the old one."
    )


def _marks(disks: Iterable[Disk], layers: Layers) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield all by which disks are told apart, and what each is called."""
    for disk in disks:
        if disk.table is not None and disk.table.kind is TableKind.GPT:
            yield ("table", disk.table.id), f"GPT {disk.table.id}"
        for volume in disk.volumes:
            filesystem = volume.filesystem
            if filesystem and filesystem.uuid and filesystem.type not in _LAYER_TYPES:
                yield ("filesystem", filesystem.uuid), f"{filesystem.type} {filesystem.uuid}"
    yield from _layer_marks(layers)


def _layer_marks(layers: Layers) -> Iterator[tuple[tuple[str, str], str]]:
    for array in layers.md:
        yield ("md", array.uuid), array.title
        inside = array.filesystem
        if inside and inside.uuid and inside.type not in _LAYER_TYPES:
            yield ("filesystem", inside.uuid), f"{inside.type} {inside.uuid}"
    for container in layers.luks:
        yield ("luks", container.uuid), f"{container.title} {container.uuid}"
    for group in layers.volume_groups:
        yield ("group", group.uuid), f"VG '{group.name}'"
        yield ("group name", group.name), f"VG '{group.name}'"
    for pool in layers.btrfs:
        yield ("filesystem", pool.uuid), f"btrfs {pool.uuid}"
    for device in layers.bcache:
        yield ("bcache", device.uuid), device.title
