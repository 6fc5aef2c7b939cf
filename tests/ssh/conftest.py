"""A repository with an image behind a real sshd, and the key of a captured machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import Backend
from tests.conftest import Tiny
from tests.stores.ssh import Sshd, running


@dataclass(frozen=True)
class Served:
    """A repository that is served.

    Attributes:
        sshd: by whom.
        tiny: as it lies on the server.
        key: of the captured machine, append-only.
        place: how that machine reaches it.
    """

    sshd: Sshd
    tiny: Tiny
    key: Path
    place: Place

    @property
    def backend(self) -> Backend:
        return open_backend(self.place)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd")) as started:
        yield started


@pytest.fixture
def served(sshd: Sshd, tiny: Tiny, tmp_path: Path) -> Served:
    tiny.add({"a": b"precious " * 10_000}, tmp_path)
    key = sshd.new_key(f"machine-{tmp_path.name}")
    sshd.serve(key, tiny.path, "--append-only", "--name", "web1", "--quota", "100M")
    return Served(sshd, tiny, key, sshd.place("ssh", key, tiny.path))
