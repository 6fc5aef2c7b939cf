r"""Boot entries and the fall-back path, on real FAT filesystems inside of disk files."""

import struct
import uuid
from pathlib import Path, PureWindowsPath

import pytest

from imager import process
from imager.errors import ProgramError
from imager.layout.firmware import BootEntry
from restore.boot_steps import EnsureFallbackLoader, Esp, SetBootEntries
from restore.bootrepair import efi, esp, fallback
from restore.bootrepair.efi import Changes, decide, new_order
from restore.target import Target, TargetKind

MIB = 1 << 20
UUID = "AAAAAAAA-0000-4000-8000-000000000001"
OTHER = "BBBBBBBB-0000-4000-8000-000000000002"


@pytest.fixture
def partition(tmp_path: Path) -> Esp:
    """A disk file with a FAT filesystem at 1 MiB."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(20 * MIB)
    process.run("mkfs.vfat", "--offset", "2048", path, str(17 * 1024))
    target = Target("disk0", path, TargetKind.FILE, 20 * MIB, 20 * MIB, 512, None, None, "", "")
    return Esp(target, 1, UUID, MIB, 17 * MIB)


def put(partition: Esp, *paths: str) -> None:
    for path in paths:
        esp.write(partition, PureWindowsPath(path), path.encode())


def read(partition: Esp, path: str) -> str:
    image = f"{partition.target.path}@@{partition.offset}"
    name = "::" + path.replace("\\", "/")
    return process.run("mtype", "-i", image, name, env={"MTOOLS_SKIP_CHECK": "1"})


def ensure(partition: Esp, preferred: str | None = None) -> tuple[str, ...]:
    return fallback.ensure(EnsureFallbackLoader(partition, "x86_64", preferred))


def test_files_are_written_and_found_without_regard_to_case(partition: Esp) -> None:
    assert esp.list_files(partition) == frozenset()
    put(partition, "\\EFI\\debian\\shimx64.efi", "\\efi\\Debian\\fw\\a.txt")
    files = esp.list_files(partition)
    assert PureWindowsPath("\\efi\\DEBIAN\\ShimX64.efi") in files
    assert PureWindowsPath("\\EFI\\debian\\fw\\A.TXT") in files
    put(partition, "\\EFI\\debian\\shimx64.efi")  # over one that is there
    assert read(partition, "\\EFI\\debian\\shimx64.efi") == "\\EFI\\debian\\shimx64.efi"


def test_the_best_loader_of_each_directory(partition: Esp) -> None:
    put(
        partition,
        "\\EFI\\ubuntu\\grubx64.efi",
        "\\EFI\\debian\\grubx64.efi",
        "\\EFI\\debian\\SHIMX64.EFI",
        "\\EFI\\Microsoft\\Boot\\bootmgfw.efi",
        "\\EFI\\BOOT\\BOOTX64.EFI",
        "\\EFI\\BOOT\\grubx64.efi",
        "\\EFI\\tools\\memtest.efi",
    )
    found = esp.find_loaders(esp.list_files(partition), fallback.loader_names("x86_64"))
    assert [(loader.vendor, loader.path) for loader in found] == [
        ("debian", PureWindowsPath("\\EFI\\debian\\shimx64.efi")),
        ("Microsoft", PureWindowsPath("\\EFI\\Microsoft\\Boot\\bootmgfw.efi")),
        ("ubuntu", PureWindowsPath("\\EFI\\ubuntu\\grubx64.efi")),
    ]


def test_entries_have_the_names_that_installers_give(partition: Esp) -> None:
    put(
        partition,
        "\\EFI\\debian\\shimx64.efi",
        "\\EFI\\Microsoft\\Boot\\bootmgfw.efi",
        "\\EFI\\systemd\\systemd-bootx64.efi",
    )
    found = efi.find_entries(SetBootEntries((), (partition,), "x86_64"))
    assert [(entry.label, entry.loader) for entry in found] == [
        ("debian", "\\EFI\\debian\\shimx64.efi"),
        ("Windows Boot Manager", "\\EFI\\Microsoft\\Boot\\bootmgfw.efi"),
        ("Linux Boot Manager", "\\EFI\\systemd\\systemd-bootx64.efi"),
    ]


def test_shim_comes_to_the_fallback_path_with_what_it_starts(partition: Esp) -> None:
    put(
        partition,
        "\\EFI\\debian\\shimx64.efi",
        "\\EFI\\debian\\grubx64.efi",
        "\\EFI\\debian\\mmx64.efi",
    )
    notes = ensure(partition)
    assert len(notes) == 3
    assert read(partition, "\\EFI\\BOOT\\BOOTX64.EFI") == "\\EFI\\debian\\shimx64.efi"
    assert read(partition, "\\EFI\\BOOT\\grubx64.efi") == "\\EFI\\debian\\grubx64.efi"
    assert read(partition, "\\EFI\\BOOT\\mmx64.efi") == "\\EFI\\debian\\mmx64.efi"
    process.run("fsck.vfat", "-n", _extracted(partition))


def _extracted(partition: Esp) -> Path:
    path = partition.target.path.with_name("esp.img")
    data = partition.target.path.read_bytes()
    path.write_bytes(data[partition.offset : partition.offset + 17 * MIB])
    return path


def test_a_loader_at_the_fallback_path_stays(partition: Esp) -> None:
    put(partition, "\\EFI\\debian\\shimx64.efi", "\\EFI\\Boot\\bootx64.efi")
    before = partition.target.path.read_bytes()
    (note,) = ensure(partition)
    assert "nothing to do" in note
    assert partition.target.path.read_bytes() == before


def test_the_saved_entrys_directory_is_preferred(partition: Esp) -> None:
    put(partition, "\\EFI\\debian\\grubx64.efi", "\\EFI\\ubuntu\\grubx64.efi")
    ensure(partition, "Ubuntu")
    assert read(partition, "\\EFI\\BOOT\\BOOTX64.EFI") == "\\EFI\\ubuntu\\grubx64.efi"


def test_no_loader_is_told(partition: Esp) -> None:
    put(partition, "\\EFI\\debian\\readme.txt")
    (note,) = ensure(partition)
    assert "still missing" in note


def test_a_full_partition_keeps_no_half_loader(partition: Esp) -> None:
    esp.write(partition, PureWindowsPath("\\EFI\\debian\\shimx64.efi"), bytes(10 * MIB))
    (note,) = ensure(partition)
    assert "could not be made" in note
    files = esp.list_files(partition)
    assert PureWindowsPath("\\EFI\\BOOT\\BOOTX64.EFI") not in files
    process.run("fsck.vfat", "-n", _extracted(partition))


def test_what_is_no_fat_is_told(partition: Esp) -> None:
    with partition.target.path.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(MIB))
    with pytest.raises(ProgramError):
        esp.list_files(partition)
    (note,) = ensure(partition)
    assert "could not be made" in note
    (note,) = esp.write_log(partition, "log")
    assert "could not be left" in note


DEBIAN = BootEntry("debian", UUID, "\\EFI\\debian\\shimx64.efi")
SHOUTED = BootEntry("Debian again", UUID.lower(), "\\EFI\\DEBIAN\\SHIMX64.EFI")
WINDOWS = BootEntry("Windows", UUID, "\\EFI\\Microsoft\\Boot\\bootmgfw.efi")
ELSEWHERE = BootEntry("debian", OTHER, "\\EFI\\debian\\shimx64.efi")


@pytest.mark.parametrize(
    ("existing", "wanted", "changes"),
    [
        pytest.param({}, [DEBIAN], Changes((DEBIAN,), (), ()), id="missing"),
        pytest.param({3: SHOUTED}, [DEBIAN], Changes((), ((0, 3),), ()), id="there"),
        pytest.param(
            {5: DEBIAN, 3: SHOUTED, 1: WINDOWS},
            [WINDOWS, DEBIAN],
            Changes((), ((0, 1), (1, 3)), (5,)),
            id="a double goes",
        ),
        pytest.param(
            {1: ELSEWHERE}, [DEBIAN], Changes((DEBIAN,), (), ()), id="another disk's stays"
        ),
        pytest.param({}, [DEBIAN, SHOUTED], Changes((DEBIAN,), (), ()), id="wanted twice"),
    ],
)
def test_what_changes_in_the_firmware(
    existing: dict[int, BootEntry], wanted: list[BootEntry], changes: Changes
) -> None:
    assert decide(existing, wanted) == changes


def test_wanted_entries_start_first_and_the_others_keep_their_order() -> None:
    entries = {1: ELSEWHERE, 4: WINDOWS, 7: DEBIAN}
    assert new_order([9, 1, 7, 2], entries, [DEBIAN, WINDOWS]) == (7, 4, 9, 1, 2)


def variables(folder: Path, entries: dict[int, BootEntry], order: list[int]) -> Path:
    """Lay out efivarfs as the kernel shows it."""
    place = folder / "efivars"
    place.mkdir(parents=True)
    for number, entry in entries.items():
        path = entry.loader.encode("utf-16-le") + b"\0\0"
        drive = struct.pack("<IQQ16sBB", 1, 2048, 9, uuid.UUID(entry.partition_uuid).bytes_le, 2, 2)
        nodes = struct.pack("<BBH", 4, 1, 4 + len(drive)) + drive
        nodes += struct.pack("<BBH", 4, 4, 4 + len(path)) + path + b"\x7f\xff\x04\0"
        data = struct.pack("<IH", 1, len(nodes)) + entry.label.encode("utf-16-le") + b"\0\0" + nodes
        (place / f"Boot{number:04X}-{efi._GLOBAL}").write_bytes(b"\7\0\0\0" + data)
    numbers = b"".join(number.to_bytes(2, "little") for number in order)
    (place / f"BootOrder-{efi._GLOBAL}").write_bytes(b"\7\0\0\0" + numbers)
    return folder


def test_firmware_that_does_not_answer_is_told(
    partition: Esp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = variables(tmp_path / "efi", {1: ELSEWHERE}, [1])
    calls: list[tuple[str, ...]] = []

    def run(*argv: object, **_: object) -> str:
        calls.append(tuple(map(str, argv)))
        raise ProgramError(calls[-1], 5, "Could not prepare Boot variable: No space left on device")

    put(partition, "\\EFI\\debian\\shimx64.efi")
    monkeypatch.setattr(efi.process, "run", run)
    notes = efi.set_boot_entries(SetBootEntries((DEBIAN,), (partition,), "x86_64"), place)
    assert "did not take the boot entry" in notes[-1]
    (call,) = calls
    assert call[:2] == ("efibootmgr", "--create-only")
    assert call[call.index("--loader") + 1] == DEBIAN.loader
    assert call[call.index("--part") + 1] == "1"


def test_entries_are_read_as_the_firmware_keeps_them(tmp_path: Path) -> None:
    place = variables(tmp_path / "efi", {1: ELSEWHERE, 0x1F: DEBIAN}, [0x1F, 1])
    assert efi._read_entries(place) == {1: ELSEWHERE, 0x1F: DEBIAN}
    assert efi._read_order(place) == (0x1F, 1)
    assert efi.started_by_uefi(place)
    assert not efi.started_by_uefi(tmp_path / "none")
