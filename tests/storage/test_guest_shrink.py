"""Filesystems that shrink while they are restored, in the rescue medium's own system.

Each was filled up to its end and its front emptied, so that much must move. The targets hold noise
where the restore writes nothing. There the filesystems grow again, beside a swap area.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from disk_files import noise
from kernel_mounts import loop, mounted
from mounts import ntfs
from restored_disks import PASSPHRASE

from imager import console, process
from imager.repository.keyring import LockedRecoveryKey
from imager.units import MIB
from tests.guest import life
from tests.guest.rescue import rescue

AT = 3 * MIB  # where the filesystem begins on the target
GROWS = 4 * MIB
SWAP = 2 * MIB
FILE = 2 * MIB
UUID = "0b4f2a52-3a0e-4f3c-9c1e-1d5d6a3b0c11"

PROGRAM = """
import json, subprocess, time
from dataclasses import replace
from pathlib import Path
from imager.errors import RemetalError
from imager.repository.chunk import ZERO
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.volume_map import are, are_chunks
from restore.device import OpenTarget
from restore.fit_steps import GrowFilesystem, RemakeSwap, ShrinkFilesystem
from restore.recreate.filesystem import check_shrinkable, grow, remake_swap, shrink
from restore.saved_volume import SavedVolume
from restore.target import Target, TargetKind

AT, GROWS, SWAP, UUID, SEED, CASES = json.loads(ORDER)
VOLUME, BLOCK = "disk0/whole", 1 << 20

subprocess.run(["/usr/lib/systemd/systemd-udevd", "--daemon"], check=True)
subprocess.run(["udevadm", "trigger", "--action=add", "--subsystem-match=block"], check=True)
subprocess.run(["udevadm", "settle"], check=True)
subprocess.run(["mount", "-o", "ro", "/dev/vda", "/mnt"], check=True)
repository = Repository.open("/mnt")
unlocked = Unlocked(repository, RecipientKey(bytes.fromhex(SEED)))

def write_front(opened, image, length):
    "Write what the map defines of the front, as a restore does."
    volume, position = SavedVolume(image, VOLUME), 0
    for start, runs in image.map_from(VOLUME, 0):
        defined = are_chunks(runs) | are(runs["id"], ZERO)
        for size, is_defined in zip(runs["length"].tolist(), defined.tolist()):
            for at in range(start, min(start + size, length), BLOCK):
                if is_defined:
                    part = min(BLOCK, start + size - at, length - at)
                    opened.write(AT + at, volume.read(at, part))
            start += size
    opened.flush()

def left_behind():
    names = subprocess.run(["dmsetup", "ls"], check=True, stdout=subprocess.PIPE, text=True).stdout
    served = [path.name for path in Path("/sys/block").glob("nbd*") if (path / "pid").exists()]
    return names.strip(), served

for name, kind, letter, length, saved in CASES:
    image = open_image(repository, name, unlocked, print)
    device = Path("/dev/vd" + letter)
    size = int((Path("/sys/block") / device.name / "size").read_text()) * 512
    target = Target("disk0", device, TargetKind.DEVICE, size, size, 512, None, None, "", "")
    step = ShrinkFilesystem(target, VOLUME, kind, AT, length, saved)
    times = [time.monotonic()]
    try:
        check_shrinkable(replace(step, length=6 * BLOCK), image)
    except RemetalError as error:
        assert error.id in ("target-too-small", "target"), error
        refused = error.message
    else:
        raise AssertionError("it fits nowhere")
    times.append(time.monotonic())
    check_shrinkable(step, image)
    times.append(time.monotonic())
    with OpenTarget(target) as opened:
        write_front(opened, image, length)
        times.append(time.monotonic())
        notes = shrink(step, image, opened)
        times.append(time.monotonic())
        if kind != "ntfs":  # which Windows has to check first
            step = GrowFilesystem(target, VOLUME, kind, AT, length + GROWS, length, None)
            notes += grow(step, opened)
        remake_swap(
            RemakeSwap(target, VOLUME, AT + length + GROWS, SWAP, UUID, "more"), opened
        )
        opened.flush()
    assert left_behind() == ("No devices found", []), left_behind()
    times = [round(later - sooner, 1) for sooner, later in zip(times, times[1:])]
    print(json.dumps([name, refused, notes, times]), flush=True)
