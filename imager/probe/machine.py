"""A machine: its name, its stable id, its firmware and its disks."""

import platform
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager import blockdev
from imager.blockdev import WriteMark
from imager.errors import SourceError, UsageError
from imager.layout.disk import Disk, DiskIdentity
from imager.layout.machine import Machine
from imager.layout.network import NetworkCard
from imager.probe.disk import probe_disk
from imager.probe.firmware import infer_firmware, read_firmware
from imager.probe.layers import read_layers
from imager.probe.network import read_cards

_PRODUCT_UUID: Final = Path("/sys/class/dmi/id/product_uuid")
_MACHINE_ID: Final = Path("/etc/machine-id")
# Not random: ids of disk files must come out the same for ever.
_NAMESPACE: Final = uuid.UUID("d1f14e2c-5c8e-4b5b-9c3e-6f6d2a3f1b77")
# What mainboard makers leave in when they forget to set it: of no use as an identity.
_PLACEHOLDERS: Final = frozenset(
    {
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "03000200-0400-0500-0006-000700080009",
        "12345678-1234-5678-90ab-cddeefaabbcc",
        "00020003-0004-0005-0006-000700080009",
    }
)


@dataclass(frozen=True, slots=True)
class ProbeSource:
    """A disk to be probed.

    Attributes:
        path: what to read.
        origin: what people call it: the path they gave.
        identity: what it is recognised by.
        of_this_machine: a disk that is built into the machine that runs this.
        marks: of the disk, or of each file that it is made of, from before anything was read.
    """

    path: Path
    origin: str
    identity: DiskIdentity
    of_this_machine: bool
    marks: tuple[WriteMark, ...]


def probe_machine(sources: Sequence[ProbeSource], name: str, *, every_gap: bool = False) -> Machine:
    """Return the machine that the disks make up.

    If all are built into the machine that runs this, its id, firmware and network cards are asked;
    otherwise the disks speak for themselves, nothing is known of network cards, and the
    architecture is taken to be the one of this machine.
    `every_gap` keeps unpartitioned space of any size.

    Raises:
        UsageError: no disk at all.
        SourceError: as `probe_disk`.
    """
    if not sources:
        raise UsageError("there is no disk to look at")
    disks = tuple(
        probe_disk(
            source.path,
            f"disk{index}",
            source.identity,
            origin=source.origin,
            every_gap=every_gap,
        )
        for index, source in enumerate(sources)
    )
    layers = read_layers([(source.path, disk) for source, disk in zip(sources, disks, strict=True)])
    is_here = all(source.of_this_machine for source in sources)
    return Machine(
        id=(this_machine_id() if is_here else None) or _id_of_disks(disks),
        name=name,
        architecture=platform.machine(),
        firmware=read_firmware() if is_here else infer_firmware(disks, layers),
        disks=disks,
        layers=layers,
        cards=_cards_here(sources) if is_here else (),
    )


def _cards_here(sources: Sequence[ProbeSource]) -> tuple[NetworkCard, ...]:
    try:
        system = blockdev.disks_under(Path("/"))
    except (OSError, SourceError):
        system = frozenset()
    return read_cards((source.path for source in sources), system)


def this_machine_id(
    product_uuid: Path = _PRODUCT_UUID, machine_id: Path = _MACHINE_ID
) -> str | None:
    """Return the DMI UUID of this machine in lower case, else its machine-id, else None.

    The rescue medium has no machine-id of its own, so that it never stands for a machine.
    """
    try:
        found = str(uuid.UUID(product_uuid.read_text().strip()))
    except (OSError, ValueError):
        found = ""
    if found and found not in _PLACEHOLDERS:
        return found
    try:
        text = machine_id.read_text().strip()
    except OSError:
        return None
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else None


def _id_of_disks(disks: Sequence[Disk]) -> str:
    """Return a UUID made from what stays the same about disks between two captures."""
    words = []
    for disk in disks:
        marks = [
            disk.identity.wwn,
            disk.identity.serial,
            disk.table.id if disk.table else None,
            *(volume.filesystem.uuid for volume in disk.volumes if volume.filesystem),
        ]
        known = [mark for mark in marks if mark]
        words.append(" ".join(known) if known else disk.origin)
    return str(uuid.uuid5(_NAMESPACE, "\n".join(words)))
