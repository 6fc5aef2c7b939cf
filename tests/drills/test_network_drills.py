"""Whole drills with the repository on the network: SSH append-only, plain SFTP, and an S3 store."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootmedia.config import MediumConfig
from bootmedia.medium import medium_kernel
from restore.drill import accelerator, fixture, run
from restore.drill.bring_back import Settings
from restore.drill.qemu import Accelerator
from restore.drill.report import Outcome
from restore.drill.run import Store
from restore.drill.scenario import Medium
from tests.stores.seaweedfs import SeaweedFS
from tests.stores.ssh import running

CACHE = fixture.checkout() / ".cache"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="session")
def chosen() -> Accelerator:
    return accelerator.choose(lambda: medium_kernel(MediumConfig(), CACHE, print)).accelerator


@contextlib.contextmanager
def ssh(folder: Path) -> Iterator[Store]:
    """Three keys: one makes the repository, one adds and removes nothing, one reads."""
    rights = {"owner": "--may-delete", "machine": "--append-only", "rescue": "--read-only"}
    with running(folder) as sshd:
        keys = {name: sshd.new_key(name) for name in rights}
        for name, option in rights.items():
            sshd.serve(keys[name], folder / "repository", option, "--name", name)
        places = {name: sshd.place("ssh", key, folder / "repository") for name, key in keys.items()}
        yield Store(**places)
        assert "removed" not in sshd.served
        assert "refused" not in sshd.served


@contextlib.contextmanager
def sftp(folder: Path) -> Iterator[Store]:
    with running(folder) as sshd:
        key = sshd.new_key("key")
        public = Path(f"{key}.pub").read_text()
        sshd.authorize(f'restrict,command="internal-sftp" {public}')
        yield Store.of(sshd.place("sftp", key, folder / "repository"))


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Store]:
    """A bucket with object lock, and the keys that a captured machine holds."""
    engine = SeaweedFS(folder)
    try:
        bucket = engine.new_bucket(locked=True)
        machine = engine.place(bucket, engine.capture)
        yield Store(engine.place(bucket, engine.owner), machine, machine)
    finally:
        engine.stop()


@pytest.mark.parametrize("store", [ssh, sftp, s3], ids=lambda store: store.__name__)
def test_a_destroyed_machine_comes_back_over_the_network(
    store: Callable[[Path], contextlib.AbstractContextManager[Store]],
    chosen: Accelerator,
    tmp_path: Path,
) -> None:
    (tmp_path / "store").mkdir()
    with store(tmp_path / "store") as made:
        choices = run.Choices(None, Medium.CD, None, CACHE, store=made)
        settings = Settings(chosen, print, keep=tmp_path / "drill")
        result = run.drill_fixture("bios-ext4", choices, settings)
    assert result.outcome is Outcome.PROVEN, f"{result.proof} (kept in {result.kept})"
    assert result.differences == ()
    assert result.facts > 0
    shutil.rmtree(tmp_path)  # disks
