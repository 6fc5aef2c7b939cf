"""The devices of restored disks, with the arrays and volumes on them, opened for a short while.

Only what lies on these disks is ever named to mdadm and LVM, so an old disk of the same machine that
is attached as well stays untouched, whatever its names.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from imager import process, sysfs
from imager.errors import ProgramError
from restore.boot_steps import DiskDrivers
from restore.udev import settle

_NOTHING: Final = (2, 8)  # blkid's exit codes for no signature, and for several that contradict
_FIRST_ARRAY: Final = 200  # number of the first device that is looked at for a free one
# Volumes that open without a write to what LVM itself keeps on the disks.
_PLAIN: Final = frozenset({"linear", "striped"})
_TAGS: Final = {
    "UUID": "ID_FS_UUID_ENC",
    "LABEL": "ID_FS_LABEL_ENC",
    "PARTUUID": "ID_PART_ENTRY_UUID",
    "PARTLABEL": "ID_PART_ENTRY_NAME",
}
_BY_TAG: Final = re.compile(r"/dev/disk/by-(uuid|label|partuuid|partlabel)/(.+)")
# Device nodes are made by mdadm and LVM themselves: udev's rules for them are not on the rescue
# medium, so that nothing is opened there by itself.
_NO_UDEV: Final = {"MDADM_NO_UDEV": "1", "DM_DISABLE_UDEV": "1"}


@dataclass(frozen=True, slots=True)
class Device:
    """A block device on the restored disks.

    Attributes:
        path: its node.
        type: what libblkid finds on it, or an empty string.
        tags: what it can be found by, such as ("UUID", "1f3…").
        names: paths that files of the machine may call it by.
    """

    path: Path
    type: str
    tags: frozenset[tuple[str, str]]
    names: frozenset[str]

    @property
    def uuid(self) -> str:
        """UUID of what is on it, or an empty string."""
        return next((value for tag, value in self.tags if tag == "UUID"), "")

    def is_called(self, source: str) -> bool:
        """Return whether the first field of a line in /etc/fstab means this device."""
        by_tag = _BY_TAG.fullmatch(source)
        if by_tag is not None:
            source = f"{by_tag[1].upper()}={_plain(by_tag[2])}"
        tag, _, value = source.partition("=")
        if tag in _TAGS:
            wanted = _value(tag, value.strip("\"'"))
            return any(wanted == _value(tag, has) for each, has in self.tags if each == tag)
        return source in self.names


class Devices:
    """All devices on some disks; arrays and volumes are closed again when the stack unwinds.

    Args:
        disks: restored, and used by nobody.
        stack: takes what has to be undone.
        writable: whether arrays and volumes are opened for writing.

    Raises:
        ProgramError: a disk can't be looked at.
    """

    def __init__(self, disks: Sequence[DiskDrivers], stack: ExitStack, *, writable: bool) -> None:
        self._stack = stack
        self._writable = writable
        self._found: dict[Path, Device] = {}
        self._closed: dict[str, str] = {}
        self._notes: list[str] = []
        self._disks = disks
        settle()
        for disk in disks:
            self._add_disk(disk)
        # An array may hold a physical volume, and a volume a member of an array.
        while True:
            before = len(self._found)
            self._open_arrays()
            self._open_volumes()
            if len(self._found) == before:
                break

    @property
    def all(self) -> tuple[Device, ...]:
        """All that were found so far."""
        return tuple(self._found.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be opened."""
        return tuple(self._notes)

    @property
    def closed(self) -> tuple[str, ...]:
        """Volumes that are not opened, with their type: LVM or the kernel would write for them."""
        return tuple(f"{path} ({kind})" for path, kind in self._closed.items())

    def of_type(self, *types: str) -> tuple[Device, ...]:
        """Return the devices with one of these contents."""
        return tuple(device for device in self.all if device.type in types)

    def called(self, source: str) -> Device | None:
        """Return the device that a line in /etc/fstab means, or None where it is none of these."""
        names = (disk.old_name(source) for disk in self._disks)
        meant = next((name for name in names if name is not None), source)
        return next((device for device in self.all if device.is_called(meant)), None)

    def _add_disk(self, disk: DiskDrivers) -> None:
        path = disk.target.path
        parts = sysfs.partitions(sysfs.node_at(path))
        if not parts:
            self._add(path, disk.origin)
        for part in parts:
            number = sysfs.read_text(part / "partition")
            self._add(sysfs.device_path(part), disk.partition(number))

    def _add(self, path: Path, *names: str) -> Device:
        text = process.run("blkid", "--probe", "--output", "udev", path, accept=(0, *_NOTHING))
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        device = Device(
            path=path,
            type="" if "ID_FS_AMBIVALENT" in values else values.get("ID_FS_TYPE", ""),
            tags=frozenset(
                (tag, _plain(values[key])) for tag, key in _TAGS.items() if key in values
            ),
            names=frozenset(names),
        )
        self._found[path] = device
        return device

    def _open_arrays(self) -> None:
        opened = {member for device in self.all for member in _members(device.path)}
        arrays: dict[str, list[Path]] = {}
        for device in self.of_type("linux_raid_member"):
            if device.path not in opened:
                arrays.setdefault(device.uuid, []).append(device.path)
        for members in arrays.values():
            try:
                self._open_array(members)
            except ProgramError as error:
                self._notes.append(f"an array was not opened: {error.message}")

    def _open_array(self, members: Sequence[Path]) -> None:
        device = next(
            path
            for number in range(_FIRST_ARRAY, _FIRST_ARRAY + 1000)
            if not (sysfs.BLOCK / (path := Path(f"/dev/md{number}")).name).exists()
        )
        mode = () if self._writable else ("--readonly",)
        process.run("mdadm", "--assemble", device, "--run", *mode, *members, env=_NO_UDEV)
        self._stack.callback(_stop_array, device)
        said = process.run("mdadm", "--detail", "--export", device)
        values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        names = [f"/dev/md/{values['MD_DEVNAME']}"] if "MD_DEVNAME" in values else []
        if "MD_NAME" in values:
            names.append(f"/dev/md/{values['MD_NAME'].rpartition(':')[2]}")
        settle()
        self._add(device, *names)
        for part in sysfs.partitions(sysfs.node_at(device)):
            self._add(sysfs.device_path(part))

    def _open_volumes(self) -> None:
        physical = [device.path for device in self.of_type("LVM2_member")]
        if not physical:
            return
        groups: dict[str, list[dict[str, str]]] = {}
        try:
            for volume in self._volumes(physical):
                if Path(volume["lv_dm_path"]) in self._found:
                    continue
                if volume["segtype"] in _PLAIN:
                    groups.setdefault(volume["vg_name"], []).append(volume)
                else:
                    self._closed[volume["lv_path"]] = volume["segtype"]
            for group, volumes in groups.items():
                self._open_group(physical, group, volumes)
        except ProgramError as error:
            self._notes.append(f"volumes of LVM were not opened: {error.message}")

    def _volumes(self, physical: Sequence[Path]) -> Iterator[dict[str, str]]:
        fields = "vg_name,lv_full_name,lv_dm_path,lv_path,segtype"
        text = _lvm("lvs", physical, (), "--reportformat", "json", "--options", fields)
        report: dict[str, Any] = json.loads(text)
        seen = set()
        for volume in report["report"][0]["lv"]:
            if volume["lv_full_name"] not in seen:  # one line for each segment
                seen.add(volume["lv_full_name"])
                yield volume

    def _open_group(
        self, physical: Sequence[Path], group: str, volumes: Sequence[dict[str, str]]
    ) -> None:
        read_only = () if self._writable else (group,)
        self._stack.callback(_close_group, tuple(physical), group)
        for volume in volumes:
            try:
                _lvm("lvchange", physical, read_only, "--activate", "y", volume["lv_full_name"])
            except ProgramError as error:
                self._notes.append(f"{volume['lv_path']} was not opened: {error.message}")
                continue
            settle()
            self._add(Path(volume["lv_dm_path"]), volume["lv_dm_path"], volume["lv_path"])


