"""The far side of ssh://: serves one directory over two file descriptors; SERVE.md specifies it.

It listens nowhere: sshd starts it as the forced command of a key, and its role is what that
command line says. Whatever the other side sends, an append-only key adds objects under names that
are free, and changes and removes nothing.
"""

import contextlib
import fcntl
import hashlib
import os
import select
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from imager.errors import (
    MalformedAnswer,
    NoRoom,
    ObjectDamaged,
    ObjectLocked,
    ObjectMissing,
    OutputError,
    RemetalError,
    StoreRefused,
    StoreUnreachable,
)
from imager.repository.backend import frames
from imager.repository.backend.directory import DirectoryBackend, Incoming
from imager.repository.backend.frames import Fault, Greeting, Kind, Put, Role
from imager.repository.backend.protocol import Buffer, is_name
from imager.repository.backend.serve_budget import Budget

MOST_BYTES: Final = 1 << 30  # of one object, by default
IDLE_SECONDS: Final = 900
_LISTED: Final = 1 << 16  # bytes of a listing in one frame
_READ_AT_ONCE: Final = 1 << 18
_PIPE: Final = 1 << 20  # bytes; what Linux lets everybody have

_FAULTS: Final[Mapping[type[RemetalError], Fault]] = {
    ObjectMissing: Fault.MISSING,
    ObjectDamaged: Fault.DAMAGED,
    ObjectLocked: Fault.LOCKED,
    NoRoom: Fault.NO_ROOM,
    OutputError: Fault.NOT_TAKEN,
}


