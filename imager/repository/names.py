"""Names of objects (FORMAT.md section 2): what is an object, and of which sort, by its name alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from imager.repository.header import Magic

CONFIG: Final = "config"
PACKS: Final = "packs/"
INDEXES: Final = "indexes/"
IMAGES: Final = "images/"
GENERATIONS: Final = "generations/"
STATEMENTS: Final = "statements/"
REMOVALS: Final = "removals/"
REVOCATIONS: Final = "revocations/"
PARITY: Final = "parity/"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of objects that are named by their SHA-256.

    Attributes:
        magic: what they begin with.
        is_sharded: whether the first two digits of the hash are a folder of their own.
        is_covered: whether parity may cover them.
    """

    magic: Magic
    is_sharded: bool
    is_covered: bool


FOLDERS: Final[Mapping[str, Folder]] = {
    PACKS: Folder(Magic.PACK, is_sharded=True, is_covered=True),
    INDEXES: Folder(Magic.INDEX, is_sharded=False, is_covered=True),
    IMAGES: Folder(Magic.IMAGE, is_sharded=False, is_covered=True),
    STATEMENTS: Folder(Magic.STATEMENT, is_sharded=False, is_covered=True),
    REVOCATIONS: Folder(Magic.STATEMENT, is_sharded=False, is_covered=True),
    REMOVALS: Folder(Magic.STATEMENT, is_sharded=False, is_covered=False),
    PARITY: Folder(Magic.PARITY, is_sharded=True, is_covered=False),
}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")


def is_digest(text: str) -> bool:
    """Whether this is a SHA-256 as names have it."""
    return _DIGEST.fullmatch(text) is not None


def folder_of(name: str) -> Folder | None:
    """Return the folder of an object that is named by its SHA-256; None for every other name."""
    prefix, separator, rest = name.partition("/")
    folder = FOLDERS.get(prefix + separator)
    if folder is None:
        return None
    digest = rest
    if folder.is_sharded:
        shard, _, digest = rest.partition("/")
        if shard != digest[:2]:
            return None
    return folder if is_digest(digest) else None


def digest_of(name: str) -> str | None:
    """Return the SHA-256 that a name is made of, hex; None for every other name."""
    return None if folder_of(name) is None else name.rpartition("/")[2]


def generation_of(name: str) -> int | None:
    """Return the number of the generation of that name; None for every other name."""
    number = name.removeprefix(GENERATIONS)
    return int(number) if number != name and _NUMBER.fullmatch(number) else None


def is_object(name: str) -> bool:
    """Whether the format knows objects of such a name."""
    return name == CONFIG or generation_of(name) is not None or folder_of(name) is not None


def may_be_covered(name: str) -> bool:
    """Whether parity may cover objects of such a name."""
    folder = folder_of(name)
    return is_object(name) and (folder is None or folder.is_covered)
