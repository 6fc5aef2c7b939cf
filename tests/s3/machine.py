"""A machine with a small disk, and the commands that its owner and it run against a bucket."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imager.repository.backend.place import AUTHORITIES, STORE_CREDENTIALS, Place

_PHRASE = "four random words here"
_NEED_KEY = {"prune", "hold", "release", "restore"}


@dataclass(frozen=True)
class Site:
    """A folder with a disk and keys, and a place for the images.

    Attributes:
        folder: where the commands run.
        owner: the place, with the keys of who owns the bucket.
        machine: the place, with the keys of a captured machine.
    """

    folder: Path
    owner: Place
    machine: Place

    @classmethod
    def make(cls, folder: Path, owner: Place, machine: Place) -> "Site":
        """Make the repository."""
        site = cls(folder, owner, machine)
        (folder / "phrase").write_text(_PHRASE + "\n")
        site.run("init", "--keys-dir", "keys")
        return site

    def argv(self, verb: str, *words: str, place: Place | None = None) -> list[str]:
        """Return how a verb is run."""
        location = (place or self.owner).location
        keys = ["--recovery-key", "keys/recovery.key"] if verb in _NEED_KEY else []
        if verb in {"capture", "check", "images"}:
            keys = ["--credential", "keys/capture.credential"]
        return [sys.executable, "-m", "imager.console", verb, location, *words, *keys]

    def environment(self, place: Place | None = None) -> dict[str, str]:
        """Return the variables for a verb; none of it is on a command line."""
        access = (place or self.owner).access
        clean = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
        trusted = {AUTHORITIES: str(access.authorities)} if access.authorities else {}
        return clean | trusted | {
            "REMETAL_PASSPHRASE_FILE": str(self.folder / "phrase"),
            STORE_CREDENTIALS: str(access.credentials),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_STATE_HOME": str(self.folder / "state"),
        }  # fmt: skip

    def start(self, verb: str, *words: str, place: Place | None = None) -> subprocess.Popen[str]:
        """Begin a verb."""
        return subprocess.Popen(
            self.argv(verb, *words, place=place),
            cwd=self.folder,
            env=self.environment(place),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, verb: str, *words: str, place: Place | None = None, code: int = 0) -> str:
        """Run a verb and return what it printed."""
        process = self.start(verb, *words, place=place)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        return out

    def tell(self, verb: str, *words: str, place: Place | None = None) -> dict[str, Any]:
        """Run a verb and return its document."""
        document: dict[str, Any] = json.loads(self.run(verb, *words, "--json", place=place))
        return document

    def new_disk(self, size: int) -> bytes:
        """Write other content to the disk, and return it."""
        content = os.urandom(size)
        (self.folder / "disk").write_bytes(content)
        return content

    def capture(self) -> str:
        """Capture the disk as the machine does, and return the id of the image."""
        words = ("--disk", "disk", "--name", "web")
        image: str = self.tell("capture", *words, place=self.machine)["image"]
        return image

    def restored(self, image: str) -> bytes:
        """Restore an image to a file, and return what it holds."""
        target = self.folder / f"restored-{image[:12]}"
        target.unlink(missing_ok=True)
        self.run("restore", image, "--map", f"disk0={target}", "--yes")
        return target.read_bytes()
