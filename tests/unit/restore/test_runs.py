"""Maps are taken apart in parts: the same as in one, and in bounded memory."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from memory_image import FREE, ZERO, MemoryImage, disk, machine

from imager.errors import ObjectDamaged
from restore import runs
from restore.runs import EDGE, RUN, each_part

BLOCK = 4096
LEAF = 4096


class Long(MemoryImage):
    """A map of many runs that are made when they are asked for."""

    leaves = 500

    def map_parts(self, _volume_id: str) -> Iterator[np.ndarray]:
        for leaf in range(self.leaves):
            part = np.zeros(LEAF, dtype=RUN)
            part["length"] = BLOCK
            words = np.zeros((LEAF, 4), dtype="<u8")
            words[:, 0] = np.arange(leaf * LEAF, (leaf + 1) * LEAF) % 3
            part["id"] = words.view("V32").ravel()
            yield part


def long_image() -> Long:
    size = Long.leaves * LEAF * BLOCK
    return Long(machine(disk(size=size)), {}, {})


def test_memory_does_not_grow_with_the_map() -> None:
    image = long_image()
    (volume,) = image.machine.disks[0].volumes
    count = 0
    tracemalloc.start()
    try:
        for part in each_part(image, volume):
            assert part.first == count
            count += len(part.data_offsets)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    total = Long.leaves * LEAF
    assert count == total - (total + 2) // 3
    assert peak < total * RUN.itemsize / 3


@pytest.mark.parametrize("part", [1, 4, 1000])
def test_parts_add_up(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PART", part)
    content = [(BLOCK, b"a" * 32), (3 * EDGE, FREE), (BLOCK, ZERO), (2 * BLOCK, b"b" * 32)]
    content += [(BLOCK, FREE), (5 * BLOCK, b"c" * 32)]
    size = sum(length for length, _ in content)
    image = MemoryImage(machine(disk(size=size)), {"disk0/whole": content}, {})
    (volume,) = image.machine.disks[0].volumes
    parts = list(each_part(image, volume))
    assert parts[0].start == 0
    assert parts[-1].end == size
    offsets = np.concatenate([each.data_offsets for each in parts]).tolist()
    assert offsets == [0, 3 * EDGE + 2 * BLOCK, 3 * EDGE + 5 * BLOCK]
    zeros = np.concatenate([each.zeros for each in parts]).tolist()
    assert zeros == [[3 * EDGE + BLOCK, BLOCK]]
    cleared = np.concatenate([each.cleared for each in parts]).tolist()
    assert sum(length for _, length in cleared) == 2 * EDGE - 9 * BLOCK


@pytest.mark.parametrize("lengths", [[BLOCK], [3 * BLOCK], [2**63, 2**63, 2 * BLOCK]])
def test_a_map_that_does_not_cover_its_volume_is_refused(lengths: list[int]) -> None:
    content = [(length, b"a" * 32) for length in lengths]
    image = MemoryImage(machine(disk(size=2 * BLOCK)), {"disk0/whole": content}, {})
    (volume,) = image.machine.disks[0].volumes
    with pytest.raises(ObjectDamaged, match="does not cover"):
        list(each_part(image, volume))
