"""Restores that are killed go on where they stood, on real disks and files, and end up the same."""

import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from killed import End, restore
from numpy.typing import NDArray
from restored_disks import SIZE, Saved, digest, onto

from imager import process
from imager.units import MIB
from restore import journal


@contextmanager
def loop(path: Path, sector: int = 512) -> Iterator[Path]:
    device = process.run("losetup", "--find", "--show", "--sector-size", str(sector), path).strip()
    try:
        process.run("blockdev", "--setrw", device)
        yield Path(device)
    finally:
        process.run("losetup", "--detach", device)


def noisy(path: Path, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(MIB) * (SIZE // MIB))
    return path


def content(path: Path) -> NDArray[np.void]:
    """Return a disk as sectors."""
    return np.fromfile(path, dtype="V512")


@pytest.fixture(scope="session")
def large_sectors(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of a disk with sectors of 4096 bytes; return its machine's name."""
    folder = tmp_path_factory.mktemp("4k")
    disk, part = folder / "disk", folder / "part"
    process.run("truncate", "-s", str(SIZE), disk)
    tree = folder / "tree"
    tree.mkdir()
    for number in range(30):
        (tree / f"file{number}").write_bytes(os.urandom(20_000 * (number + 1)))
    process.run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, part, "65536k")
    with loop(disk, 4096) as device:
        table = f"label: gpt\nstart=256, size={64 * MIB // 4096}\n"
        process.run("sfdisk", "--quiet", device, stdin=table.encode())
        process.run("dd", f"if={part}", f"of={device}", "bs=1M", "seek=1", "conv=fsync,notrunc",
                    "status=none")  # fmt: skip
        assert saved.capture(device, "--name", "4k") == 0
    return "4k"


Reference = tuple[End, NDArray[np.void], NDArray[np.bool_]]
_REFERENCES: dict[tuple[str, str], Reference] = {}  # of the repository of this session


class Case:
    """A kind of target, what an uninterrupted restore makes of it, and how many steps that takes."""

    def __init__(self, saved: Saved, folder: Path, kind: str, image: str) -> None:
        self.saved, self.kind, self.image = saved, kind, image
        self.path = folder / "target"
        self.sector = 4096 if image == "4k" else 512
        self._folder = folder
        self._stack = ExitStack()
        known = _REFERENCES.get((kind, image))
        if known is None:
            known = _REFERENCES[kind, image] = self._reference()
        self.whole, self._right, self._defined = known
        self.renew(3)

    def _reference(self) -> Reference:
        ends, results = [], []
        for seed in (1, 2):
            self.renew(seed)
            ends.append(self.run())
            assert ends[-1].code == 0
            results.append(content(self.path))
        # What both have, whatever was there before, is what an image defines.
        defined = results[0] == results[1]
        assert defined.mean() > 0.3
        return ends[0], results[0], defined

    def renew(self, seed: int) -> None:
        """Take a target full of noise, or none."""
        self.close()
        if self.kind == "new file":
            self.path.unlink(missing_ok=True)
            self._words = ["--map", f"disk0={self.path}"]
            return
        noisy(self.path, seed)
        self._words = ["--map", f"disk0={self.path}"]
        if self.kind == "device":
            self._words = onto(self._stack.enter_context(loop(self.path, self.sector)))

    def run(self, *words: str, kill_at: int = -1) -> End:
        end = restore(self.saved, self.image, "--yes", *self._words, *words, kill_at=kill_at)
        assert end.code in {0, -9}
        return end

    def assert_whole(self) -> None:
        self._sync()
        found = content(self.path)
        wrong = np.flatnonzero(self._defined & (found != self._right))
        assert not len(wrong), f"{len(wrong)} sectors are wrong, the first is {wrong[0]}"

    def assert_unfinished(self) -> None:
        self._sync()
        if self.path.exists():
            found = process.run("blkid", "-p", self.path, accept=(0, 2))
            is_whole = found != "" and journal.find(self.path, 0) is None
            assert not found or is_whole

    def _sync(self) -> None:
        if self.kind == "device":
            process.run("blockdev", "--flushbufs", self._words[1].partition("=")[2])

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(params=["device", "file", "new file", "device with large sectors"])
def case(
    request: pytest.FixtureRequest, saved: Saved, tmp_path: Path, large_sectors: str
) -> Iterator[Case]:
    kind = request.param.removesuffix(" with large sectors")
    image = "bios" if kind == request.param else large_sectors
    case = Case(saved, tmp_path, kind, image)
    yield case
    case.close()


def test_killed_at_many_moments_it_goes_on(case: Case) -> None:
    operations = case.whole.operations
    saw_less = 0
    for number, moment in enumerate(range(3, operations, operations // 4)):
        case.renew(number)
        assert case.run(kill_at=moment).code == -9
        case.assert_unfinished()
        end = case.run()
        assert end.code == 0
        case.assert_whole()
        saw_less += end.written < case.whole.written
    assert saw_less >= 2


def test_killed_again_and_again_it_ends_up_whole(case: Case) -> None:
    chance = random.Random(7)
    kills = 0
    while case.run(kill_at=chance.randrange(10, 60)).code:
        kills += 1
        case.assert_unfinished()
    case.assert_whole()
    assert 1 < kills < case.whole.operations // 10 + 8


@pytest.mark.slow
def test_thirty_random_kills(case: Case) -> None:
    chance = random.Random(os.urandom(8))
    for _ in range(30):
        if case.run(kill_at=chance.randrange(case.whole.operations)).code == 0:
            case.assert_whole()
            case.renew(chance.randrange(1000))
        case.assert_unfinished()
    case.run()
    case.assert_whole()


def test_the_verb_says_where_it_goes_on(
    saved: Saved,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("restore.windows.WINDOW", 6)
    target = tmp_path / "target"
    words = ["bios", "--map", f"disk0={target}"]
    whole = restore(saved, *words, "--yes")
    assert whole.code == 0
    right = digest(target)
    target.unlink()
    assert restore(saved, *words, "--yes", kill_at=whole.operations * 2 // 3).code == -9
    left = digest(target)
    capsys.readouterr()
    assert saved.restore(*words, "--dry-run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1. resume the restore that began" in shown
    assert "are there already" in shown
    assert saved.restore(*words, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["resumes"]
    assert 0 < plan["there_bytes"] < plan["written_bytes"]
    assert saved.restore(*words, "--dry-run", "--anew") == 0
    assert "was not finished. This begins from the start, as was asked" in " ".join(
        capsys.readouterr().out.split()
    )
    assert digest(target) == left
    assert saved.restore(*words, "--yes", "--verify-written", "--stats") == 0
    shown = capsys.readouterr().out
    assert "\n  compare " in shown
    assert digest(target) == right == digest(saved.mbr)


def test_a_disk_that_was_used_since_is_not_taken_for_half_restored(
    saved: Saved, tmp_path: Path
) -> None:
    """A new table leaves the place of the journal alone, and says that the rest is not ours."""
    disk = noisy(tmp_path / "disk", 1)
    with loop(disk) as device:
        words = ["bios", "--yes", *onto(device)]
        whole = restore(saved, *words, discards=True)
        assert restore(saved, *words, kill_at=whole.operations * 2 // 3, discards=True).code == -9
        assert journal.find(device, MIB) is not None
        process.run("sfdisk", "--quiet", device, stdin=b"label: gpt\nstart=2048\n")
        found = journal.find(device, MIB)
        assert found is not None
        assert not found.is_alone
        with disk.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(os.urandom(MIB))
        assert restore(saved, *words, discards=True).code == 0
    assert digest(disk) == digest(saved.mbr)
