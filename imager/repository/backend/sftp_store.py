"""A repository on any host that speaks SFTP, where nothing can be installed.

Each object is written beside its place, flushed (fsync@openssh.com) and linked to its name
(hardlink@openssh.com; else renamed, which version 3 of the protocol lets fail when the name is
there), and its folder is flushed. What a cut link interrupts goes on where it was.

Plain SFTP can't be append-only: whoever has the key can overwrite and remove every object. Where
that matters, `remetal serve` is for it.
"""

import contextlib
import hashlib
import posixpath
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from imager.errors import (
    LinkError,
    NoRoom,
    ObjectDamaged,
    ObjectMissing,
    OutputError,
    RemetalError,
    StoreRefused,
)
from imager.repository.backend.channels import Channels
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import INCOMING, Buffer, Entry, is_name
from imager.repository.backend.sftp_client import (
    FSYNC,
    HARDLINK,
    Open,
    SftpClient,
    SftpFailure,
    Status,
)
from imager.repository.backend.ssh import Address, Connection

_STALE_SECONDS: Final = 24 * 3600
_LEAST_ROOM: Final = 1 << 20  # a server that has less left is taken to be full
_ROUND: Final = 1 << 20
_DEEPEST: Final = 32  # folders in folders; names of objects have eight


class SftpStore:
    """See `protocol.Backend` for the guarantees.

    Args:
        place: `sftp://[USER@]HOST[:PORT]/PATH`, and the keys.
    """

    def __init__(self, place: Place) -> None:
        self._location = place.location
        self._address = Address.parse(place.location)
        self._root = self._address.path.rstrip("/")
        self._channels = Channels(Connection(place, self._address), _begin, _ANSWERED)
        self._folders: set[str] = set()

    @property
    def location(self) -> str:
        """The location as it was given; it holds no secret."""
        return self._location

    @property
    def folders(self) -> tuple[Path, ...]:
        """None: the objects lie elsewhere."""
        return ()

    @property
    def lock_span(self) -> None:
        """None: SFTP knows no locks."""
        return

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        """Create an object; see `protocol.Backend.put_new`."""
        upload = _Upload(self._path(name), self._incoming(name), parts, modified)

        def send(client: SftpClient) -> bool:
            self._make_folder(client, posixpath.dirname(upload.target))
            self._make_folder(client, posixpath.dirname(upload.temporary))
            return upload.go_on(client)

        try:
            return self._channels.call(send)
        except SftpFailure as failure:
            error = self._not_written(name, failure)
            with contextlib.suppress(SftpFailure, LinkError):
                self._channels.call(lambda client: client.remove(upload.temporary))
            raise error from failure

    def get(self, name: str) -> bytes:
        """Return an object whole; see `protocol.Backend.get`."""
        path = self._path(name)
        parts: list[memoryview] = []

        def fetch(client: SftpClient) -> None:
            done = sum(map(len, parts))
            with client.opened(path, Open.READ) as handle:
                left = client.stat_open(handle).size - done
                for part in client.read(handle, done, left):
                    parts.append(part)  # noqa: PERF402  what has come stays when the link breaks
            if sum(map(len, parts)) != done + left:
                raise ObjectDamaged(f"{name} ends too early")

        with self._reading(name):
            self._channels.call(fetch)
        return b"".join(parts)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return a range of an object; see `protocol.Backend.get_range`."""
        path = self._path(name)

        def fetch(client: SftpClient) -> bytes:
            with client.opened(path, Open.READ) as handle:
                return b"".join(client.read(handle, offset, length))

        with self._reading(name):
            data = self._channels.call(fetch)
        if len(data) != length:
            raise ObjectDamaged(f"{name} ends {length - len(data)} bytes too early")
        return data

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield objects; see `protocol.Backend.list`."""
        top = prefix.rstrip("/")
        if top and not is_name(top):
            return
        try:
            found = self._channels.call(lambda client: list(self._walk(client, top)))
        except SftpFailure as failure:
            raise ObjectDamaged(
                f"{prefix or 'the repository'} can't be listed at {self._location}: {failure.message}"
            ) from failure
        yield from (entry for entry in found if entry.name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Remove an object; see `protocol.Backend.delete`."""
        path = self._path(name)

        def remove(client: SftpClient) -> None:
            try:
                client.remove(path)
                _flush_folder(client, posixpath.dirname(path))
            except SftpFailure as failure:
                if failure.status is not Status.NO_SUCH_FILE:
                    raise

        with self._writing(name):
            self._channels.call(remove)

    def locked_until(self, name: str, *, shortest: bool = False) -> None:
        """None: SFTP does not tell of locks."""
        del name, shortest

    def retain(self, name: str, until: float) -> None:
        """Do nothing; see `lock_span`."""

    def now(self) -> float:
        """Return the clock of the filesystem there; see `protocol.Backend.now`."""
        path = self._incoming("clock")

        def ask(client: SftpClient) -> float:
            self._make_folder(client, posixpath.dirname(path))
            with client.opened(path, Open.WRITE | Open.CREATE) as handle:
                client.write(handle, 0, [b"."])
                modified = client.stat_open(handle).modified
            client.remove(path)
            return float(modified)

        with self._writing("its clock"):
            return self._channels.call(ask)

    def tidy(self) -> None:
        """Remove stale temporary files; see `protocol.Backend.tidy`."""
        folder = f"{self._root}/{INCOMING}"

        def look(client: SftpClient) -> dict[bytes, int]:
            try:
                return {name: found.modified for name, found in client.list(folder)}
            except SftpFailure as failure:
                if failure.status is Status.NO_SUCH_FILE:
                    return {}
                raise

        with self._writing(INCOMING):
            found = {
                name: modified
                for name, modified in self._channels.call(look).items()
                if name not in {b".", b".."}
            }
            if not found:
                return
            oldest = self.now() - _STALE_SECONDS
            for name in (name for name, modified in found.items() if modified < oldest):
                path = f"{folder}/{name.decode('utf-8', 'surrogateescape')}"
                with contextlib.suppress(SftpFailure):
                    self._channels.call(lambda client, path=path: client.remove(path))  # type: ignore[misc]

    def _walk(self, client: SftpClient, folder: str) -> Iterator[Entry]:
        if folder.count("/") > _DEEPEST:
            raise ObjectDamaged(f"the folders at {self._location} have no end")
        try:
            found = sorted(client.list(f"{self._root}/{folder}" if folder else self._root))
        except SftpFailure as failure:
            if failure.status is Status.NO_SUCH_FILE:
                return
            raise
        for raw, attributes in found:
            name = raw.decode("utf-8", "backslashreplace")
            if name in {".", ".."} or (not folder and name == INCOMING):
                continue
            path = f"{folder}/{name}" if folder else name
            if attributes.is_folder:
                yield from self._walk(client, path)
            else:
                yield Entry(path, attributes.size, float(attributes.modified))

    def _path(self, name: str) -> str:
        if not is_name(name):
            raise ObjectMissing(f"{name!r} is no name of an object")
        return f"{self._root}/{name}"

    def _incoming(self, name: str) -> str:
        return f"{self._root}/{INCOMING}/{name.rpartition('/')[2][:16]}-{secrets.token_hex(8)}"

    def _make_folder(self, client: SftpClient, folder: str) -> None:
        if folder in self._folders or folder in {"", "/"}:
            return
        try:
            client.stat(folder)
        except SftpFailure as failure:
            if failure.status is not Status.NO_SUCH_FILE:
                raise
            self._make_folder(client, posixpath.dirname(folder))
            with contextlib.suppress(SftpFailure):  # another thread has made it
                client.make_folder(folder)
            client.stat(folder)
            _flush_folder(client, posixpath.dirname(folder) or "/")
        self._folders.add(folder)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except SftpFailure as failure:
            if failure.status is Status.NO_SUCH_FILE:
                raise ObjectMissing(f"{name} is missing at {self._location}") from failure
            if failure.status is Status.PERMISSION_DENIED:
                raise self._refused(name) from failure
            raise ObjectDamaged(
                f"{name} can't be read at {self._location}: {failure.message}"
            ) from failure

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except SftpFailure as failure:
            raise self._not_written(name, failure) from failure

    def _not_written(self, name: str, failure: SftpFailure) -> RemetalError:
        if failure.status is Status.PERMISSION_DENIED:
            return self._refused(name)
        # The protocol has no number for a full disk.
        with contextlib.suppress(SftpFailure):
            room = self._channels.call(lambda client: client.free_bytes(self._root))
            if room is not None and room < _LEAST_ROOM:
                return NoRoom(f"no room left in the repository at {self._location}")
        return OutputError(
            f"the repository at {self._location} does not take {name}: {failure.message}",
            hint="Check that its folder can be written to over SFTP.",
        )

    def _refused(self, name: str) -> StoreRefused:
        return StoreRefused(
            f"{self._address.user} may not do this with {name} at {self._location}",
            hint="Check who owns the folder there.",
        )


class _Upload:
    """One object on its way, over as many links as it takes."""

    def __init__(
        self, target: str, temporary: str, parts: Sequence[Buffer], modified: float | None
    ) -> None:
        self.target = target
        self.temporary = temporary
        self._parts = [memoryview(part).cast("B") for part in parts]
        self._modified = modified
        self._is_sent = False  # whether it may have its name, and the answer was lost

    def go_on(self, client: SftpClient) -> bool:
        """Send what is missing; whether the object was created."""
        if _is_there(client, self.target):
            created = self._is_sent and self._is_ours(client)
        else:
            self._send(client)
            was_sent, self._is_sent = self._is_sent, True
            created = self._name(client, was_sent)
        with contextlib.suppress(SftpFailure):
            client.remove(self.temporary)
        _flush_folder(client, posixpath.dirname(self.target))
        return created

    def _send(self, client: SftpClient) -> None:
        with client.opened(self.temporary, Open.READ | Open.WRITE | Open.CREATE) as handle:
            done = self._arrived(client, handle)
            client.write(handle, done, list(_from(self._parts, done)))
            if self._modified is not None:
                client.set_modified(handle, int(self._modified))
            client.flush(handle)

    def _arrived(self, client: SftpClient, handle: bytes) -> int:
        """Return how many bytes of the beginning are there, as they must be.

        Their number says too little: a write may have failed whose answer was lost with the link, and a
        server that lost power has holes where nothing was written yet.
        """
        done, size = 0, client.stat_open(handle).size
        while done < size:
            there = b"".join(client.read(handle, done, min(_ROUND, size - done)))
            if not there or not _begins_with(_from(self._parts, done), there):
                break
            done += len(there)
        return done

    def _name(self, client: SftpClient, was_sent: bool) -> bool:
        try:
            if client.offers(HARDLINK):
                client.link(self.temporary, self.target)
            else:
                client.rename(self.temporary, self.target)
        except SftpFailure:
            if _is_there(client, self.target):
                return was_sent and self._is_ours(client)
            raise
        return True

    def _is_ours(self, client: SftpClient) -> bool:
        there, ours = hashlib.sha256(), hashlib.sha256()
        with client.opened(self.target, Open.READ) as handle:
            for part in client.read(handle, 0, client.stat_open(handle).size):
                there.update(part)
        for view in self._parts:
            ours.update(view)
        return there.digest() == ours.digest()


_ANSWERED: Final = (SftpFailure, ObjectDamaged, ObjectMissing)


def _begin(connection: Connection) -> SftpClient:
    client = SftpClient(connection.open_channel())
    if not client.offers(FSYNC):
        raise StoreRefused(
            f"the SFTP server of {connection.address.host} can't make files durable "
            "(it knows no fsync@openssh.com)",
            hint="Use OpenSSH's server, or another store.",
        )
    return client


def _is_there(client: SftpClient, path: str) -> bool:
    try:
        client.stat(path)
    except SftpFailure as failure:
        if failure.status is Status.NO_SUCH_FILE:
            return False
        raise
    return True


def _flush_folder(client: SftpClient, folder: str) -> None:
    """Make the names in a folder durable, if the server can open folders as files."""
    with contextlib.suppress(SftpFailure), client.opened(folder, Open.READ) as handle:
        client.flush(handle)


def _from(parts: Sequence[memoryview], offset: int) -> Iterator[memoryview]:
    """Yield what comes from an offset on."""
    for part in parts:
        if offset < len(part):
            yield part[offset:]
        offset = max(0, offset - len(part))


def _begins_with(parts: Iterator[memoryview], data: bytes) -> bool:
    view = memoryview(data)
    for part in parts:
        length = min(len(part), len(view))
        if part[:length] != view[:length]:
            return False
        view = view[length:]
        if not view:
            break
    return not view
