"""The disks that are captured: an ext4 filesystem of real files, a changed copy, a second machine.

All three are made once from files of the machine that the benchmark runs on, and kept by a hash of
the recipe: what this module and those that it uses say, and the scale. The files come package by package, as an
installation writes them; on the second machine the packages come in another order.
"""

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.units import GIB, MIB
from tests.benchmarks.images import groups, trees
from tests.benchmarks.images.groups import Group, groups_below, size_of
from tests.benchmarks.images.measure import said
from tests.benchmarks.images.trees import SETTLED, Tree, tree_of

SIZE: Final = 8 * GIB
USED: Final = 5 * GIB
CHANGED: Final = 0.02
_RESIDUE: Final = 0.1  # of what is used: written, and deleted again
_SPARE: Final = 0.02  # files that come to the changed copy
_SEED: Final = 5
_LARGEST: Final = 0.03  # of what is used: no single file is what is measured
_DIFFERENCE_EVERY: Final = 32 * 1024
_BYTES_PER_INODE: Final = 8192

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Disk files, each one ext4 filesystem without a partition table.

    Attributes:
        folder: they lie in.
        used: bytes that each one's filesystem uses.
        taken: what the files are, in words.
    """

    folder: Path
    used: dict[str, int]
    taken: str

    def image(self, name: str) -> Path:
        """Return one of `base`, `changed`, `second`."""
        return self.folder / f"{name}.img"

    def tree(self, name: str) -> Tree:
        """Return what its files are."""
        found: Tree = json.loads((self.folder / f"{name}.json").read_text())
        return found


def machine_folders() -> tuple[Path, ...]:
    """Return where the files of this machine are taken from."""
    return (Path("/usr"), Path("/var/lib"), Path(sys.prefix).resolve(), Path(".cache").resolve())


def build(cache: Path, scale: float, say: Say, roots: Sequence[Path]) -> Corpus:
    """Return the corpus of this scale; it is made if it is not there.

    Args:
        cache: folder for all corpora.
        scale: share of the full size.
        say: is told what is done.
        roots: folders whose files are taken.
    """
    recipe = hashlib.sha256(repr((scale, roots)).encode())
    for module in (__file__, groups.__file__, trees.__file__):
        recipe.update(Path(module).read_bytes())
    folder = cache / f"corpus-{recipe.hexdigest()[:16]}"
    if not folder.exists():
        making = cache / f"{folder.name}.making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        say("making the disks (once)")
        _make(making, scale, say, roots)
        making.rename(folder)
    facts = json.loads((folder / "facts.json").read_text())
    return Corpus(folder, facts["used"], facts["taken"])


@contextmanager
def device_of(file: Path) -> Iterator[Path]:
    """Give a file the form of a block device for a while."""
    device = said("losetup", "--find", "--show", file).strip()
    try:
        # A mark that forbids writing outlives the file that a device had before.
        said("blockdev", "--setrw", device)
        yield Path(device)
    finally:
        said("losetup", "--detach", device)


@contextmanager
def mounted(image: Path, *options: str) -> Iterator[Path]:
    """Mount a disk file for a while."""
    place = image.with_suffix(".mounted")
    place.mkdir(exist_ok=True)
    with device_of(image) as device:
        said("mount", "-o", ",".join(("noatime", *options)), device, place)
        try:
            yield place
        finally:
            said("umount", place)
    place.rmdir()


def mkfs(path: Path, size: int, *options: str) -> None:
    """Make an ext4 filesystem in a new sparse file."""
    with path.open("wb") as file:
        file.truncate(size - size % MIB)
    said("mkfs.ext4", "-q", "-m", "0", *options, path)


def _make(folder: Path, scale: float, say: Say, roots: Sequence[Path]) -> None:
    chance = random.Random(_SEED)
    wanted = int(USED * scale)
    chosen, taken = _choose(wanted, chance, roots, folder.parent)
    say(taken)
    base, changed, second = (folder / f"{name}.img" for name in ("base", "changed", "second"))
    # As on a disk that has run for a while: nothing is left for the kernel to initialise later.
    options = ("-i", str(_BYTES_PER_INODE), "-E", "lazy_itable_init=0")
    mkfs(base, int(SIZE * scale), *options)
    with mounted(base) as place:
        laid, spare = _fill(place, chosen, wanted, chance)
    say("the first disk is made; now its changed copy")
    said("cp", "--sparse=always", base, changed)
    with mounted(changed) as place:
        _change(place, laid, spare, int(wanted * CHANGED), chance)
    say("now the second machine")
    mkfs(second, int(SIZE * scale), *options)
    chance.shuffle(laid)
    with mounted(base, "ro") as source, mounted(second) as place:
        for name in (name for names in laid for name in names):
            _copy(source / name, place / name)
    used = {}
    for image in (base, changed, second):
        os.sync()
        with mounted(image, *SETTLED) as place:
            found = os.statvfs(place)
            used[image.stem] = (found.f_blocks - found.f_bfree) * found.f_frsize
            (folder / f"{image.stem}.json").write_text(json.dumps(tree_of(place)))
    (folder / "facts.json").write_text(json.dumps({"used": used, "taken": taken}))


def _choose(
    wanted: int, chance: random.Random, roots: Sequence[Path], cache: Path
) -> tuple[list[tuple[Group, int]], str]:
    """Return groups in order, each with how often it was taken before, and in words what they are."""
    found = groups_below(roots, int(wanted * _LARGEST), cache.resolve())
    needed = wanted * (1 + _RESIDUE + _SPARE)
    total = sum(group.size for group in found)
    chosen: list[tuple[Group, int]] = []
    size, again = 0, 0
    while size < needed:
        for group in chance.sample(found, len(found)):
            if size >= needed:
                break
            chosen.append((group, again))
            size += group.size
        again += 1
    times = f", all {again} times with differences" if needed > total else ""
    names = ", ".join(map(str, roots))
    return sorted(chosen), (
        f"{len(chosen)} packages and trees of {names} ({size / MIB:.0f} MiB){times}"
    )


def _fill(
    place: Path, chosen: Sequence[tuple[Group, int]], wanted: int, chance: random.Random
) -> tuple[list[list[str]], list[str]]:
    """Copy, and delete a part again.

    Returns:
        The names that stay, group by group, and spare files, where they lie on this machine.
    """
    spared, deleted = _roles([group.size for group, _ in chosen], wanted, chance)
    laid: list[list[str]] = []
    going: list[str] = []
    spare: list[str] = []
    for number, (group, again) in enumerate(chosen):
        if number in spared:
            spare += group.paths
            continue
        names = [f"copy{again}{path}" if again else path.lstrip("/") for path in group.paths]
        for path, name in zip(group.paths, names, strict=True):
            _copy(Path(path), place / name, again)
        if number in deleted:
            going += names
        else:
            laid.append(names)
    os.sync()
    for name in going:
        (place / name).unlink(missing_ok=True)
    return laid, spare


def _roles(sizes: Sequence[int], wanted: int, chance: random.Random) -> tuple[set[int], set[int]]:
    """Return the numbers of groups that are spare, and of those that are deleted again."""
    roles: tuple[set[int], set[int]] = (set(), set())
    numbers = iter(chance.sample(range(len(sizes)), len(sizes)))
    for role, share in zip(roles, (_SPARE, _RESIDUE), strict=True):
        size = 0
        for number in numbers:
            role.add(number)
            size += sizes[number]
            if size >= wanted * share:
                break
    return roles


def _copy(source: Path, target: Path, again: int = 0) -> None:
    """Copy a file with its times and mode. What goes away meanwhile is left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if again and not source.is_symlink():
            target.write_bytes(_differing(source.read_bytes(), again))
            shutil.copystat(source, target, follow_symlinks=False)
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    except (FileNotFoundError, FileExistsError):
        return


