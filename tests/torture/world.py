"""Small real repositories with known content: what the operations start from."""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imager.repository import pack as pack_format
from imager.repository.configuration import Secrets
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import Credential
from imager.repository.repository import Repository
from imager.repository.statement import Signatory
from tests.conftest import Tiny

# Chunks are 128 KiB on average, so a pack holds one to three.
PACK_SIZE: Final = 160 << 10
_BLOCK: Final = 512 << 10


@dataclass(frozen=True, slots=True)
class World:
    """A template of a repository, its keys and its content.

    Attributes:
        folder: holds the template in `repository`.
        key: opens it.
        credential: of a machine.
        signatory: signs upkeep.
        content: bytes of the one volume of each machine.
        images: ids of the images in the template, by machine.
    """

    folder: Path
    key: RecipientKey
    credential: Credential
    signatory: Signatory
    content: dict[str, bytes]
    images: dict[str, str]

    @property
    def template(self) -> Path:
        """The repository that is copied for each point."""
        return self.folder / "repository"

    def tiny(self, root: Path) -> Tiny:
        """Return a copy of the repository as tests use it."""
        return Tiny(root, self.key, self.credential)

    def capture(self, root: Path, machine: str, scratch: Path) -> str:
        """Capture a machine and return the image's id."""
        return self.tiny(root).add({"disk": self.content[machine]}, scratch, machine)

    def copied(self, folder: Path) -> "World":
        """Return a world whose template is a copy that may be changed."""
        shutil.copytree(self.template, folder / "repository")
        return World(
            folder, self.key, self.credential, self.signatory, self.content, dict(self.images)
        )


def small_packs() -> None:
    """Let packs of this process and its children be small."""
    pack_format.TARGET_SIZE = PACK_SIZE  # type: ignore[misc]


def machines(seed: int) -> dict[str, bytes]:
    """Return the content of three machines that share half of what each has."""
    chance = random.Random(seed)
    pieces = [chance.randbytes(_BLOCK) for _ in range(6)]
    return {
        "old": pieces[0] + pieces[1] + pieces[2],
        "kept": pieces[1] + pieces[3],
        "new": pieces[3] + bytes(_BLOCK) + pieces[4] + pieces[5],
    }


def make(folder: Path, seed: int) -> World:
    """Make a repository with the images of `old` and `kept`."""
    held: list[tuple[Credential, Secrets]] = []

    def keep(repository: Repository, secrets: Secrets) -> None:
        held.append((repository.new_credential(secrets, "torture"), secrets))

    key = RecipientKey.generate()
    root = folder / "repository"
    repository = Repository.create(str(root), [("torture", key.recipient)], keep)
    credential, secrets = held[0]
    repository.publish(credential)
    world = World(folder, key, credential, Signatory(secrets.signer), machines(seed), {})
    for machine in ("old", "kept"):
        world.images[machine] = world.capture(root, machine, folder)
    return world


def age(folder: Path, seconds: float) -> None:
    """Make objects older."""
    for path in folder.rglob("*"):
        if path.is_file():
            when = path.stat().st_mtime - seconds
            os.utime(path, (when, when))
