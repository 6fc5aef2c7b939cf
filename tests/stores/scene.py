"""A machine that is captured and restored by the command itself, through whatever link."""

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from imager.repository.backend import place as places
from imager.repository.backend.place import Place

REMETAL = Path(sys.executable).with_name("remetal")
_PASSPHRASE = "correct horse battery"


@dataclass(frozen=True)
class Scene:
    """A disk, and the keys of the repository it goes to.

    Attributes:
        folder: of everything that is made here.
        size: bytes of the disk, all of them noise.
    """

    folder: Path
    size: int

    @property
    def disk(self) -> Path:
        """The disk file."""
        return self.folder / "disk.raw"

    def prepare(self, place: Place) -> None:
        """Make the disk, the repository and the keys."""
        self.disk.write_bytes(random.Random(self.size).randbytes(self.size))
        (self.folder / "passphrase").write_text(_PASSPHRASE)
        (self.folder / "passphrase").chmod(0o600)
        self.finish(self.start(place, "init", "--keys-dir", str(self.folder / "keys")))

    def capture(self, place: Place) -> subprocess.Popen[str]:
        """Start a capture."""
        words = ["--disk", str(self.disk), "--name", "web1"]
        return self.start(place, "capture", *words, "--credential", self._key("capture.credential"))

    def restore(self, place: Place, target: Path) -> subprocess.Popen[str]:
        """Start a restore."""
        words = ["latest", "--map", f"disk0={target}", "--yes"]
        return self.start(place, "restore", *words, "--recovery-key", self._key("recovery.key"))

    def start(self, place: Place, verb: str, *words: str) -> subprocess.Popen[str]:
        """Start any verb."""
        access = place.access
        paths = {
            places.SSH_KEY: access.ssh_key,
            places.KNOWN_HOSTS: access.known_hosts,
            places.STORE_CREDENTIALS: access.credentials,
            places.AUTHORITIES: access.authorities,
            "REMETAL_PASSPHRASE_FILE": self.folder / "passphrase",
            "XDG_CACHE_HOME": self.folder / "cache",
        }
        return subprocess.Popen(
            [REMETAL, verb, place.location, *words],
            env=os.environ | {name: str(path) for name, path in paths.items() if path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def finish(process: subprocess.Popen[str]) -> str:
        """Wait for the end and return what it said.

        Raises:
            AssertionError: it failed.
        """
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
        return said

    def is_equal(self, target: Path) -> bool:
        """Whether a restored disk is bit-exact."""
        return _digest(target) == _digest(self.disk)

    def _key(self, name: str) -> str:
        return str(self.folder / "keys" / name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