class Refused(Exception):
    """What a key asks for and may not have.

    Args:
        fault: its number in the protocol.
        message: for both sides.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message


@dataclass(frozen=True, slots=True)
class Permit:
    """What one key may do.

    Attributes:
        role: its verbs.
        budget: how much and how fast.
        most: bytes of the largest object.
        may_add: whether it may add an object of a name; what a key adds of another sort may stop
            others, such as a file where they need a folder.
        digest_of: the SHA-256 that an object of a name must have, if its name says so; else a key could
            take the name of what somebody has yet to bring, or to bring back.
    """

    role: Role
    budget: Budget
    most: int = MOST_BYTES
    may_add: Callable[[str], bool] = is_name
    digest_of: Callable[[str], bytes | None] = lambda _: None


def check_order(order: str | None, repository: Path) -> None:
    """Make sure that the other side asked for nothing but this repository.

    Args:
        order: the command it sent, which a forced command replaces; None if it sent none.
        repository: what is served.

    Raises:
        StoreRefused: it asked for something else.
    """
    if not order:
        return
    try:
        words = shlex.split(order)
    except ValueError:
        words = []
    if words[:2] != ["remetal", "serve"] or len(words) < 3:
        raise StoreRefused("this key can do nothing but reach its repository")
    if Path(words[-1]).resolve() != repository.resolve():
        raise StoreRefused(f"this key does not reach {words[-1]}")


class Server:
    """One connection.

    Args:
        store: the directory.
        permit: what the key may do.
        refuse: is told of everything that is refused: verb, name of the object, and why.
        source: descriptor to read from.
        sink: descriptor to write to.
        idle: seconds of silence after which the other side counts as gone.
    """

    def __init__(
        self,
        store: DirectoryBackend,
        permit: Permit,
        refuse: Callable[[str, str, str], None],
        source: int,
        sink: int,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self._store = store
        self._permit = permit
        self._refuse = refuse
        self._input = _Input(source, idle)
        self._source = source
        self._sink = sink
        self._idle = idle
        self.created = 0
        self.stored_bytes = 0
        self.deleted: list[str] = []

    def run(self) -> None:
        """Answer until the other side is gone.

        Raises:
            MalformedAnswer: it does not speak the protocol.
            StoreUnreachable: it said or took nothing for too long, or left in the middle of something.
        """
        # Who takes nothing must not hold this process for ever.
        os.set_blocking(self._sink, False)
        for end in (self._source, self._sink):
            # sshd gives pipes of 64 KiB, and each of its packets would wake this process.
            with contextlib.suppress(OSError):
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE)
        greeting = Greeting(frames.VERSION, self._permit.role, self._permit.most)
        self._send(Kind.GREETING, greeting.encode())
        while True:
            try:
                kind, payload = frames.read_frame(self._input.exactly)
            except EOFError:
                return
            try:
                self._answer(kind, payload)
            except EOFError as error:
                raise StoreUnreachable("the other side left in the middle of an object") from error

    def _answer(self, kind: Kind, payload: bytes) -> None:
        name = ""
        try:
            name = _name_in(kind, payload)
            _VERBS[kind](self, payload)
        except Refused as refusal:
            self._refuse(kind.name.lower(), name, refusal.message)
            self._send(Kind.ERROR, frames.error(refusal.fault, refusal.message))
        except MalformedAnswer as error:
            self._refuse(kind.name.lower(), name, error.message)
            self._send(Kind.ERROR, frames.error(Fault.MALFORMED, error.message))
            raise
        except tuple(_FAULTS) as error:
            fault = next(f for k, f in _FAULTS.items() if isinstance(error, k))
            self._send(Kind.ERROR, frames.error(fault, error.message))

    def _put(self, payload: bytes) -> None:
        put = Put.decode(payload)
        self._check_role(Role.APPEND_ONLY, "add anything")
        _check_name(put.name)
        if not self._permit.may_add(put.name):
            raise Refused(Fault.NOT_ALLOWED, "this key can't add such an object")
        if put.size > self._permit.most:
            raise Refused(
                Fault.NOT_ALLOWED, f"{put.size} bytes are more than the {self._permit.most} allowed"
            )
        is_owner = self._permit.role is Role.MAY_DELETE
        if put.modified == put.modified and not is_owner:
            raise Refused(Fault.NOT_ALLOWED, "this key can't say when an object came")
        created = False
        with self._store.begin(put.name) as incoming:
            if incoming.exists:
                self._send(Kind.THERE)
                digest = self._end_of(*frames.read_head(self._input.exactly))
            else:
                digest, created = self._receive(put, incoming)
        if created:
            self.created += 1
            self.stored_bytes += put.size
            self._send(Kind.CREATED)
        elif self._digest(put.name) == digest:
            self._send(Kind.SAME)
        else:
            self._refuse("put", put.name, "it is there, with other bytes")
            self._send(Kind.OTHER)

    def _receive(self, put: Put, incoming: Incoming) -> tuple[bytes, bool]:
        """Store what is not there yet; return its BLAKE3, and whether nobody else did so meanwhile."""
        if not self._permit.budget.reserve(put.size):
            raise Refused(Fault.OVER_QUOTA, "the quota of this key is used up")
        created = False
        try:
            self._send(Kind.DONE)
            digest = self._take(put, incoming.write)
            created = incoming.finish(None if put.modified != put.modified else put.modified)
        finally:
            if not created:
                self._permit.budget.give_back(put.size)
        return digest, created

    def _take(self, put: Put, write: Callable[[list[Buffer]], None]) -> bytes:
        """Read an object up to its end, whatever happens, and return the BLAKE3 that is said of it.

        Raises:
            OSError: it could not be written.
            Refused: it is not what the other side says.
        """
        named, left = self._permit.digest_of(put.name), put.size
        digest = blake3() if named is None else hashlib.sha256()
        problem: OSError | None = None
        while True:
            kind, length = frames.read_head(self._input.exactly)
            if kind is not Kind.DATA:
                break
            if length > left:
                raise MalformedAnswer("an object is longer than was said")
            left -= length
            for data in self._input.pieces(length, self._permit.budget.step):
                self._permit.budget.spend(len(data))
                digest.update(data)
                if problem is None:
                    try:
                        write([data])
                    except OSError as error:
                        problem = error
        said = self._end_of(kind, length)
        if problem is not None:
            raise problem
        if left or digest.digest() != (named or said):
            raise Refused(Fault.WRONG_HASH, "other bytes came than were announced")
        return said

    def _end_of(self, kind: Kind, length: int) -> bytes:
        if kind is not Kind.END:
            raise MalformedAnswer(f"{kind.name} comes where an object ends")
        return frames.split_digest(self._input.exactly(length))

    def _digest(self, name: str) -> bytes:
        digest = blake3()
        for part in self._store.pieces(name, 0, self._store.size(name), frames.MOST_PAYLOAD):
            self._permit.budget.spend(len(part))
            digest.update(part)
        return digest.digest()

    def _get(self, payload: bytes) -> None:
        name = frames.text(payload)
        _check_name(name)
        self._give(name, 0, self._store.size(name))

    def _range(self, payload: bytes) -> None:
        name, offset, length = frames.split_range(payload)
        _check_name(name)
        size = self._store.size(name)
        if offset + length > size:
            raise ObjectDamaged(f"{name} ends {offset + length - size} bytes too early")
        self._give(name, offset, length)

    def _give(self, name: str, offset: int, length: int) -> None:
        self._send(Kind.SIZE, frames.size(length))
        for part in self._store.pieces(name, offset, length, self._permit.budget.step):
            self._send_data(part)
        self._send(Kind.END)

    def _list(self, payload: bytes) -> None:
        prefix = frames.text(payload)
        if prefix and not is_name(prefix.removesuffix("/")):
            raise Refused(Fault.BAD_NAME, "no folder of objects has such a name")
        batch = bytearray()
        for found in self._store.list(prefix):
            if not found.name.startswith(prefix):
                continue
            batch += frames.entry(found)
            if len(batch) >= _LISTED:
                self._send_data(batch)
                batch = bytearray()
        if batch:
            self._send_data(batch)
        self._send(Kind.END)

    def _send_data(self, data: Buffer) -> None:
        self._permit.budget.spend(len(data))
        self._send(Kind.DATA, data)

    def _delete(self, payload: bytes) -> None:
        name = frames.text(payload)
        self._check_role(Role.MAY_DELETE, "remove anything")
        _check_name(name)
        self._store.delete(name)
        self.deleted.append(name)
        self._send(Kind.DONE)

    def _locked(self, payload: bytes) -> None:
        name = frames.text(payload)
        _check_name(name)
        self._send(Kind.NUMBER, frames.number(self._store.locked_until(name)))

    def _now(self, _: bytes) -> None:
        self._send(Kind.NUMBER, frames.number(self._store.now()))

    def _tidy(self, _: bytes) -> None:
        self._check_role(Role.APPEND_ONLY, "tidy up")
        self._store.tidy()
        self._send(Kind.DONE)

    def _check_role(self, least: Role, what: str) -> None:
        if self._permit.role < least:
            raise Refused(Fault.NOT_ALLOWED, f"this key can't {what}")

    def _send(self, kind: Kind, payload: Buffer = b"") -> None:
        left = [memoryview(part) for part in frames.frame(kind, payload) if len(part)]
        while left:
            try:
                written = os.writev(self._sink, left)
            except BlockingIOError:
                if not select.select([], [self._sink], [], self._idle)[1]:
                    raise StoreUnreachable(
                        f"nothing was taken for {self._idle:g} seconds"
                    ) from None
                continue
            except OSError as error:
                raise StoreUnreachable("the other side is gone") from error
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]


class _Input:
    """What the other side sends, read into one buffer."""

    def __init__(self, source: int, idle: float) -> None:
        self._source = source
        self._idle = idle
        self._buffer = memoryview(bytearray(_READ_AT_ONCE))
        self._start = self._end = 0

    def exactly(self, length: int) -> bytes:
        """Return the next bytes.

        Raises:
            EOFError: there are no more.
            StoreUnreachable: they did not come in time.
        """
        return b"".join(bytes(piece) for piece in self.pieces(length))

    def pieces(self, length: int, most: int = _READ_AT_ONCE) -> Iterator[memoryview]:
        """Yield the next bytes piece by piece, each to be used before the next; errors as above."""
        while length:
            while self._start == self._end:
                self._fill()
            piece = self._buffer[self._start : min(self._end, self._start + min(length, most))]
            self._start += len(piece)
            length -= len(piece)
            yield piece

    def _fill(self) -> None:
        ready, _, _ = select.select([self._source], [], [], self._idle)
        if not ready:
            raise StoreUnreachable(f"nothing came for {self._idle:g} seconds")
        try:
            count = os.readv(self._source, [self._buffer])
        except BlockingIOError:
            return
        except OSError as error:
            raise StoreUnreachable("the other side is gone") from error
        if not count:
            raise EOFError
        self._start, self._end = 0, count


_VERBS: Final[Mapping[Kind, Callable[[Server, bytes], None]]] = {
    Kind.PUT: Server._put,  # noqa: SLF001
    Kind.GET: Server._get,  # noqa: SLF001
    Kind.RANGE: Server._range,  # noqa: SLF001
    Kind.LIST: Server._list,  # noqa: SLF001
    Kind.DELETE: Server._delete,  # noqa: SLF001
    Kind.LOCKED: Server._locked,  # noqa: SLF001
    Kind.NOW: Server._now,  # noqa: SLF001
    Kind.TIDY: Server._tidy,  # noqa: SLF001
}


def _name_in(kind: Kind, payload: bytes) -> str:
    """Return what a request is about; `MalformedAnswer` if it is none."""
    if kind not in _VERBS:
        raise MalformedAnswer(f"{kind.name} is no request")
    if kind is Kind.RANGE:
        return frames.split_range(payload)[0]
    return Put.decode(payload).name if kind is Kind.PUT else frames.text(payload)


def _check_name(name: str) -> None:
    if not is_name(name):
        raise Refused(Fault.BAD_NAME, "no object has such a name")
