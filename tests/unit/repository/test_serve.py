"""The server on a socket, without SSH: what it does when the other side does nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imager.errors import StoreUnreachable
from imager.repository.backend import frames
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.frames import Kind, Role
from imager.repository.backend.serve import Permit, Server
from imager.repository.backend.serve_budget import LEAST, Budget

NAME = "packs/ab/cd"


@dataclass(frozen=True)
class Linked:
    """A server that waits for a fifth of a second, and the other end of its socket."""

    server: Server
    client: socket.socket


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Linked]:
    store = DirectoryBackend(tmp_path / "store")
    store.put_new(NAME, [bytes(8 << 20)])
    permit = Permit(Role.APPEND_ONLY, Budget(tmp_path / "state", None, None))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end = theirs.fileno()
        yield Linked(Server(store, permit, lambda *_: None, end, end, idle=0.2), ours)


def test_who_says_nothing_is_gone(linked: Linked) -> None:
    with pytest.raises(StoreUnreachable, match="nothing came"):
        linked.server.run()


def test_who_takes_nothing_is_gone(linked: Linked) -> None:
    linked.client.sendall(b"".join(frames.frame(Kind.GET, NAME.encode())))
    with pytest.raises(StoreUnreachable, match="nothing was taken"):
        linked.server.run()


def test_who_hangs_up_is_done(linked: Linked) -> None:
    linked.client.shutdown(socket.SHUT_WR)
    linked.server.run()
    assert linked.client.recv(1) == bytes([Kind.GREETING])


def test_empty_objects_use_a_quota_up(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "state", 3 * LEAST, None)
    assert [budget.reserve(0) for _ in range(4)] == [True, True, True, False]
    budget.give_back(0)
    assert budget.reserve(0)
    assert not Budget(tmp_path / "state", 3 * LEAST, None).reserve(1), "counted by the connection"


def test_connections_share_a_rate(tmp_path: Path) -> None:
    rate = 4 << 20
    one, other = (Budget(tmp_path / "state", None, rate) for _ in range(2))
    began = time.monotonic()
    one.spend(rate // 8)
    other.spend(rate // 8)
    one.spend(1)
    assert time.monotonic() - began >= 0.24
