"""NTFS, exFAT, F2FS and FAT as Linux itself writes them, and XFS and btrfs with features that are newer than Debian 12:
in a guest, whose kernel and tools know them all.

The guest makes each variant, fills it, lets it live and unmounts it; one is cut off instead. What
the maps leave out is then full of other bytes, and a second guest finds every file as it was.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from disk_files import copy_used, noise

from imager import blockdev
from imager.extents.used import used
from imager.probe.disk import probe_disk
from imager.units import MIB
from tests.guest import life
from tests.guest.guest import guest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LIFE = Path(life.__file__)


@dataclass(frozen=True)
class Kind:
    """A filesystem and its variants.

    Attributes:
        module: of the kernel, and type for `mount`.
        make: its mkfs; what follows are the options of each variant.
        check: its checker, which must find nothing.
        method: of its map.
        size: of each disk, in MiB.
        options: for `mount`.
    """

    module: str
    make: tuple[str, ...]
    variants: tuple[tuple[str, ...], ...]
    check: tuple[str, ...]
    method: str
    size: int
    options: str = ""


KINDS = {
    "f2fs": Kind(
        "f2fs",
        ("mkfs.f2fs", "-f"),
        (
            (),
            ("-O", "extra_attr,inode_checksum,inode_crtime,sb_checksum,flexible_inline_xattr"),
            ("-O", "extra_attr,compression"),
            ("-O", "encrypt,verity,lost_found"),
            ("-i",),
            ("-s", "2", "-z", "2", "-o", "30"),
            ("-O", "casefold", "-C", "utf8", "-l", "label"),
        ),
        ("fsck.f2fs", "--dry-run"),
        "F2FS segment table",
        120,
    ),
    "ntfs3": Kind(
        "ntfs3",
        ("mkntfs", "-q", "-F", "-Q"),
        (
            (),
            ("-c", "512"),
            ("-c", "65536"),
            ("-s", "4096", "-c", "8192"),
            ("-c", "1024"),
            ("-z", "3"),
        ),
        ("ntfsfix", "-n"),
        "NTFS cluster bitmap",
        64,
    ),
    "exfat": Kind(
        "exfat",
        ("mkfs.exfat",),
        ((), ("-c", "512"), ("-c", "128K"), ("-b", "8M"), ("-L", "label", "--pack-bitmap")),
        ("fsck.exfat", "-n"),
        "exFAT allocation bitmap",
        64,
    ),
    "vfat": Kind(
        "vfat",
        ("mkfs.fat",),
        (
            ("-F", "16"),
            ("-F", "32"),
            ("-F", "16", "-s", "16"),
            ("-F", "32", "-s", "1"),
            ("-F", "32", "-S", "1024"),
        ),
        ("fsck.fat", "-n"),
        "FAT",
        64,
        "iocharset=utf8",
    ),
    "xfs": Kind(
        "xfs",
        ("mkfs.xfs", "-q", "-f"),
        (("-n", "parent=1"), ("-n", "parent=1", "-i", "exchange=1"), ("-i", "nrext64=1")),
        ("xfs_repair", "-n"),
        "XFS free space trees",
        304,
    ),
    "btrfs": Kind(
        "btrfs",
        ("mkfs.btrfs", "-q", "-f"),
        (("-O", "block-group-tree"), ("-O", "squota,block-group-tree"), ("-O", "^no-holes,quota")),
        ("btrfs", "check", "--readonly"),
        "btrfs trees",
        160,
    ),
}

MAKE = """
import json, pathlib, subprocess, sys
import life
kind, options, make, variants = json.loads({job!r})
subprocess.run(["modprobe", kind], check=True)
place = pathlib.Path("/mnt")
found = []
for number, words in enumerate(variants):
    device = "/dev/vd" + "abcdefghijkl"[number]
    subprocess.run([*make, *words, device], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-t", kind, *options, device, place], check=True)
    life.fill(place, number, 70)
    life.churn(place, number)
    subprocess.run(["sync"], check=True)
    life.scatter(place, 30, 8192)
    life.fill(place, 50 + number, 30)
    life.churn(place, 90 + number)
    if number == len(variants) - 1:
        continue  # the power is cut
    subprocess.run(["umount", place], check=True)
    subprocess.run(["mount", "-t", kind, *options, "-o", "ro", device, place], check=True)
    found.append(life.state(place))
    subprocess.run(["umount", place], check=True)
print(json.dumps(found), flush=True)
"""

COMPARE = """
import json, pathlib, subprocess
import life
kind, options, check, count = json.loads({job!r})
subprocess.run(["modprobe", kind], check=True)
place = pathlib.Path("/mnt")
found = []
for number in range(count):
    device = "/dev/vd" + "abcdefghijkl"[number]
    done = subprocess.run([*check, device], capture_output=True, text=True)
    print(done.stdout[-3000:], done.stderr[-500:], file=__import__("sys").stderr)
    subprocess.run(["mount", "-t", kind, *options, "-o", "ro", device, place], check=True)
    found.append([done.returncode, life.state(place)])
    subprocess.run(["umount", place], check=True)
print(json.dumps(found), flush=True)
"""


@pytest.mark.parametrize("name", KINDS)
def test_what_linux_writes(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    variants = [*kind.variants, kind.variants[0]]
    options = ["-o", kind.options] if kind.options else []
    disks = [tmp_path / f"disk{number}" for number in range(len(variants))]
    for number, disk in enumerate(disks):
        disk.write_bytes(noise(kind.size * MIB, number))
    job = json.dumps([kind.module, options, kind.make, variants])
    machine = guest()
    printed = machine.run(
        MAKE.format(job=job), disks, tmp_path / "making", modules=(LIFE,), timeout=900
    )
    before = json.loads(printed.splitlines()[-1])
    copies = [tmp_path / f"copy{number}" for number in range(len(variants))]
    methods = []
    for disk, copy in zip(disks, copies, strict=True):
        (volume,) = probe_disk(disk, "disk0", blockdev.identify(disk).identity).volumes
        extents = used(disk, volume)
        copy_used(disk, volume, extents, copy, 99)
        methods.append((extents.method, extents.reason))
        assert extents.method == "whole" or extents.total < 0.8 * volume.length
    assert methods[:-1] == [(kind.method, None)] * len(kind.variants)
    if methods[-1][0] == "whole":  # equal in every byte
        assert "not unmounted cleanly" in (methods[-1][1] or "")
        del copies[-1]
    else:
        copies.append(disks[-1])
    job = json.dumps([kind.module, options, kind.check, len(copies)])
    printed = machine.run(
        COMPARE.format(job=job), copies, tmp_path / "comparing", modules=(LIFE,), timeout=900
    )
    after = json.loads(printed.splitlines()[-1])
    for words, state, (code, found) in zip(kind.variants, before, after, strict=False):
        assert code == 0, words
        assert len(state) > 60
        assert found == state, words
    if len(after) > len(before):
        assert after[-1] == after[-2], "what was cut off is damaged in the same way"
