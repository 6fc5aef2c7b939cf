"""Makes the fixtures in `layers/`: the ends of volumes on which real tools made a layer.

Run as root on a machine that can start the guest of the tests: `python -m tests.vectors.make_layers`.
"""

from pathlib import Path

from imager import blockdev
from imager.probe.disk import probe_disk
from imager.units import KIB, MIB
from tests.guest.layered_disks import layered_disks
from tests.vectors.layer_files import write

# Volume, bytes from its start, bytes from its end
KEPT = {
    "md-1.0-vfat": ("disk0/p1", 64 * KIB, 128 * KIB),
    "md-1.2-ext4": ("disk0/p2", 2 * MIB, 0),
    "md-0.90-ext4": ("disk0/p3", 64 * KIB, 128 * KIB),
    "md-1.1-lvm": ("disk0/p4", 3 * MIB, 0),
    "md-1.2-raid0": ("disk0/p5", 64 * KIB, 0),
    "luks2": ("disk0/p6", 32 * KIB, 0),
    "luks1": ("disk1/p6", 4 * KIB, 0),
    "btrfs": ("disk0/p7", 68 * KIB, 0),
    "bcache-backing": ("disk0/p8", 8 * KIB, 0),
    "bcache-cache": ("disk1/p8", 8 * KIB, 0),
}


def main() -> None:
    disks = layered_disks().disks
    for name, (volume_id, head, tail) in KEPT.items():
        disk = disks[int(volume_id[4])]
        identity = blockdev.identify(disk).identity
        volumes = probe_disk(disk, volume_id.partition("/")[0], identity).volumes
        volume = next(volume for volume in volumes if volume.id == volume_id)
        with disk.open("rb") as file:
            file.seek(volume.offset)
            first = file.read(head)
            file.seek(volume.end - tail)
            write(Path(__file__).parent / "layers" / name, volume.length, first, file.read(tail))


if __name__ == "__main__":
    main()
