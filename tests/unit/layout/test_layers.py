"""Layers in the image format, and in words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.errors import UnsupportedFormat
from imager.layout import codec
from imager.layout.bcache import BcacheDevice, BcacheRole, BcacheState
from imager.layout.btrfs import BtrfsPool
from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.layers import Layers
from imager.layout.luks import LuksContainer
from imager.layout.lvm import LogicalVolume, PhysicalVolume, VolumeGroup
from imager.layout.machine import Machine
from imager.layout.mdraid import MdArray, MdMember, MdState, MdVersion

BARE = Machine("id", "web01", "x86_64", Firmware(FirmwareKind.BIOS), ())


def member(number: int, state: MdState = MdState.ACTIVE) -> MdMember:
    return MdMember(f"disk{number}/p1", number, number, state, 7, True, 0)


def mirror(*members: MdMember) -> MdArray:
    return MdArray("md0", "uuid", "h:boot", "raid1", MdVersion.V1_0, 2, 0, False, False, members)


GROUP = VolumeGroup(
    "data", "vg", 4 << 20,
    (PhysicalVolume("pv-0", "md0", 1 << 30), PhysicalVolume("pv-1", None, 1 << 30)),
    (
        LogicalVolume("root", "lv-0", 1 << 29, ("linear",), visible=True),
        LogicalVolume("pool_tmeta", "lv-1", 1 << 20, ("linear",), visible=False),
    ),
)  # fmt: skip
FULL = Layers(
    md=(mirror(member(0)),),
    luks=(LuksContainer("disk0/p2", 2, "u", "vault", "aes-xts-plain64", 1, 16 << 20),),
    volume_groups=(GROUP,),
    btrfs=(BtrfsPool("fs", None, 3, ()),),
    bcache=(BcacheDevice("disk0/p3", BcacheRole.BACKING, "b", "set", BcacheState.DIRTY, True),),
)


def with_layers(layers: Layers) -> Machine:
    return Machine("id", "web01", "x86_64", Firmware(FirmwareKind.BIOS), (), layers)


def test_a_machine_without_layers_is_written_as_the_first_version_did() -> None:
    """So that version reads it, and its own images are read here."""
    assert "layers" not in json.loads(codec.encode(BARE))
    assert codec.decode(codec.encode(BARE), Machine, "it") == BARE
    assert codec.document(BARE)["layers"]["md"] == ()


def test_there_is_one_way_to_write_nothing() -> None:
    text = json.loads(codec.encode(BARE))
    text["layers"] = {"md": [], "luks": [], "volume_groups": [], "btrfs": [], "bcache": []}
    with pytest.raises(UnsupportedFormat):
        codec.decode(json.dumps(text).encode(), Machine, "it")


def test_layers_come_back() -> None:
    machine = with_layers(FULL)
    data = codec.encode(machine)
    assert codec.decode(data, Machine, "it") == machine
    with pytest.raises(
        UnsupportedFormat, match="holds `more` in `md` in `layers` that this version does not know"
    ):
        codec.decode(data.replace(b'"md":[{', b'"md":[{"more":1,', 1), Machine, "it")
    for old, new in ((b'"1.0"', b'"1.3"'), (b'"active"', b'"lost"'), (b'"dirty"', b"null")):
        changed = data.replace(old, new, 1)
        assert changed != data
        if new == b"null":
            assert codec.decode(changed, Machine, "it") != machine
        else:
            with pytest.raises(UnsupportedFormat):
                codec.decode(changed, Machine, "it")


maybe = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(
    st.lists(st.builds(BtrfsPool, st.just("u"), maybe, st.integers(0, 9), st.just(())), max_size=2)
)
def test_pools_come_back(pools: list[BtrfsPool]) -> None:
    machine = with_layers(Layers(btrfs=tuple(pools)))
    assert codec.decode(codec.encode(machine), Machine, "it") == machine


def test_words() -> None:
    assert FULL.describe("disk0/p1") == (
        "member 1 of 2 of RAID1 md 'boot' (metadata 1.0)",
        "physical volume of VG 'data' with LVs root",
    )
    assert FULL.describe("disk0/p2") == ("LUKS2 container 'vault'",)
    assert FULL.describe("disk9") == ()
    spare = MdMember("disk1/p1", 2, None, MdState.SPARE, 7, True, 0)
    rebuilt = member(1, MdState.REBUILDING)
    layers = Layers(md=(mirror(spare, rebuilt),))
    assert layers.describe("disk1/p1") == (
        "spare member of RAID1 md 'boot' (metadata 1.0)",
        "member 2 of 2 of RAID1 md 'boot' (metadata 1.0), rebuilding",
    )


def test_what_is_lacking() -> None:
    said = FULL.lacking()
    assert len(said) == 4
    assert "RAID1 md 'boot' (metadata 1.0) has 2 disks, and only 1 of its members is" in said[0]
    assert "needs the physical volume pv-1, which is on none of the captured disks" in said[1]
    assert "btrfs 'fs' on 3 devices has only 0" in said[2]
    assert "(set set) is on none of the captured disks" in said[3]
    assert [device.place for device in FULL.torn()] == ["disk0/p3"]
    cache = BcacheDevice("disk1/p3", BcacheRole.CACHE, "c", "set")
    assert Layers(bcache=(*FULL.bcache, cache)).torn() == ()
    assert Layers(md=(mirror(member(0), member(1)),)).lacking() == ()


@pytest.mark.parametrize(
    ("members", "sound"),
    [
        ((member(0), member(1)), True),
        ((member(0), member(1, MdState.REBUILDING)), False),
        ((member(0), MdMember("b", 1, 1, MdState.ACTIVE, 8, True, 0)), False),
        ((member(0), MdMember("b", 1, 1, MdState.ACTIVE, 7, False, 0)), False),
    ],
)
def test_arrays_that_are_in_order(members: tuple[MdMember, ...], sound: bool) -> None:
    assert mirror(*members).is_sound is sound
