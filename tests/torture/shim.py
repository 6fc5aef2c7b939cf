"""Counts the file-system operations of this process below one directory, and spoils chosen ones.

Installed in a forked child only. Every function of `os` and `io` through which the directory
backend touches files is replaced; an audit hook ends the process if any other way is taken, so
that no operation is left out unnoticed. What changes files is logged, for `powerloss`.
"""

import builtins
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NoReturn

UNWRAPPED: Final = 97


class Kind(StrEnum):
    """What happens at the chosen operation."""

    KILL = "kill before"
    KILL_AFTER = "kill after"
    TORN = "kill in a write"
    POWER = "power loss"
    FULL = "ENOSPC once"
    STAYS_FULL = "ENOSPC for good"
    IO = "EIO once"
    STAYS_IO = "EIO for good"
    TIMEOUT = "ETIMEDOUT once"
    STAYS_TIMEOUT = "ETIMEDOUT for good"
    SHORT = "short write"
    SHORT_FULL = "short write, then ENOSPC"


class Step(StrEnum):
    """Kinds of operations."""

    CREATE = "create"
    OPEN = "open"
    READ = "read"
    WRITE = "write"
    SYNC = "fsync"
    SYNC_FOLDER = "fsync folder"
    LINK = "link"
    UNLINK = "unlink"
    MKDIR = "mkdir"
    STAT = "stat"
    LOOK = "lstat"  # os.walk asks so whether a folder is a link, and takes a failure for a no
    LIST = "list"


CHANGES: Final = {Step.CREATE, Step.WRITE, Step.LINK, Step.UNLINK, Step.MKDIR}
SYNCS: Final = {Step.SYNC, Step.SYNC_FOLDER}
NEEDS_ROOM: Final = {Step.CREATE, Step.WRITE, Step.SYNC, Step.LINK, Step.MKDIR}
_ERRORS: Final = {
    Kind.FULL: (errno.ENOSPC, False),
    Kind.STAYS_FULL: (errno.ENOSPC, True),
    Kind.IO: (errno.EIO, False),
    Kind.STAYS_IO: (errno.EIO, True),
    Kind.TIMEOUT: (errno.ETIMEDOUT, False),
    Kind.STAYS_TIMEOUT: (errno.ETIMEDOUT, True),
    Kind.SHORT_FULL: (errno.ENOSPC, True),
}
_WATCHED: Final = {
    "open",
    "os.chmod",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.symlink",
    "os.truncate",
    "os.utime",
}


def applies(kind: Kind, step: Step) -> bool:
    """Whether a kind of fault makes a difference at an operation."""
    if kind in {Kind.TORN, Kind.SHORT, Kind.SHORT_FULL}:
        return step is Step.WRITE
    if kind in {Kind.FULL, Kind.STAYS_FULL}:
        return step in NEEDS_ROOM
    if kind is Kind.KILL_AFTER:
        return step in CHANGES
    if kind is Kind.POWER:
        return step in CHANGES | SYNCS
    return True


@dataclass(frozen=True, slots=True)
class Trap:
    """The chosen operation, counted from 1, and what happens there."""

    kind: Kind
    number: int


