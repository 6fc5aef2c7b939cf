"""What a backend is: names and bytes, create-only.

Names are relative POSIX paths of lower-case letters, digits, `/`, `-` and `.`. An object appears
whole or not at all, never changes, and goes whole.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

Buffer = bytes | bytearray | memoryview

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,127}(/[a-z0-9][a-z0-9.-]{0,127}){0,7}")
# What writers that were stopped have left, in stores that know no better place for it.
INCOMING: Final = "incoming"


def is_name(name: str) -> bool:
    """Whether objects may have such a name; what begins with `incoming/` is none."""
    return _NAME.fullmatch(name) is not None and name.partition("/")[0] != INCOMING


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in a listing.

    Attributes:
        name: relative to the repository.
        size: bytes.
        modified: seconds since the epoch by the store's clock.
        newer: of a store that keeps versions, how many versions and delete markers of this name came
            after the one that is read, the first: somebody tried to overwrite or to hide it.
    """

    name: str
    size: int
    modified: float
    newer: int = 0


class Backend(Protocol):
    """A place for objects, for any number of threads at once.

    Every method may raise `LinkError` and those below it besides what it lists: they say something
    about the way to the store or about the keys shown to it, and nothing about objects.
    """

    @property
    def location(self) -> str:
        """The place as the user wrote it, without secrets."""
        ...

    @property
    def folders(self) -> tuple[Path, ...]:
        """The directories of this machine that hold the objects; none of a store elsewhere."""
        ...

    @property
    def lock_span(self) -> float | None:
        """For how many seconds the store locks what is put there; None of a store without locks."""
        ...

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        """Create an object from the joined parts, durably.

        When this returns, the object survives a power cut. When it raises, there is no object of
        that name, or it is there whole but may not survive a power cut.

        Args:
            name: of the object.
            parts: its bytes.
            modified: only for what is brought back: when this store took it first. A store that
                can't keep a time that is given takes its own.

        Returns:
            Whether it was created; False when the name was there already (it is left as it is).

        Raises:
            NoRoom: the store is full.
            OutputError: the store does not take it for another reason.
        """
        ...

    def get(self, name: str) -> bytes:
        """Return an object whole.

        Raises:
            ObjectMissing: there is none.
            ObjectDamaged: the store can't read it back.
        """
        ...

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            ObjectMissing: there is none.
            ObjectDamaged: it ends before, or the store can't read it back.
        """
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects whose name starts with `prefix` (a folder with its slash), by name.

        What the store holds besides is yielded as well; where its name is no text, with the bytes
        escaped, and then there is no object of the name that is yielded.

        Raises:
            ObjectDamaged: the store can't list all of them.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove an object, durably; a name that is not there is no error.

        Only upkeep calls this, and only for what no image needs or what no longer verifies.

        Raises:
            ObjectLocked: the store keeps it for now.
            OutputError: the store does not let it go for another reason.
        """
        ...

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        """Return until when the store keeps an object, whoever asks to delete it; for any thread.

        Args:
            name: of the object.
            shortest: rather than when all of it may go, of its copies at several sites and of what was
                put above it, when the first may of what is read: what must never come.

        Returns:
            Seconds since the epoch by the store's clock, infinite if the lock ends only when somebody
            lifts it; None when nothing keeps the object, or there is none.

        Raises:
            OutputError: the store does not tell.
        """
        ...

    def retain(self, name: str, until: float) -> None:
        """Let the store keep an object until a time at least, whoever asks to delete it.

        A lock is never shortened. A store without locks, and an object that is not there, are no
        error: nothing happens.

        Args:
            name: of the object.
            until: seconds since the epoch by the store's clock.

        Raises:
            OutputError: the store does not take it.
        """
        ...

    def now(self) -> float:
        """Return the store's clock, comparable with `Entry.modified`.

        Raises:
            NoRoom: the store is full.
            OutputError: the store does not tell for another reason.
        """
        ...

    def tidy(self) -> None:
        """Remove what interrupted writers left behind more than a day ago, by the store's clock.

        Never an object.

        Raises:
            OutputError: the store does not tell its time.
        """
        ...
