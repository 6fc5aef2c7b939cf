"""Makes the repository fixture of the version that runs it; see `test_old_repositories.py`.

Run once for each version whose format differs, into a new folder, and committed for good:
`python -m tests.vectors.make_repository tests/vectors/repository-VERSION`. Its keys open nothing else.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.vectors import layer_files

PHRASE = "this key opens a test only"


def main(folder: Path) -> None:
    folder.mkdir()
    (folder / "phrase").write_text(PHRASE + "\n")
    remetal(folder, "init", "repository", "--keys-dir", "keys", "--name", "web")
    remetal(
        folder,
        "key",
        "credential",
        "repository",
        "keys/upkeep.credential",
        "--name",
        "house",
        "--upkeep",
    )
    remetal(folder, "key", "credential", "repository", "keys/gone.credential", "--name", "gone")
    expected = {}
    for number, (machine, credential) in enumerate(
        [("web", "capture"), ("web", "capture"), ("old", "gone")]
    ):
        disk = content(number)
        (folder / "disk").write_bytes(disk)
        made = remetal(
            folder, "capture", "repository", "--disk", "disk", "--name", machine, "--json",
            "--credential", f"keys/{credential}.credential",
        )  # fmt: skip
        expected[json.loads(made)["image"]] = hashlib.sha256(disk).hexdigest()
    (folder / "disk").unlink()
    remetal(folder, "key", "new", "keys/second.key", "--label", "second")
    remetal(folder, "key", "add", "repository", "--recipient", "keys/second.key.pub")
    remetal(folder, "key", "revoke", "repository", "gone", "--reason", "a test", "--yes")
    remetal(folder, "key", "split", "keys/recovery.key", "-o", "pages")
    for page in (folder / "pages").glob("*.html"):
        page.unlink()
    remetal(folder, "hold", "repository", "web", "--reason", "a test")
    remetal(folder, "prune", "repository", "--keep-last", "1")
    remetal(folder, "parity", "repository")
    shutil.rmtree(folder / "cache")
    (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


def content(number: int) -> bytes:
    """Return a disk that shares most of its bytes with the other ones, and compresses well.

    The last one is a LUKS container, so that its layout has a layer.
    """
    lines = random.Random(7)
    text = b"".join(b"line %d of a log, %08x\n" % (n, lines.getrandbits(32)) for n in range(9000))
    changed = random.Random(number).randbytes(20_000)
    first = layer_files.ends("luks1")[1] if number == 2 else b""
    return first + (text[:160_000] + changed + text[160_000:] + bytes(1 << 17)).ljust(
        (1 << 19) - len(first), b"\0"
    )


def remetal(folder: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "REMETAL_PASSPHRASE_FILE": "phrase",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    if words[0] in {"hold", "prune"}:
        words = (*words, "--upkeep-credential", "keys/upkeep.credential")
    elif words[0] == "key" and words[1] not in {"new", "split"}:
        words = (*words, "--recovery-key", "keys/recovery.key")
    done = subprocess.run(
        [sys.executable, "-m", "imager.console", *words],
        cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