def _differing(data: bytes, seed: int) -> bytes:
    """Return the same with eight other bytes in every 32 KiB, so that no chunk is the same."""
    chance, changed = random.Random(seed), bytearray(data)
    for start in range(0, len(data) - 8, _DIFFERENCE_EVERY):
        at = start + chance.randrange(max(1, min(_DIFFERENCE_EVERY, len(data) - start) - 8))
        changed[at : at + 8] = chance.randbytes(8)
    return bytes(changed)


def _change(
    place: Path,
    laid: Sequence[Sequence[str]],
    spare: Sequence[str],
    amount: int,
    chance: random.Random,
) -> None:
    """Write packages anew for half of the bytes, remove some for a quarter, add some for a quarter."""
    groups = chance.sample(laid, len(laid))
    anew = _up_to((place / name for names in groups for name in names), amount // 2)
    gone = _up_to((place / name for names in reversed(groups) for name in names), amount // 4)
    for path in anew:
        if not path.is_symlink():
            path.write_bytes(_differing(path.read_bytes(), _SEED))
    for path in gone:
        path.unlink()
    for path in _up_to(map(Path, spare), amount // 4):
        _copy(path, place / "new" / str(path).lstrip("/"))


def _up_to(paths: Iterable[Path], amount: int) -> list[Path]:
    """Return as many of the paths that exist as make up an amount of bytes."""
    taken, size = [], 0
    for path in paths:
        if size >= amount:
            break
        held = size_of(str(path))
        if held is not None:
            size += held
            taken.append(path)
    return taken
