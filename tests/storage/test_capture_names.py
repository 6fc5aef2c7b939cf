"""Serial numbers and names of disk files, which a person knows and the file does not."""

import os
from pathlib import Path

import pytest
from disk_files import noise

from imager.capture.source import open_sources, with_devices, with_serials
from imager.errors import UsageError
from imager.units import MIB


@pytest.fixture
def disks(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "disk", tmp_path / "a=b"
    for path in paths:
        path.write_bytes(noise(MIB, 1))
    return paths


def test_each_gets_its_own(disks: tuple[Path, Path]) -> None:
    one, other = disks
    with open_sources(disks) as sources:
        named = with_serials(sources, [f"{other}=S 2", f"{os.path.relpath(one)}=S1"])
        assert [source.identity.serial for source in named] == ["S1", "S 2"]
        assert with_serials(sources, []) == sources
        called = with_devices(named, [f"{other}=/dev/nvme0n1"])
        assert [source.origin for source in called] == [str(one), "/dev/nvme0n1"]
        assert [source.path for source in called] == [source.path for source in sources]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{one}"], "not of the form"),
        (["{one}="], "not of the form"),
        (["=S"], "not of the form"),
        (["{one}x=S"], "none of the captured"),
        (["{one}=S1", "{one}=S2"], "each once"),
    ],
)
def test_what_makes_no_sense_is_refused(
    disks: tuple[Path, Path], words: list[str], message: str
) -> None:
    with open_sources(disks) as sources, pytest.raises(UsageError, match=message):
        with_serials(sources, [word.format(one=disks[0]) for word in words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{one}"], "not of the form"),
        (["{one}=/dev/vda1"], "no whole disk"),
        (["{one}=vda"], "no whole disk"),
        (["{one}x=/dev/vda"], "none of the captured"),
        (["{one}=/dev/vda", "{other}=/dev/vda"], "twice"),
    ],
)
def test_names_that_make_no_sense_are_refused(
    disks: tuple[Path, Path], words: list[str], message: str
) -> None:
    with open_sources(disks) as sources, pytest.raises(UsageError, match=message):
        with_devices(sources, [word.format(one=disks[0], other=disks[1]) for word in words])
