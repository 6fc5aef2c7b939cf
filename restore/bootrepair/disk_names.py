"""What the files of a restored system call its disks, and what stays when the disks are others.

The kernel numbers disks as it finds them, and /dev/disk/by-id is made of what a maker gave them: on
other disks both may mean another one, or none. UUIDs are in what was restored.
"""

import re
from collections.abc import Sequence
from typing import Final

from restore.boot_steps import DiskDrivers
from restore.bootrepair.devices import Device, Devices

_LEAST_MARK: Final = 8  # characters of an id; a shorter one may be anything, anywhere
# Members of something have its UUID, and several have the same.
_MEMBERS: Final = frozenset({"", "LVM2_member", "linux_raid_member"})


class DiskNames:
    """Names of the old machine's disks, as its files write them.

    Args:
        disks: that were restored.
        devices: on them.
    """

    def __init__(self, disks: Sequence[DiskDrivers], devices: Devices) -> None:
        self._disks = disks
        self.devices = devices
        origins = "|".join(re.escape(disk.origin) for disk in disks if disk.has_names)
        self._kernels_own = re.compile(rf"(?:{origins})(?:p?\d+)?" if origins else r"(?!)")

    def lost(self, name: str) -> Device | None:
        """Return the device that a path of the old machine meant, if it has that name no longer."""
        for disk in self._disks:
            if disk.old_name(name) is not None:
                return self.devices.called(name) if disk.is_other else None
        if self._kernels_own.fullmatch(name) is None:
            return None
        device = self.devices.called(name)
        return device if device is not None and str(device.path) != name else None

    def lasting(self, device: Device, *, as_partition: bool = False) -> str | None:
        """Return what a device is called for good, as `UUID=…` or `PARTUUID=…`, or None.

        Args:
            device: on the restored disks.
            as_partition: whatever is on it, such as for the kernel, which knows partitions only.
        """
        tags = dict(device.tags)
        same = [each for each in self.devices.all if each.uuid == device.uuid]
        is_one = len(same) == 1 or device.type == "btrfs"
        if "UUID" in tags and device.type not in _MEMBERS and is_one and not as_partition:
            return f"UUID={tags['UUID']}"
        return f"PARTUUID={tags['PARTUUID']}" if "PARTUUID" in tags else None

    def marks(self) -> tuple[str, ...]:
        """Return what files hold where they speak of disks that are gone, in whatever words."""
        found: dict[str, None] = {}
        for disk in self._disks:
            if disk.has_names and disk.origin != str(disk.target.path):
                found[disk.origin] = None
            if disk.is_other:
                found.update(dict.fromkeys(each for each in disk.ids if len(each) >= _LEAST_MARK))
        return tuple(found)
