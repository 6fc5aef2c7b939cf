"""The rules of matching, as tables: saved disks and disks that are here → who takes whom."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
from memory_image import disk, machine

from imager.blockdev import BlockDisk, Usage, UsageKind
from imager.errors import (
    AmbiguousTarget,
    ForbiddenTarget,
    NoTarget,
    RemetalError,
    TargetError,
    TargetInUse,
    TargetTooSmall,
    UsageError,
)
from imager.layout.disk import Disk, DiskIdentity
from restore.match import Basis, NewFile, Survey, match, parse_map, resolve

MIB = 1 << 20


def here(
    name: str,
    size: int = 64 * MIB,
    *,
    usage: tuple[Usage, ...] = (),
    read_only: bool = False,
    removable: bool = False,
    **identity: object,
) -> BlockDisk:
    return BlockDisk(
        path=Path("/dev") / name,
        identity=replace(DiskIdentity(size=size, logical_sector=512), **identity),
        usage=usage,
        read_only=read_only,
        removable=removable,
        is_device=True,
    )


def survey(
    *disks: BlockDisk,
    named: dict[str, BlockDisk | NewFile] | None = None,
    forbidden: dict[str, str] | None = None,
) -> Survey:
    return Survey(disks, named or {}, {Path(k): v for k, v in (forbidden or {}).items()})


MOUNTED = (Usage(UsageKind.MOUNT, Path("/dev/sdb1"), "/srv", read_only=False),)
A = {"wwn": "0xa", "serial": "SA", "model": "M"}
B = {"wwn": "0xb", "serial": "SB", "model": "M"}


@pytest.mark.parametrize(
    ("saved", "disks", "expected"),
    [
        pytest.param(
            [disk(**A)],
            [here("sda"), here("sdb", 80 * MIB, wwn="0xa")],
            [("sdb", Basis.WWN)],
            id="the WWN beats an equal size",
        ),
        pytest.param(
            [disk(**A)],
            [here("sda", serial="SA", model="M"), here("sdb")],
            [("sda", Basis.SERIAL)],
            id="serial and model",
        ),
        pytest.param(
            [disk(serial="SA")],
            [here("sda", serial="SA", model="M"), here("sdb")],
            [("sda", Basis.SERIAL_ONLY)],
            id="serial where the image knows no model",
        ),
        pytest.param(
            [disk(serial="SA", model="M")],
            [here("sda", serial="SA", model="other"), here("sdb", 99 * MIB)],
            [("sda", Basis.SIZE)],
            id="one serial on two models is chance; only the size speaks for it",
        ),
        pytest.param(
            [disk("disk0", **A), disk("disk1", **B)],
            [here("sda", **B), here("sdb", **A)],
            [("sdb", Basis.WWN), ("sda", Basis.WWN)],
            id="the kernel's names have changed places",
        ),
        pytest.param(
            [disk()],
            [here("sda", 80 * MIB), here("sdb"), here("sdc", 32 * MIB)],
            [("sdb", Basis.SIZE)],
            id="exactly the same size",
        ),
        pytest.param(
            [disk("disk0", **A), disk("disk1", 32 * MIB)],
            [here("sda", 100 * MIB), here("sdb", **A)],
            [("sdb", Basis.WWN), ("sda", Basis.ONLY_ONE)],
            id="what is left over is large enough",
        ),
        pytest.param(
            [disk()],
            [here("sda", usage=MOUNTED), here("sdb", removable=True), here("sdc")],
            [("sdc", Basis.SIZE)],
            id="size passes over disks in use and sticks",
        ),
        pytest.param(
            [disk()],
            [here("sda", logical_sector=4096), here("sdb", read_only=True), here("sdc", 70 * MIB)],
            [("sdc", Basis.ONLY_ONE)],
            id="size passes over other sector sizes and read-only disks",
        ),
        pytest.param(
            [disk(transport="usb")],
            [here("sda", transport="usb", removable=True)],
            [("sda", Basis.SIZE)],
            id="a stick was saved, a stick is taken",
        ),
    ],
)
def test_who_takes_whom(
    saved: list[Disk], disks: list[BlockDisk], expected: list[tuple[str, Basis]]
) -> None:
    found = match(machine(*saved), survey(*disks))
    assert [(item.target.path.name, item.basis) for item in found] == expected
    assert [item.saved.id for item in found] == [item.id for item in saved]


@pytest.mark.parametrize(
    ("saved", "surveyed", "error", "words"),
    [
        pytest.param(
            [disk()],
            survey(here("sda", serial="S1"), here("sdb", serial="S2")),
            AmbiguousTarget,
            ["/dev/sda", "serial S1", "/dev/sdb", "serial S2", "disk0"],
            id="two of the same size",
        ),
        pytest.param(
            [disk()],
            survey(here("sda", 70 * MIB), here("sdb", 80 * MIB)),
            AmbiguousTarget,
            ["/dev/sda", "/dev/sdb"],
            id="two that are larger: none is taken for being nearer",
        ),
        pytest.param(
            [disk("disk0"), disk("disk1")],
            survey(here("sda"), here("sdb", 10 * MIB)),
            AmbiguousTarget,
            ["disk0 and disk1", "/dev/sda"],
            id="two saved disks, one fits both",
        ),
        pytest.param(
            [disk(**A)],
            survey(here("sda", wwn="0xa"), here("sdb", wwn="0xa")),
            AmbiguousTarget,
            ["same WWN"],
            id="two paths to one disk",
        ),
        pytest.param([disk()], survey(), NoTarget, ["disk0"], id="no disk at all"),
        pytest.param(
            [disk()],
            survey(here("sda", 10 * MIB), here("sdb", usage=MOUNTED)),
            NoTarget,
            ["too small", "mounted"],
            id="each unfit for its own reason",
        ),
        pytest.param(
            [disk()],
            survey(here("sda", 63 * MIB)),
            TargetTooSmall,
            ["1048576 bytes too small"],
            id="one disk, too small",
        ),
        pytest.param(
            [disk(**A)],
            survey(here("sda", usage=MOUNTED, **A), here("sdb")),
            TargetInUse,
            ["/dev/sda", "/srv"],
            id="the disk itself is in use: no other is taken instead",
        ),
        pytest.param(
            [disk(**A)],
            survey(here("sda", **A), here("sdb"), forbidden={"/dev/sda": "holds the repository"}),
            ForbiddenTarget,
            ["/dev/sda", "holds the repository"],
            id="the disk itself holds the repository",
        ),
        pytest.param(
            [disk()],
            survey(here("sda"), forbidden={"/dev/sda": "runs this system"}),
            ForbiddenTarget,
            ["runs this system"],
            id="the only disk runs this system",
        ),
        pytest.param(
            [disk()],
            survey(here("sda", removable=True)),
            ForbiddenTarget,
            ["removable"],
            id="only a stick",
        ),
        pytest.param(
            [disk(**A)],
            survey(here("sda", logical_sector=4096, **A)),
            TargetError,
            ["sectors of 4096"],
            id="the same disk, formatted to other sectors",
        ),
        pytest.param(
            [disk()],
            survey(named={"disk0": here("sda", 63 * MIB)}),
            TargetTooSmall,
            ["/dev/sda"],
            id="named, too small",
        ),
        pytest.param(
            [disk()],
            survey(named={"disk0": here("sda", usage=MOUNTED)}),
            TargetInUse,
            ["/dev/sda"],
            id="named, in use",
        ),
        pytest.param(
            [disk()],
            survey(named={"disk0": here("sda", read_only=True)}),
            TargetError,
            ["read-only"],
            id="named, read-only",
        ),
        pytest.param(
            [disk("disk0"), disk("disk1")],
            survey(named={"disk0": here("sda"), "disk1": here("sda")}),
            TargetError,
            ["both disk0 and disk1"],
            id="one target twice",
        ),
        pytest.param(
            [disk(serial="S")],
            survey(named={"disk0": here("sda"), "S": here("sdb")}),
            UsageError,
            ["twice"],
            id="one saved disk twice",
        ),
        pytest.param(
            [disk()],
            survey(named={"disk7": here("sda")}),
            UsageError,
            ["disk7"],
            id="no such saved disk",
        ),
    ],
)
def test_refusals(
    saved: list[Disk], surveyed: Survey, error: type[RemetalError], words: list[str]
) -> None:
    with pytest.raises(RemetalError) as caught:
        match(machine(*saved), surveyed)
    assert type(caught.value) is error
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message


def test_named_goes_first_and_by_serial() -> None:
    saved = [disk("disk0", **A), disk("disk1", **B)]
    found = match(
        machine(*saved), survey(here("sda", **A), here("sdb"), named={"SB": here("sda", **A)})
    )
    assert [(item.target.path.name, item.basis) for item in found] == [
        ("sdb", Basis.SIZE),
        ("sda", Basis.NAMED),
    ]


def test_a_stick_is_taken_when_it_is_named() -> None:
    found = match(machine(disk()), survey(named={"disk0": here("sda", removable=True)}))
    assert found[0].target.path == Path("/dev/sda")


def test_a_new_file_gets_the_saved_size_and_sector() -> None:
    saved = disk(logical_sector=4096)
    (found,) = match(machine(saved), survey(named={"disk0": NewFile(Path("/srv/a.raw"))}))
    assert found.is_new
    assert found.target.identity == DiskIdentity(size=64 * MIB, logical_sector=4096)


def test_parse_map() -> None:
    assert parse_map(["disk0=/dev/sdb", "S=a=b"]) == {
        "disk0": Path("/dev/sdb"),
        "S": Path("a=b"),
    }


@pytest.mark.parametrize("values", [["disk0"], ["=x"], ["disk0="], ["a=1", "a=2"]])
def test_parse_map_refuses(values: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_map(values)


TWO = machine(disk("disk0", **A), disk("disk1", **B))


def told(*names: str) -> Callable[[Collection[str]], str]:
    """Advice for these disks only."""
    return lambda missing: f"leave out {sorted(missing)}" if {*missing} == {*names} else ""


def test_what_is_left_out_gets_no_target() -> None:
    (found,) = match(TWO, survey(here("sda", **A)), {"disk1"})
    assert found.saved.id == "disk0"


def test_the_disk_that_is_left_out_is_taken_for_another_only_by_name() -> None:
    """Whoever leaves a disk out that is plugged in may want to keep it."""
    old = here("sdb", **B)
    with pytest.raises(NoTarget, match=r"sdb: M, serial SB.* is disk1, which is left out"):
        match(TWO, survey(old, here("sdc", 1)), {"disk1"})
    (found,) = match(TWO, survey(old, named={"disk0": old}), {"disk1"})
    assert (found.target.path.name, found.basis) == ("sdb", Basis.NAMED)


@pytest.mark.parametrize(
    ("disks", "named", "advised", "kind"),
    [
        pytest.param([here("sda", **A)], {}, ["disk1"], NoTarget, id="nothing left"),
        pytest.param(
            [here("sda", **A), here("sdb", MIB)], {}, ["disk1"], TargetTooSmall, id="small"
        ),
        pytest.param([], {"disk1": here("sdb", MIB)}, ["disk1"], TargetTooSmall, id="named"),
        pytest.param([here("sdx")], {}, ["disk1"], AmbiguousTarget, id="one blank disk for two"),
        pytest.param([here("sdx")], {}, ["disk0"], AmbiguousTarget, id="only the other can go"),
    ],
)
def test_a_refusal_says_which_disk_could_be_left_out(
    disks: list[BlockDisk], named: dict[str, BlockDisk | NewFile], advised: list[str], kind: type
) -> None:
    with pytest.raises(kind) as caught:
        match(TWO, replace(survey(*disks, named=named), advise=told(*advised)))
    assert caught.value.hint.endswith(f"leave out {advised}")
    assert caught.value.hint.startswith(kind.default_hint)
    with pytest.raises(kind) as caught:
        match(TWO, survey(*disks, named=named))
    assert caught.value.hint == kind.default_hint


def test_disks_are_left_out_by_id_or_serial() -> None:
    assert resolve(TWO, ["SB", "disk1"], ["disk0"]) == {"disk1"}
    for names, mapping in (["disk9"], []), (["SB"], ["disk1"]):
        with pytest.raises(UsageError):
            resolve(TWO, names, mapping)
