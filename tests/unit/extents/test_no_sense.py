"""What a reader did not foresee: the volume is read whole, and the reason is said."""

import struct
from pathlib import Path

import pytest

from imager.extents import used as module
from imager.extents.used import used
from imager.layout.disk import Volume, VolumeRole
from imager.layout.filesystem import Filesystem


@pytest.mark.parametrize("problem", [OverflowError("2**64"), RecursionError(), struct.error("x")])
def test_it_is_read_whole(
    problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise problem

    monkeypatch.setitem(module._READERS, "xfs", read)  # type: ignore[arg-type]
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8192))
    volume = Volume("disk0/p1", VolumeRole.PARTITION, 0, 8192, 1, Filesystem("xfs"))
    extents = used(disk, volume)
    assert (extents.method, extents.total) == ("whole", 8192)
    assert "make no sense" in (extents.reason or "")