"""


@dataclass(frozen=True)
class Case:
    """A filesystem and how small it shall be."""

    kind: str
    make: tuple[str, ...]
    saved: int
    length: int
    hold: Callable[[Path, Path], AbstractContextManager[Path]]
    was_running: bool = False  # its journal is to be replayed


@contextmanager
def kernel(image: Path, place: Path) -> Iterator[Path]:
    with loop(image) as device, mounted(device, place) as folder:
        yield folder


EXT4 = ("mke2fs", "-q", "-t", "ext4")
CASES = {
    "ext4": Case("ext4", EXT4, 96 * MIB, 56 * MIB, kernel),
    "running": Case("ext4", EXT4, 96 * MIB, 56 * MIB, kernel, was_running=True),
    "ext3": Case("ext3", ("mke2fs", "-q", "-t", "ext3", "-b", "1024"), 64 * MIB, 40 * MIB, kernel),
    "btrfs": Case("btrfs", ("mkfs.btrfs", "-q"), 800 * MIB, 440 * MIB, kernel),
    "ntfs": Case("ntfs", ("mkntfs", "-q", "-F", "-f"), 96 * MIB, 56 * MIB, ntfs),
}


def fill(root: Path, room: int) -> None:
    """Fill all room, then empty the front of it, so that a third is left, most of it behind."""
    life.fill(root, 5, 40)
    (root / "many").mkdir()
    names = []
    for number in range(room // FILE):
        name = root / "many" / f"{number}"
        try:
            name.write_bytes(os.urandom(FILE))
        except OSError:
            name.unlink(missing_ok=True)
            break
        names.append(name)
        os.sync()
    for name in names[: len(names) * 2 // 3]:
        name.unlink()


def state_of(root: Path) -> dict[str, str]:
    """Return the state of all files, without the times of folders, which resize2fs renews."""
    found = life.state(root)
    for name, said in found.items():
        mode, _, rest = said.split(" ", 2)
        if mode.startswith("4"):
            found[name] = f"{mode} {rest}"
    return found


def make(case: Case, disk: Path, folder: Path) -> dict[str, str]:
    """Make a disk that is all one filesystem; return the state of its files."""
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(case.saved)
    process.run(*case.make, image)
    with case.hold(image, folder / "place") as root:
        fill(root, case.saved)
        state = state_of(root)
        os.sync()
        if case.was_running:
            shutil.copyfile(image, disk)
    if not case.was_running:
        image.rename(disk)
    assert sum(name.startswith("many/") for name in state) > 3
    return state


def capture(disks: dict[str, Path], folder: Path) -> tuple[Path, str]:
    """Return a disk file with a repository that has an image of each disk, and its key's seed."""
    repository, keys = folder / "repository", folder / "keys"
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    words = ["init", str(repository), "--keys-dir", str(keys)]
    assert console.run([*words, "--passphrase-file", str(folder / "passphrase")]) == 0
    credential = ["--credential", str(keys / "capture.credential")]
    for name, disk in disks.items():
        words = ["capture", str(repository), "--disk", str(disk), "--name", name]
        assert console.run([*words, *credential]) == 0
    held = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    packed = folder / "repository.ext4"
    size = f"{(held + held // 4) // 1024 + 16 * 1024}k"
    process.run("mke2fs", "-q", "-t", "ext4", "-d", repository, packed, size)
    shutil.rmtree(repository)
    return packed, LockedRecoveryKey.read(keys / "recovery.key").unlock(PASSPHRASE).seed.hex()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "names",
    [["ext4"], pytest.param(["running", "ext3", "btrfs", "ntfs"], marks=pytest.mark.slow)],
)
def test_every_file_is_there_afterwards(names: list[str], tmp_path: Path) -> None:
    disks = {name: tmp_path / name for name in names}
    before = {name: make(CASES[name], disk, tmp_path) for name, disk in disks.items()}
    packed, seed = capture(disks, tmp_path)
    targets, order = [], []
    for name, letter in zip(names, "bcdef", strict=False):
        case, target = CASES[name], tmp_path / f"target of {name}"
        target.write_bytes(noise(AT + case.length + GROWS + SWAP + MIB, 3))
        targets.append(target)
        order.append([name, case.kind, letter, case.length, case.saved])
    text = json.dumps([AT, GROWS, SWAP, UUID, seed, order])
    program = f"ORDER = {text!r}\n{PROGRAM}"
    printed = rescue().run(program, [packed, *targets], tmp_path / "guest", timeout=1500)
    assert printed.count("the filesystem has") == 2 * len(names) - names.count("ntfs")
    for name, target in zip(names, targets, strict=True):
        case = CASES[name]
        now, end = case.length + GROWS, AT + case.length + GROWS + SWAP
        there, made = target.read_bytes(), noise(end + MIB, 3)
        assert (there[:AT], there[end:]) == (made[:AT], made[end:])
        restored = tmp_path / "restored"
        restored.write_bytes(there[AT : AT + now])
        with case.hold(restored, tmp_path / "place") as root:
            assert state_of(root) == before[name]
        swap = ("blkid", "-p", "-o", "value", "-s", "UUID", "-O", str(AT + now), "-S", str(SWAP))
        assert process.run(*swap, target).strip() == UUID
