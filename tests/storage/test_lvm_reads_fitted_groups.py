"""Volume groups that are laid out anew: LVM's own tools and GRUB read them, and LVM goes on with them.

The kernel of the host has no device-mapper; volumes are described, never activated.
"""

import json
import os
from pathlib import Path

import pytest
from lvm_tools import run, tools

from imager import process
from imager.blockdev import open_disk
from imager.layout.filesystem import Filesystem
from imager.probe.lvm_label import read_label, read_text, with_text
from imager.probe.lvm_text import parse, render
from imager.units import MIB
from restore.linear_group import FittedGroup, LinearGroup, LinearVolume, fit, pairs, read_group

SIZE, SMALLER, LARGER = 200 * MIB, 120 * MIB, 300 * MIB
VOLUMES = {"gone": 30, "root": 40, "away": 5, "swap": 30, "var": 20}
MESSAGE = "It was moved.\n"


def new_volume(folder: Path, name: str, extents: int) -> None:
    run(
        folder, "lvcreate", "-an", "-Zn", "-Wn", "-y", "-n", name, "-l", str(extents), "system"
    )  # fmt: skip


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group that has holes, volumes of several segments, and an ext4 in what lies last."""
    folder = tmp_path_factory.mktemp("group")
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
    with tools(folder, path) as (device,):
        run(folder, "pvcreate", "-y", device)
        run(folder, "vgcreate", "-s", "1m", "--addtag", "ward-3", "system", device)
        for name, extents in VOLUMES.items():
            new_volume(folder, name, extents)
        run(folder, "lvremove", "-y", "system/gone", "system/away")
        run(folder, "lvextend", "-l", "+12", "system/root")
        run(folder, "lvchange", "--addtag", "kept", "system/root")
        new_volume(folder, "boot", 17)
        run(folder, "lvremove", "-y", "system/boot")
        run(folder, "lvcreate", "-an", "-Zn", "-Wn", "-y", "-n", "boot", "-l", "20", "system",
            f"{device}:150-169")  # fmt: skip
    (folder / "files").mkdir()
    (folder / "files" / "message").write_text(MESSAGE)
    place = f"offset={MIB + 150 * MIB}"
    process.run("mke2fs", "-q", "-t", "ext4", "-E", place, "-d", folder / "files", path, "20m")
    return path


def group_on(path: Path) -> tuple[LinearGroup, str]:
    size = path.stat().st_size
    with open_disk(path) as fd:
        label = read_label(fd, 0, size)
        text = read_text(fd, 0, size, label.metadata[0])
    return read_group(text, label.identifier), text


def laid_out(disk: Path, path: Path, size: int, grows: str | None = None) -> FittedGroup:
    """Make a disk with the group of another; swap and root give what is missing."""
    group, _ = group_on(disk)
    kinds = [Filesystem("swap" if each.name == "swap" else "ext4") for each in group.volumes]
    gives = {"root", "swap"}

    def least(each: LinearVolume) -> int:
        return (20 if each.name in gives else each.extents) * MIB

    fitted = fit("disk0/whole", group, size, kinds, least, grows)
    old = disk.read_bytes()
    with path.open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), with_text(old[:MIB], size, fitted.text), 0)
        for saved, here in zip(group.volumes, fitted.volumes, strict=True):
            for before, after, count in pairs(saved, here):
                data = old[MIB + before * MIB : MIB + (before + count) * MIB]
                os.pwrite(file.fileno(), data, MIB + after * MIB)
    return fitted


def report(folder: Path, verb: str, fields: str, *words: str) -> list[dict[str, str]]:
    text = run(
        folder, verb, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, *words
    )
    (found,) = json.loads(text)["report"]
    (rows,) = found.values()
    return [dict(row) for row in rows]


def test_the_text_is_written_as_lvm_writes_it(disk: Path) -> None:
    _, text = group_on(disk)
    lines = [line.partition("\t#")[0] for line in text.splitlines()]
    assert render(parse(text)).splitlines() == [
        line for line in lines if line and not line.startswith("#")
    ]


@pytest.mark.parametrize(("size", "grows"), [(SMALLER, None), (LARGER, "root"), (LARGER, None)])
def test_lvm_finds_the_group_in_order_and_goes_on_with_it(
    disk: Path, tmp_path: Path, size: int, grows: str | None
) -> None:
    path = tmp_path / "disk"
    fitted = laid_out(disk, path, size, grows)
    ids = "vg_uuid,vg_tags,lv_name,lv_uuid,lv_tags"
    with tools(tmp_path, disk):
        before = report(tmp_path, "lvs", f"{ids},vg_seqno", "system")
    with tools(tmp_path, path):
        run(tmp_path, "vgck", "system")
        after = report(tmp_path, "lvs", f"{ids},vg_seqno", "system")
        (own,) = report(tmp_path, "pvs", "pv_size,dev_size,pv_pe_count,pv_pe_alloc_count")
        found = report(tmp_path, "lvs", "lv_name,seg_start_pe,seg_size_pe,seg_pe_ranges", "system")
        if size == LARGER and grows is None:
            new_volume(tmp_path, "more", 1)
        run(tmp_path, "lvchange", "--addtag", "again", "system/root")
        run(tmp_path, "vgck", "system")
    assert {int(row.pop("vg_seqno")) for row in after} == {
        int(row.pop("vg_seqno")) + 1 for row in before
    }
    assert after == before
    assert int(own["dev_size"]) == size
    assert int(own["pv_pe_count"]) == size // MIB - 1
    runs = {
        (volume.name, run_.count, run_.first) for volume in fitted.volumes for run_ in volume.runs
    }
    assert {
        (row["lv_name"], int(row["seg_size_pe"]), int(row["seg_pe_ranges"].split(":")[1].split("-")[0]))
        for row in found
    } == runs  # fmt: skip


def test_grub_reads_a_file_in_a_volume_that_moved(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    fitted = laid_out(disk, path, SMALLER)
    (boot,) = (volume for volume in fitted.volumes if volume.name == "boot")
    assert boot.runs[0].first < 150
    shown = process.run("grub-fstest", path, "cat", "(lvm/system-boot)/message")
    assert shown == MESSAGE
