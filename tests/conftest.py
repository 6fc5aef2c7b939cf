"""What many tests need: a tiny repository with a real image, made without any disk."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from imager.capture.pipeline import Pipeline
from imager.extents.extents import whole
from imager.layout.disk import Disk, DiskIdentity, Volume, VolumeRole
from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.layers import Layers
from imager.layout.machine import Machine
from imager.repository.configuration import Secrets
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.image import ExtentsNote, Manifest, Summary, VolumeSummary
from imager.repository.keyring import Credential
from imager.repository.repository import Repository, now
from imager.repository.session import Counters, Session

_DRILLS: Final = "tests/drills/"

# A drill beside a test may take the processor for seconds: how long an example takes says nothing.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")


class _Shares(LoadScopeScheduling):
    """A file is for one process, and so are all drills together.

    What holds a store or a medium up is made once for a file; drills would wait for the same machines to
    be built.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _DRILLS if nodeid.startswith(_DRILLS) else nodeid.split("::", maxsplit=1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Tell pytest-xdist how tests are shared out."""
    return _Shares(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the drills: they take the longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(_DRILLS))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let requests to end do here, and in programs that are started, what they do in a terminal.

    The processes that share the tests ignore SIGINT, and `nohup` makes all below it ignore SIGHUP.
    """
    wanted = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Tiny:
    """A repository and what opens it."""

    path: Path
    key: RecipientKey
    credential: Credential

    def open(self) -> Repository:
        return Repository.open(str(self.path))

    def add(
        self,
        content: dict[str, bytes],
        scratch: Path,
        name: str = "tiny",
        layers: Layers = Layers(),  # noqa: B008  it can't be changed
    ) -> str:
        """Store an image with one volume for each content and return its id."""
        repository = self.open()
        session = Session(repository, self.credential)
        volumes, summaries, offset = [], [], 0
        for number, (volume_id, data) in enumerate(content.items()):
            source = scratch / f"volume{number}"
            source.write_bytes(data)
            volume = Volume(volume_id, VolumeRole.WHOLE_DISK, 0, len(data))
            with source.open("rb") as file, Pipeline(session, 2) as pipeline:
                root, used = pipeline.add_volume(
                    file.fileno(), volume, whole(len(data)), lambda _: None
                )
            summaries.append(VolumeSummary(volume_id, len(data), used, root.id.hex(), root.level))
            volumes.append(Volume(volume_id, VolumeRole.WHOLE_DISK, offset, len(data)))
            offset += len(data)
        machine = Machine(
            "6b0e9e7e-0000-4000-8000-000000000001",
            name,
            "x86_64",
            Firmware(FirmwareKind.BIOS),
            (Disk("disk0", "/dev/vda", DiskIdentity(offset, 512), None, tuple(volumes)),),
            layers,
        )

        def summarise(indexes: tuple[str, ...], counters: Counters) -> Summary:
            return Summary(
                machine.id,
                name,
                now(),
                now(),
                "offline",
                sum(volume.used for volume in summaries),
                counters.new_bytes,
                counters.stored_bytes,
                indexes,
                tuple(summaries),
            )

        notes = {volume.id: ExtentsNote("whole", "") for volume in volumes}
        return session.finish(summarise, Manifest(machine, notes, "remetal test"))[0]


@pytest.fixture(scope="session")
def recipient_key() -> RecipientKey:
    return RecipientKey.generate()


@pytest.fixture
def tiny(tmp_path: Path, recipient_key: RecipientKey) -> Tiny:
    held: list[Credential] = []

    def keep(repository: Repository, secrets: Secrets) -> None:
        held.append(repository.new_credential(secrets, "test machine"))

    path = tmp_path / "repository"
    repository = Repository.create(str(path), [("test", recipient_key.recipient)], keep)
    repository.publish(held[0])
    return Tiny(path, recipient_key, held[0])


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that knows immutable files."""
    image, place = tmp_path / "image", tmp_path / "ext4"
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image, "8M"], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    subprocess.run(["chattr", "-R", "-i", "-a", place], check=True)
    subprocess.run(["umount", place], check=True)
