"""What files live through, and how they are compared; runs on the host and in the guest.

Only Python's own library is used.
"""

import hashlib
import os
import random
import stat
from contextlib import suppress
from pathlib import Path

SIZES = (0, 7, 400, 3_000, 20_000, 90_000, 400_000)


def fill(root: Path, seed: int, count: int = 120) -> None:
    """Make files of many sizes, links, holes and attributes where the filesystem knows them."""
    rng = random.Random(seed)
    folders = [root / f"folder {number} of {seed}" for number in range(6)]
    for folder in folders:
        folder.mkdir()
    for number in range(count):
        path = folders[number % 6] / f"file {number} with a långer name.bin"
        path.write_bytes(rng.randbytes(rng.choice(SIZES)))
        if number % 7 == 0:
            with suppress(OSError):
                os.setxattr(path, "user.remetal", rng.randbytes(rng.choice((5, 900))))
        if number % 11 == 0:
            with suppress(OSError):
                path.with_suffix(".link").symlink_to(path.name)
                path.with_suffix(".hard").hardlink_to(path)
    with (folders[0] / "holes").open("wb") as file:
        file.truncate(3_000_000)
        for island in range(1, 5):
            os.pwrite(file.fileno(), rng.randbytes(5_000), island * 600_000)


def churn(root: Path, seed: int) -> None:
    """Delete, overwrite, append, cut and rename, so that much of what was written is free again."""
    rng = random.Random(seed)
    files = sorted(path for path in root.rglob("file *.bin") if path.is_file())
    for number, path in enumerate(files):
        match number % 6:
            case 0:
                path.unlink()
            case 1:
                with path.open("r+b") as file:
                    file.seek(rng.randrange(1 + path.stat().st_size))
                    file.write(rng.randbytes(rng.choice(SIZES)))
            case 2:
                with path.open("ab") as file:
                    file.write(rng.randbytes(rng.choice(SIZES)))
            case 3:
                os.truncate(path, path.stat().st_size // 3)
            case 4:
                path.rename(path.with_name(f"renamed {number}.bin"))


def scatter(root: Path, count: int = 60, size: int = 40_000) -> None:
    """Make a file of many pieces: it grows in turns with others, which then go."""
    names = [root / f"scattered {number}" for number in range(3)]
    block = bytes(range(256)) * (size // 256)
    for _ in range(count):
        for name in names:
            with name.open("ab") as file:
                file.write(block)
    for name in names[1:]:
        name.unlink()


def state(root: Path) -> dict[str, str]:
    """Return everything below a folder with a digest of what it holds and of its attributes."""
    found = {}
    for path in sorted(root.rglob("*")):
        meta = path.lstat()
        words = [f"{meta.st_mode:o}", f"{meta.st_mtime_ns}", f"{meta.st_uid}:{meta.st_gid}"]
        if stat.S_ISLNK(meta.st_mode):
            words.append(os.readlink(path))  # noqa: PTH115 - as it is written there
        else:
            if stat.S_ISREG(meta.st_mode):
                with path.open("rb") as file:
                    words.append(hashlib.file_digest(file, "sha256").hexdigest())
            with suppress(OSError):
                for name in sorted(os.listxattr(path)):
                    value = os.getxattr(path, name)
                    words.append(f"{name}={hashlib.sha256(value).hexdigest()}")
        found[str(path.relative_to(root))] = " ".join(words)
    return found
