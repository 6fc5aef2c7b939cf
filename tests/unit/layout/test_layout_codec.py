"""The layout's JSON: what was written comes back, and nothing else is accepted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.errors import UnsupportedFormat
from imager.layout import codec
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.filesystem import Filesystem
from imager.layout.firmware import BootEntry, Firmware, FirmwareKind
from imager.layout.machine import Machine
from imager.layout.network import NetworkCard
from imager.layout.partition_table import Partition, PartitionTable, TableKind

# JSON has no lone surrogates; sizes fit in 63 bits.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
maybe = st.none() | text
size = st.integers(0, 2**63 - 1)

partitions = st.builds(Partition, size, size, size, text, maybe, text, text, st.booleans())
tables = st.builds(
    PartitionTable, st.sampled_from(TableKind), text, st.lists(partitions, max_size=3).map(tuple)
)
filesystems = st.builds(Filesystem, text, maybe, maybe)
volumes = st.builds(
    Volume, text, st.sampled_from(VolumeRole), size, size, st.none() | size,
    st.none() | filesystems,
)  # fmt: skip
identities = st.builds(DiskIdentity, size, size, maybe, maybe, maybe, maybe)
disks = st.builds(
    Disk, text, text, identities, st.none() | tables, st.lists(volumes, max_size=3).map(tuple)
)
firmwares = st.builds(
    Firmware, st.sampled_from(FirmwareKind), st.none() | st.booleans(),
    st.lists(st.builds(BootEntry, text, text, text), max_size=2).map(tuple),
)  # fmt: skip
cards = st.builds(
    NetworkCard, maybe, st.lists(text, max_size=2).map(tuple), maybe, maybe, text
)  # fmt: skip
machines = st.builds(
    Machine, text, text, text, firmwares, st.lists(disks, max_size=2).map(tuple),
    cards=st.lists(cards, max_size=2).map(tuple),
)  # fmt: skip


@given(machines)
def test_comes_back(machine: Machine) -> None:
    assert codec.decode(codec.encode(machine), Machine, "it") == machine


EXAMPLE = Machine(
    "id", "web01", "x86_64", Firmware(FirmwareKind.UEFI),
    (
        Disk(
            "disk0", "/dev/sda", DiskIdentity(4096, 512), None,
            (Volume("disk0/whole", VolumeRole.WHOLE_DISK, 0, 4096),),
        ),
    ),
)  # fmt: skip


def test_volumes_with_their_disks() -> None:
    (disk,) = EXAMPLE.disks
    assert list(EXAMPLE.volumes()) == [(disk, disk.volumes[0])]
    assert disk.volumes[0].end == 4096


def test_network_cards_are_left_out_where_none_are_known_as_older_versions_wrote_it() -> None:
    old = codec.encode(EXAMPLE)
    assert b"cards" not in old
    assert codec.decode(old, Machine, "it").cards == ()
    with pytest.raises(UnsupportedFormat, match="cards"):
        codec.decode(old[:-1] + b',"cards":[]}', Machine, "it")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"whole-disk"', '"whatever"'),
        ('"uefi"', '"coreboot"'),
        ('"length":4096', '"length":"4096"'),
        ('"length":4096', '"length":4096.5'),
        ('"length":4096', '"size":4096'),
        ('"name":"web01"', '"name":null'),
        ('"disks":[', '"disks":[1,'),
        ("}", ""),
        ('"name":"web01"', '"name":"web01","extra":1'),
        ('"firmware":{', '"firmware":{"extra":1,'),
    ],
)
def test_refuses(old: str, new: str) -> None:
    data = codec.encode(EXAMPLE).decode()
    json.loads(data)
    assert old in data
    with pytest.raises(UnsupportedFormat):
        codec.decode(data.replace(old, new, 1).encode(), Machine, "it")