def _lvm(verb: str, physical: Sequence[Path], read_only: Sequence[str], *words: str) -> str:
    """Run LVM so that it knows of no device but those named."""
    config = (
        "devices { use_devicesfile=0 } backup { backup=0 archive=0 } "
        "activation { monitoring=0 "
        + (f"read_only_volume_list={json.dumps(list(read_only))} " if read_only else "")
        + "}"
    )
    devices = ",".join(map(str, physical))
    return process.run(verb, "--config", config, "--devices", devices, *words, env=_NO_UDEV)


def _close_group(physical: Sequence[Path], group: str) -> None:
    settle()
    _lvm("vgchange", physical, (), "--activate", "n", group)


def _stop_array(device: Path) -> None:
    settle()
    process.run("mdadm", "--stop", device, env=_NO_UDEV)


def _members(device: Path) -> frozenset[Path]:
    slaves = sysfs.node_at(device) / "slaves"
    return frozenset(
        sysfs.device_path(slave.resolve())
        for slave in (slaves.iterdir() if slaves.is_dir() else ())
    )


def _plain(text: str) -> str:
    r"""Undo udev's encoding, which writes unusual bytes as \xNN."""
    raw = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return raw.decode(errors="replace")


def _value(tag: str, value: str) -> str:
    return value.lower() if tag.endswith("UUID") else value