class Shim:
    """Wraps the functions; see the module.

    Args:
        root: operations below it count.
        log: file that gets a JSON line per operation; it survives the process.
        attic: directory on the same filesystem; removed files stay there under their inode.
        trap: what to spoil; None only counts.
    """

    def __init__(self, root: Path, log: Path, attic: Path, trap: Trap | None) -> None:
        self._root = str(root)
        self._attic = attic
        self._trap = trap
        self._open = os.open
        self._write = os.write
        self._link = os.link
        self._lstat = os.lstat
        self._log = self._open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._count = 0
        self._broken = 0
        self._fds: dict[int, str] = {}
        self._lock = threading.RLock()
        self._inside = threading.local()

    def install(self) -> None:
        """Replace the functions and begin to watch for others."""
        os.open = self._wrap_open(os.open)  # type: ignore[assignment]
        io.open = builtins.open = self._wrap_io_open(io.open)  # type: ignore[assignment]
        os.close = self._wrap_close(os.close)
        os.writev = self._wrap_writev(os.writev)
        os.pread = self._wrap_descriptor(os.pread)
        os.fsync = self._wrap_descriptor(os.fsync)
        os.link = self._wrap_path(os.link, Step.LINK, 1)
        os.unlink = self._wrap_path(os.unlink, Step.UNLINK, 0)
        os.mkdir = self._wrap_path(os.mkdir, Step.MKDIR, 0)
        os.stat = self._wrap_path(os.stat, Step.STAT, 0)
        os.lstat = self._wrap_path(os.lstat, Step.LOOK, 0)
        os.scandir = self._wrap_path(os.scandir, Step.LIST, 0)
        os.listdir = self._wrap_path(os.listdir, Step.LIST, 0)
        os.write = self._refuse(os.write, "os.write")
        os.ftruncate = self._refuse(os.ftruncate, "os.ftruncate")
        os.fdatasync = self._refuse(os.fdatasync, "os.fdatasync")
        sys.addaudithook(self._audit)

    def _is_inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return path in self._fds
        text = os.fsdecode(path)
        return text == self._root or text.startswith(self._root + "/")

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _WATCHED or getattr(self._inside, "busy", False):
            return
        for path in args[:2]:
            if isinstance(path, (str, bytes, os.PathLike)) and self._is_inside(path):
                self._unwrapped(f"{event} {path!r}")

    def _unwrapped(self, what: str) -> NoReturn:
        self._record({"unwrapped": what})
        os._exit(UNWRAPPED)

    def _refuse(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(descriptor: int, *args: Any) -> Any:
            if descriptor in self._fds:
                self._unwrapped(f"{name} {self._fds[descriptor]}")
            return function(descriptor, *args)

        return wrapped

    def _record(self, entry: dict[str, object]) -> None:
        self._write(self._log, json.dumps(entry).encode() + b"\n")

    def _perform(
        self, step: Step, path: str, action: Callable[[], Any], note: Callable[[Any], Any]
    ) -> Any:
        """Carry out one counted operation, or spoil it."""
        with self._lock:
            self._count += 1
            number, trap = self._count, self._trap
            hit = trap is not None and number == trap.number
            if trap is not None and hit and trap.kind in {Kind.KILL, Kind.POWER}:
                self._record({"fired": number, "step": step, "path": path})
                os.kill(os.getpid(), signal.SIGKILL)
            entry: dict[str, object] = {"n": number, "step": step, "path": path}
            self._spoil(step, entry, hit=hit)
            self._inside.busy = True
            try:
                result = action()
            except OSError as error:
                self._record({**entry, "error": error.errno})
                raise
            finally:
                self._inside.busy = False
            self._record({**entry, "note": note(result)})
            if trap is not None and hit and trap.kind in {Kind.KILL_AFTER, Kind.TORN}:
                self._record({"fired": number, "step": step, "path": path})
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    def _spoil(self, step: Step, entry: dict[str, object], *, hit: bool) -> None:
        trap = self._trap
        if trap is None:
            return
        if hit and trap.kind in {Kind.SHORT, Kind.SHORT_FULL}:
            self._record({"fired": entry["n"], "step": step, "path": entry["path"]})
        if hit and trap.kind is Kind.SHORT_FULL:
            self._broken = errno.ENOSPC
            return
        number, persists = _ERRORS.get(trap.kind, (0, False))
        if hit and number:
            self._record({"fired": entry["n"], "step": step, "path": entry["path"]})
            self._broken = number if persists else 0
        elif self._broken and (self._broken != errno.ENOSPC or step in NEEDS_ROOM):
            number = self._broken
        else:
            return
        self._record({**entry, "error": number})
        raise OSError(number, os.strerror(number), entry["path"])

    def _inode(self, path: str) -> int:
        return self._lstat(path).st_ino

    def _wrap_open(self, function: Callable[..., int]) -> Callable[..., int]:
        def wrapped(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if not self._is_inside(path):
                descriptor = function(path, flags, *args, **more)
                self._fds.pop(descriptor, None)
                return descriptor
            step = Step.CREATE if flags & os.O_CREAT else Step.OPEN
            if flags & os.O_TRUNC or more.get("dir_fd") is not None:
                self._unwrapped(f"os.open {path!r} with flags {flags}")
            text = os.fspath(path)
            descriptor = self._perform(
                step,
                text,
                lambda: function(path, flags, *args, **more),
                lambda _: self._inode(text),
            )
            self._fds[descriptor] = text
            return descriptor

        return wrapped

    def _wrap_io_open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if isinstance(path, int) or not self._is_inside(path):
                return function(path, mode, *args, **more)
            text = os.fspath(path)
            if set(mode) & set("wax+"):
                self._unwrapped(f"open {path!r} with mode {mode}")
            file = self._perform(
                Step.READ, text, lambda: function(path, mode, *args, **more), lambda _: None
            )
            self._fds[file.fileno()] = text
            return file

        return wrapped

    def _wrap_close(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def wrapped(descriptor: int) -> None:
            self._fds.pop(descriptor, None)
            function(descriptor)

        return wrapped

    def _wrap_writev(self, function: Callable[..., int]) -> Callable[..., int]:
        def wrapped(descriptor: int, parts: Any) -> int:
            path = self._fds.get(descriptor)
            if path is None:
                return function(descriptor, parts)
            trap = self._trap
            chosen = parts
            partial = {Kind.SHORT, Kind.SHORT_FULL, Kind.TORN}
            if trap is not None and trap.number == self._count + 1 and trap.kind in partial:
                whole = b"".join(parts)
                chosen = [whole[: max(1, len(whole) // 2)]]
            written: int = self._perform(
                Step.WRITE, path, lambda: function(descriptor, chosen), lambda _: self._inode(path)
            )
            return written

        return wrapped

    def _wrap_descriptor(self, function: Callable[..., Any]) -> Callable[..., Any]:
        is_sync = function is os.fsync

        def wrapped(descriptor: int, *args: Any) -> Any:
            path = self._fds.get(descriptor)
            if path is None:
                return function(descriptor, *args)
            step = Step.READ
            if is_sync:
                self._inside.busy = True
                is_folder = os.fstat(descriptor).st_mode & 0o170000 == 0o040000
                self._inside.busy = False
                step = Step.SYNC_FOLDER if is_folder else Step.SYNC
            return self._perform(
                step,
                path,
                lambda: function(descriptor, *args),
                lambda _: os.fstat(descriptor).st_ino if is_sync else None,
            )

        return wrapped

    def _wrap_path(
        self, function: Callable[..., Any], step: Step, which: int
    ) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            if len(args) <= which or not self._is_inside(args[which]):
                return function(*args, **more)
            if isinstance(args[which], int):
                return function(*args, **more)
            text = os.fspath(args[which])
            inode = 0

            def action() -> Any:
                nonlocal inode
                if step is Step.UNLINK:
                    inode = self._inode(text)
                    kept = self._attic / str(inode)
                    if not os.path.lexists(kept):
                        self._link(text, kept)
                return function(*args, **more)

            def note(_: Any) -> int | None:
                if step is Step.UNLINK:
                    return inode
                return self._inode(text) if step is Step.LINK else None

            return self._perform(step, text, action, note)

        return wrapped
