"""What a FAT is made with, judged by dosfstools."""

import re
from pathlib import Path

import pytest

from imager import process
from imager.units import GIB, KIB, MIB
from restore.recreate.fat import Shape, shape_of


@pytest.mark.parametrize(
    ("length", "sector", "cluster", "bits"),
    [
        (128 * MIB, 4096, 512, 16),  # an EFI system partition that was a FAT32 of small clusters
        (512 * MIB, 4096, 4096, 32),
        (1 * GIB, 4096, 8192, 32),
        (256 * MIB, 4096, 512, 16),  # just too few for 32 bits
        (257 * MIB, 4096, 512, 32),
        (17 * MIB, 4096, 512, 16),
        (16 * MIB, 4096, 512, 12),  # just too few for 16 bits
        (15 * MIB, 4096, 512, 12),
        (8 * MIB, 4096, 2048, 12),
        (128 * MIB, 512, 4096, 16),
        (512 * MIB, 512, 4096, 32),
        (32 * MIB, 512, 512, 16),
        (33 * MIB, 512, 512, 32),
    ],
)
def test_a_fat_has_the_bits_that_its_count_of_clusters_stands_for(
    tmp_path: Path, length: int, sector: int, cluster: int, bits: int
) -> None:
    shape = shape_of(length, sector, cluster)
    assert shape.bits == bits
    assert shape.cluster >= max(cluster, sector)
    assert made(tmp_path / "fat", length, sector, shape) >= shape.clusters


def made(path: Path, length: int, sector: int, shape: Shape) -> int:
    """Make it, without a warning, and return how many clusters it has."""
    path.touch()
    process.run("truncate", "-s", str(length), path)
    words = ("-F", str(shape.bits), "-S", str(sector), "-s", str(shape.cluster // sector))
    assert "WARNING" not in process.run("mkfs.vfat", *words, path)
    text = process.run("fsck.vfat", "-n", "-v", path)
    assert f"{shape.cluster} bytes per cluster" in text
    found = re.search(r"(\d+) files?, \d+/(\d+) clusters", text)
    assert found is not None
    clusters = int(found[2])
    limits = {12: (0, 4085), 16: (4085, 65525), 32: (65525, 1 << 28)}[shape.bits]
    assert limits[0] <= clusters < limits[1]
    return clusters


def test_every_length_near_a_bound_has_a_shape() -> None:
    for kilobytes in range(250 * KIB, 262 * KIB, 4):
        shape = shape_of(kilobytes * KIB, 4096, 512)
        assert shape.clusters * shape.cluster > kilobytes * KIB * 98 // 100
