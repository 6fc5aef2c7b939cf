"""Arrays on three disks, and what becomes of them on two of these; runs in the guest."""

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import layers

# Number of a partition: metadata, level, disks, words for mdadm. A third disk of two is a spare.
Arrays = dict[int, tuple[str, str, int, str]]


def make(arrays: Arrays) -> str:
    """Make the arrays with a filesystem in each, stop them, and return what the files in them are."""
    layers.load()
    found = {}
    for number, (metadata, level, disks, words) in arrays.items():
        devices = [f"/dev/vd{letter}{number}" for letter in "abc"]
        used = devices if disks == 3 or "spare" in words else devices[:disks]
        named = [] if metadata == "0.90" else [f"--name=m{number}", "--homehost=rack7"]
        layers.run(
            "mdadm", "--create", f"/dev/md{number}", f"--metadata={metadata}", f"--level={level}",
            *named, f"--raid-devices={disks}", "--run", *words.split(), *used,
        )  # fmt: skip
        layers.settle(f"/dev/md{number}")
        layers.run("mke2fs", "-q", "-t", "ext4", f"/dev/md{number}")
        layers.write(f"/dev/md{number}", "ext4", number)
        found[number] = content(f"/dev/md{number}")
    time.sleep(0.5)  # the arrays are marked clean a while after the last write
    layers.run("mdadm", "--stop", "--scan")
    return json.dumps(found)


def content(device: str) -> dict[str, str]:
    """Return a digest of each file on a filesystem."""
    layers.run("mount", "-o", "ro", device, str(layers.PLACE))
    try:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(layers.PLACE.iterdir())
            if path.is_file()
        }
    finally:
        layers.run("umount", str(layers.PLACE))


def incremental(device: str) -> None:
    """Add a device as udev does when it appears."""
    environment = {**os.environ, "MDADM_NO_UDEV": "1"}
    subprocess.run(["mdadm", "--incremental", device], check=False, env=environment)


def state(device: str) -> dict[str, str] | None:
    """Return what the kernel says of the array that a device is in; None when it is in none."""
    holders = list(Path("/sys/class/block", Path(device).name, "holders").iterdir())
    if not holders:
        return None
    told = holders[0] / "md"
    found = {"device": holders[0].name}
    for name in ("array_state", "degraded", "raid_disks", "resync_start"):
        found[name] = (told / name).read_text().strip() if (told / name).exists() else ""
    return found


def come_up(numbers: list[int], devices: str, *, stale: str = "") -> dict[str, object]:
    """Let partitions appear one by one, and return what comes of each array.

    Args:
        numbers: of the partitions.
        devices: letters of the restored disks.
        stale: letter of a disk that was left out and appears first.
    """
    found: dict[str, object] = {}
    for number in numbers:
        parts = [f"/dev/vd{letter}{number}" for letter in devices]
        parts = [part for part in parts if is_member(part)]
        old = f"/dev/vd{stale}{number}" if stale else ""
        for part in [old, *parts] if old else parts:
            incremental(part)
        said = state(parts[0])
        named: dict[str, object] = {"state": said, "stale": state(old) if old else None}
        if said is not None and said["array_state"] not in {"inactive", "clear"}:
            named["files"] = content(f"/dev/{said['device']}")
            layers.settle(f"/dev/{said['device']}")
            named["settled"] = state(parts[0])
            named["again"] = content(f"/dev/{said['device']}")
        found[str(number)] = named
    layers.run("mdadm", "--stop", "--scan")
    return found


def is_member(device: str) -> bool:
    done = subprocess.run(["mdadm", "--examine", device], check=False, capture_output=True)
    return done.returncode == 0


def examine(arrays: Arrays) -> str:
    """Return what becomes of restored disks a and b, of c and d that nobody marked, and beside old e."""
    layers.load()
    numbers = list(arrays)
    found = {
        "examined": {
            number: layers.run("mdadm", "--examine", f"/dev/vda{number}") for number in numbers
        },
        "marked": come_up(numbers, "ab"),
        "unmarked": come_up(numbers, "cd"),
        "beside": come_up(numbers, "ab", stale="e"),
    }
    return json.dumps(found)
