"""Sessions on one SSH connection for any number of threads."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

import paramiko

from imager.errors import StoreRefused, StoreUnreachable
from imager.repository.backend import retry
from imager.repository.backend.ssh import Connection, SessionRefused, translated

# sshd lets ten channels into one connection by default.
_MOST: Final = 8


class Session(Protocol):
    """What speaks on a channel."""

    @property
    def is_closed(self) -> bool:
        """Whether the other side is gone."""
        ...

    def close(self) -> None:
        """End it."""
        ...


_Spoken = TypeVar("_Spoken", bound=Session)
_Result = TypeVar("_Result")


class Channels(Generic[_Spoken]):
    """Sessions that are lent to one call each; eight at once at most.

    A call that meets a broken or silent link is made again on a new session, for five minutes; so is
    one that a host refuses which let us in before, since it may just be starting up. In a child process
    everything is made anew.

    Args:
        connection: to the host.
        begin: begins a session.
        answered: errors after which the session can go on, because the server has said them.
    """

    def __init__(
        self,
        connection: Connection,
        begin: Callable[[Connection], _Spoken],
        answered: tuple[type[Exception], ...],
    ) -> None:
        self._connection = connection
        self._begin = begin
        self._answered = answered
        self._owner = os.getpid()
        self._has_answered = False
        self._lock = threading.Lock()
        self._most = _MOST
        self._free: queue.LifoQueue[_Spoken | None] = _empty()
        self._inherited: list[object] = []

    def call(self, request: Callable[[_Spoken], _Result]) -> _Result:
        """Return what a request returns; it may be made any number of times.

        Raises:
            LinkError: the host can't be reached, or is not the right one, or lets nobody in.
        """
        patience = retry.PATIENCE if self._has_answered else retry.FIRST_PATIENCE
        try:
            return retry.patiently(lambda: self._once(request), patience)
        except _RefusedForNow as error:
            raise error.refusal from None

    def _once(self, request: Callable[[_Spoken], _Result]) -> _Result:
        if self._owner != os.getpid():
            # What is collected here would say goodbye on the link that the parent goes on with.
            self._inherited.append(self._free)
            self._free, self._owner, self._most = _empty(), os.getpid(), _MOST
            self._lock = threading.Lock()
        free = self._free
        session: _Spoken | None = free.get()
        try:
            with translated(self._connection.address):
                while session is None or session.is_closed:
                    session = self._begun() or free.get()
                return request(session)
        except BaseException as error:
            # Unless the server has said what is wrong, nobody knows where its next word begins.
            if session is not None and not isinstance(error, self._answered):
                if session.is_closed:
                    with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                        session.close()
                else:
                    self._connection.drop()
                session = None
            raise
        finally:
            free.put(session)

    def _begun(self) -> _Spoken | None:
        """Return a new session; None where the host lets no more in: from now on there is one less."""
        try:
            session = self._begin(self._connection)
        except SessionRefused:
            with self._lock:
                if self._most == 1:
                    raise
                self._most -= 1
            return None
        except StoreRefused as error:
            if self._has_answered:
                raise _RefusedForNow(error) from error
            raise
        self._has_answered = True
        return session


class _RefusedForNow(StoreUnreachable):
    """A host that let us in before and does not now: it may be starting up."""

    def __init__(self, refusal: StoreRefused) -> None:
        super().__init__(refusal.message, hint=refusal.hint)
        self.refusal = refusal


def _empty() -> "queue.LifoQueue[_Spoken | None]":
    found: queue.LifoQueue[_Spoken | None] = queue.LifoQueue()
    for _ in range(_MOST):
        found.put(None)
    return found
