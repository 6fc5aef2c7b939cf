"""Paths and devices as a restored system means them, not the one that restores it."""

from pathlib import Path

import pytest

from restore.bootrepair.devices import Device
from restore.bootrepair.systems import inside, read_fstab


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "root"
    (found / "usr/lib").mkdir(parents=True)
    (found / "etc").mkdir()
    return found


@pytest.mark.parametrize(
    ("link", "target", "asked", "found"),
    [
        pytest.param("lib", "usr/lib", "lib/modules", "usr/lib/modules", id="relative"),
        pytest.param("lib", "/usr/lib", "/lib/modules", "usr/lib/modules", id="absolute"),
        pytest.param("out", "../../../etc", "out/passwd", "etc/passwd", id="out of the root"),
        pytest.param("usr/up", "../..", "usr/up/etc/fstab", "etc/fstab", id="up and down"),
        pytest.param("gone", "/nowhere/x", "gone", "nowhere/x", id="to nothing"),
    ],
)
def test_links_stay_in_the_system(
    link: str, target: str, asked: str, found: str, root: Path
) -> None:
    (root / link).symlink_to(target)
    assert inside(root, asked) == root / found


def test_a_link_to_itself_is_an_error(root: Path) -> None:
    (root / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        inside(root, "loop")


def test_fstab_is_read_as_mount_reads_it(root: Path) -> None:
    (root / "etc/fstab").write_text(
        "# comment\nUUID=ABC / btrfs subvol=@,noatime 0 0\nLABEL=my\\040boot\t/boot ext4\n"
        "broken\n/dev/sda2 none swap sw 0 0\n"
    )
    lines = [(line.source, line.target, line.options) for line in read_fstab(root)]
    assert lines == [
        ("UUID=ABC", "/", "subvol=@,noatime"),
        ("LABEL=my boot", "/boot", ""),
        ("/dev/sda2", "none", "sw"),
    ]
    (root / "etc/fstab").write_text("# nothing\n")
    assert read_fstab(root) == ()
    (root / "etc/fstab").unlink()
    assert read_fstab(root) == ()


@pytest.mark.parametrize(
    ("source", "is_it"),
    [
        ("UUID=5EF1-0A11", True),
        ("UUID=5ef1-0a11", True),
        ('UUID="5EF1-0A11"', True),
        ("UUID=5EF1-0A12", False),
        ("LABEL=ESP", True),
        ("LABEL=esp", False),
        ("PARTUUID=0C6B1F5E-2D34", True),
        ("PARTLABEL=EFI System", True),
        ("/dev/disk/by-uuid/5EF1-0A11", True),
        (r"/dev/disk/by-partlabel/EFI\x20System", True),
        ("/dev/sda1", True),
        ("/dev/vda1", False),
        ("/dev/disk/by-path/pci-0000:00:1f.2", False),
    ],
)
def test_a_device_is_what_fstab_calls_it(source: str, is_it: bool) -> None:
    tags = {
        ("UUID", "5ef1-0a11"),
        ("LABEL", "ESP"),
        ("PARTUUID", "0c6b1f5e-2d34"),
        ("PARTLABEL", "EFI System"),
    }
    device = Device(Path("/dev/vda1"), "vfat", frozenset(tags), frozenset({"/dev/sda1"}))
    assert device.is_called(source) is is_it
