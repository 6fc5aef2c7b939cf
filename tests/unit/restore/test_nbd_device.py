"""What is said to the kernel over netlink, as far as every kernel answers."""

import socket

import pytest

from imager.errors import ProgramMissing, TargetError
from restore import nbd_device
from restore.nbd_device import _attribute, _attributes, _Netlink, attached
from restore.overlay import Overlay
from tests.unit.restore.test_nbd import Bytes


def test_the_kernel_knows_the_family_that_knows_the_others() -> None:
    with _Netlink() as netlink:
        assert netlink.family("nlctrl") == 16


def test_a_family_that_is_not_there_is_refused_with_the_reason() -> None:
    with _Netlink() as netlink, pytest.raises(TargetError, match="No such file or directory"):
        netlink.family("remetal")


def test_attributes_come_back_as_they_went() -> None:
    sent = {1: b"", 2: b"x", 3: b"12345", 4: b"12345678"}
    data = b"".join(_attribute(kind, value) for kind, value in sent.items())
    assert len(data) % 4 == 0
    assert dict(_attributes(data)) == sent


def test_a_kernel_without_the_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*argv: str) -> None:
        raise ProgramMissing(argv)

    monkeypatch.setattr(nbd_device.process, "run", missing)
    content = Overlay(Bytes(bytes(512)), 0)
    with pytest.raises(TargetError, match="no network") as caught, attached(content, 512):
        raise AssertionError
    assert "rescue medium" in caught.value.hint


def test_a_refusal_leaves_no_thread_and_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[socket.socket] = []
    real = socket.socketpair

    def pair() -> tuple[socket.socket, socket.socket]:
        ends.extend(real())
        return ends[0], ends[1]

    def refuse(_netlink: _Netlink, name: str) -> int:
        raise TargetError(f"no {name}")

    monkeypatch.setattr(nbd_device.process, "run", lambda *_: "")
    monkeypatch.setattr(socket, "socketpair", pair)
    monkeypatch.setattr(_Netlink, "family", refuse)
    with pytest.raises(TargetError, match="no nbd"), attached(Overlay(Bytes(bytes(512)), 0), 512):
        raise AssertionError
    assert [end.fileno() for end in ends] == [-1, -1]
