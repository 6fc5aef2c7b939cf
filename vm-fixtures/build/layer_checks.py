"""What makes no sense about md, LUKS and LVM of a fixture machine, although each value is of its type."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from spec import Luks, Machine, Md, VolumeGroup, VolumeType

_MD_UUID: Final = re.compile(r"[0-9a-f]{8}(:[0-9a-f]{8}){3}")
_METADATA: Final = ("0.90", "1.0", "1.1", "1.2")
_LEAST_MEMBERS: Final = {0: 2, 1: 2, 5: 3, 6: 4, 10: 2}


def layer_problems(machine: Machine) -> Iterator[str]:
    """Yield what is wrong with layers, each with its place."""
    devices = list(machine.devices())
    for name, count in sorted(Counter(devices).items()):
        if count > 1:
            yield f"name: {name!r} names two devices"
    layered = list(_layered(machine))
    for name in layered:
        if name not in devices:
            yield f"on: there is no {name!r}; there are {', '.join(sorted(devices))}"
    for name, count in sorted(Counter([*layered, *_held(machine)]).items()):
        if count > 1:
            yield f"on: {name!r} is taken twice"
    for md in machine.md:
        yield from (f"md ({md.name}): {problem}" for problem in _md_problems(md))
    for luks in machine.luks:
        yield from (f"luks ({luks.name}): {problem}" for problem in _luks_problems(luks))
    for group in machine.group:
        yield from (f"group ({group.name}): {problem}" for problem in _group_problems(group))


def _layered(machine: Machine) -> Iterator[str]:
    """Yield every device that an array, a container or a group takes."""
    for md in machine.md:
        yield from md.members
    yield from (luks.on for luks in machine.luks)
    for group in machine.group:
        yield from group.on


def _held(machine: Machine) -> Iterator[str]:
    """Yield every device that a filesystem takes, once; subvolumes share that of their btrfs."""
    yield from {each.on for each in machine.filesystem}
    yield from {each.mirror for each in machine.filesystem if each.mirror is not None}


def _md_problems(md: Md) -> Iterator[str]:
    if md.level not in _LEAST_MEMBERS:
        yield f"level: {md.level} is none of {', '.join(map(str, _LEAST_MEMBERS))}"
    elif len(md.members) < _LEAST_MEMBERS[md.level]:
        yield f"members: level {md.level} needs at least {_LEAST_MEMBERS[md.level]}"
    if md.metadata not in _METADATA:
        yield f"metadata: {md.metadata} is none of {', '.join(_METADATA)}"
    if not _MD_UUID.fullmatch(md.uuid):
        yield "uuid: it has four groups of eight hexadecimal digits, with colons between"
    if md.bitmap and md.level == 0:
        yield "bitmap: level 0 has nothing to note in one"


def _luks_problems(luks: Luks) -> Iterator[str]:
    if luks.version not in {1, 2}:
        yield f"version: {luks.version} is neither 1 nor 2"


def _group_problems(group: VolumeGroup) -> Iterator[str]:
    if "-" in group.name or any("-" in volume.name for volume in group.volume):
        yield "name: device-mapper doubles dashes; do without"
    has_pool = False
    for volume in group.volume:
        if volume.type is VolumeType.THIN and not has_pool:
            yield f"volume {volume.name}: no thin-pool comes before it"
        has_pool = has_pool or volume.type is VolumeType.THIN_POOL
