"""Filesystems that shrink while they are restored, in the rescue medium's own system.

Each is filled up to its end and its front emptied, so that much must move. The target holds noise
where the restore writes nothing.
"""

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
FILE = 2 * MIB

PROGRAM = """
import json, subprocess
from dataclasses import replace
from pathlib import Path
from imager.errors import RemetalError
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.volume_map import are_chunks, are
from imager.repository.chunk import ZERO
from restore.device import OpenTarget
from restore.fit_steps import GrowFilesystem, RemakeSwap, ShrinkFilesystem
from restore.recreate.filesystem import check_shrinkable, grow, remake_swap, shrink
from restore.saved_volume import SavedVolume
from restore.target import Target, TargetKind

SEED, KIND, OFFSET, LENGTH, SAVED = {seed!r}, {kind!r}, {offset}, {length}, {saved}
subprocess.run(["/usr/lib/systemd/systemd-udevd", "--daemon"], check=True)
subprocess.run(["udevadm", "trigger", "--action=add", "--subsystem-match=block"], check=True)
subprocess.run(["udevadm", "settle"], check=True)
subprocess.run(["mount", "-o", "ro", "/dev/vdb", "/mnt"], check=True)
repository = Repository.open("/mnt")
unlocked = Unlocked(repository, RecipientKey(bytes.fromhex(SEED)))
image = open_image(repository, "latest", unlocked, print)
disk = Path("/dev/vda")
size = int((Path("/sys/block/vda/size")).read_text()) * 512
target = Target("disk0", disk, TargetKind.DEVICE, size, size, 512, None, None, "a disk", "named")

def write_front(opened):
    "Write what the map defines of the front, as the restore does."
    volume = SavedVolume(image, "disk0/whole")
    for start, runs in image.map_from("disk0/whole", 0):
        defined = are_chunks(runs) | are(runs["id"], ZERO)
        for length, wanted in zip(runs["length"].tolist(), defined.tolist()):
            for at in range(start, min(start + length, LENGTH), 1 << 20):
                if wanted:
                    part = min(1 << 20, start + length - at, LENGTH - at)
                    opened.write(OFFSET + at, volume.read(at, part))
            start += length
    opened.flush()

def devices():
    names = subprocess.run(["dmsetup", "ls"], check=True, stdout=subprocess.PIPE, text=True).stdout
    busy = [p.name for p in Path("/sys/block").glob("nbd*") if (p / "pid").exists()]
    return names.strip(), busy

"""
SHRINK = """
step = ShrinkFilesystem(target, "disk0/whole", KIND, OFFSET, LENGTH, SAVED)
try:
    check_shrinkable(replace(step, length=12 << 20), image)
except RemetalError as error:
    assert error.id in ("target-too-small", "target"), error
    print(error.message, flush=True)
else:
    raise AssertionError("it fits nowhere")
check_shrinkable(step, image)
with OpenTarget(target) as opened:
    write_front(opened)
    notes = shrink(step, image, opened)
    opened.flush()
assert devices() == ("No devices found", []), devices()
print(json.dumps(notes), flush=True)
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


CASES = {
    "ext4": Case("ext4", ("mke2fs", "-q", "-t", "ext4"), 96 * MIB, 56 * MIB, kernel),
    "ext4 that was in use": Case(
        "ext4", ("mke2fs", "-q", "-t", "ext4"), 96 * MIB, 56 * MIB, kernel, was_running=True
    ),
    "ext3 with small blocks": Case(
        "ext3", ("mke2fs", "-q", "-t", "ext3", "-b", "1024"), 64 * MIB, 40 * MIB, kernel
    ),
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


def capture(disk: Path, folder: Path) -> tuple[Path, str]:
    """Return a disk file with a repository that has an image of a disk, and the seed of its key."""
    repository, keys = folder / "repository", folder / "keys"
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    words = ["init", str(repository), "--keys-dir", str(keys)]
    assert console.run([*words, "--passphrase-file", str(folder / "passphrase")]) == 0
    credential = ["--credential", str(keys / "capture.credential")]
    assert console.run(["capture", str(repository), "--disk", str(disk), *credential]) == 0
    held = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    packed = folder / "repository.ext4"
    size = f"{(held + held // 4) // 1024 + 16 * 1024}k"
    process.run("mke2fs", "-q", "-t", "ext4", "-d", repository, packed, size)
    shutil.rmtree(repository)
    return packed, LockedRecoveryKey.read(keys / "recovery.key").unlock(PASSPHRASE).seed.hex()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "ext4" else [pytest.mark.slow]) for n in CASES],
)
def test_every_file_is_there_afterwards(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    saved, place = tmp_path / "saved", tmp_path / "place"
    with saved.open("wb") as file:
        file.truncate(case.saved)
    process.run(*case.make, saved)
    disk = tmp_path / "disk"
    with case.hold(saved, place) as root:
        fill(root, case.saved)
        before = life.state(root)
        os.sync()
        if case.was_running:
            shutil.copyfile(saved, disk)
    if not case.was_running:
        saved.rename(disk)
    packed, seed = capture(disk, tmp_path)
    target = tmp_path / "target"
    target.write_bytes(noise(AT + case.length + MIB, 3))
    program = PROGRAM.format(
        seed=seed, kind=case.kind, offset=AT, length=case.length, saved=case.saved
    )
    printed = rescue().run(program + SHRINK, [target, packed], tmp_path / "guest", timeout=600)
    assert "the filesystem has" in printed
    restored = tmp_path / "restored"
    with target.open("rb") as file:
        assert file.read(AT) == noise(AT + case.length + MIB, 3)[:AT]
        restored.write_bytes(file.read(case.length))
        assert file.read() == noise(AT + case.length + MIB, 3)[-MIB:]
    with case.hold(restored, place) as root:
        assert life.state(root) == before
    assert sum(key.startswith("many/") for key in before) > 3
