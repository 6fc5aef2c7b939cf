"""What is particular to SFTP: answers that nobody waits for, and uploads that go on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.repository.backend.sftp_client import Open, SftpClient
from imager.repository.backend.sftp_store import _Upload
from imager.repository.backend.ssh import Address, Connection
from tests.stores.ssh import Sshd


@pytest.fixture
def client(sshd: Sshd, tmp_path: Path) -> Iterator[SftpClient]:
    key = sshd.new_key(f"raw-{tmp_path.name}")
    sshd.authorize(f'restrict,command="internal-sftp" {Path(f"{key}.pub").read_text()}')
    place = sshd.place("sftp", key, tmp_path)
    connection = Connection(place, Address.parse(place.location))
    yield SftpClient(connection.open_channel())
    connection.drop()


def test_answers_that_nobody_waits_for_are_dropped(client: SftpClient, tmp_path: Path) -> None:
    """A check over thousands of objects that can't be read must not keep the rest of each."""
    (tmp_path / "a").write_bytes(bytes(4 << 20))
    for _ in range(5):
        with client.opened(str(tmp_path / "a"), Open.READ) as handle:
            reading = client.read(handle, 0, 4 << 20)
            next(reading)
            reading.close()
    assert client.stat(str(tmp_path / "a")).size == 4 << 20
    assert not client._answers
    assert not client._unwanted


def test_a_read_stops_at_the_end_of_a_file(client: SftpClient, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"short")
    with client.opened(str(tmp_path / "a"), Open.READ) as handle:
        assert b"".join(client.read(handle, 0, 1 << 50)) == b"short"


@pytest.mark.parametrize("damage", [0, 1_500_000, 2_999_999])
def test_an_upload_goes_on_after_what_is_right_and_no_further(
    client: SftpClient, tmp_path: Path, damage: int
) -> None:
    """What lies there may have a hole: a write that failed, or a server that lost power."""
    data = os.urandom(5_000_000)
    there = bytearray(data[:3_000_000])
    there[damage] ^= 1
    (tmp_path / "incoming").write_bytes(there)
    parts = [data[start : start + 70_001] for start in range(0, len(data), 70_001)]
    upload = _Upload(str(tmp_path / "a"), str(tmp_path / "incoming"), parts, None)
    assert upload.go_on(client)
    assert (tmp_path / "a").read_bytes() == data
    assert not (tmp_path / "incoming").exists()


def test_an_upload_does_not_send_again_what_is_there(
    client: SftpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "incoming").write_bytes(data[:3_000_000])
    sent: list[int] = []
    write = client.write
    monkeypatch.setattr(
        client, "write", lambda *words: (sent.append(sum(map(len, words[2]))), write(*words))
    )
    assert _Upload(str(tmp_path / "a"), str(tmp_path / "incoming"), [data], None).go_on(client)
    assert (tmp_path / "a").read_bytes() == data
    assert sent == [2_000_000]


def test_a_name_that_was_given_late_is_still_ours(client: SftpClient, tmp_path: Path) -> None:
    """The old session may do what it was asked when the new one has begun."""
    upload = _Upload(str(tmp_path / "a"), str(tmp_path / "incoming"), [b"data"], None)
    upload._is_sent = True
    upload._send(client)
    os.link(tmp_path / "incoming", tmp_path / "a")
    assert upload._name(client, was_sent=True)
    assert not upload._name(client, was_sent=False)
