"""init, capture, check, prune and restore on buckets whose objects nobody can remove for a month."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from imager.errors import ObjectLocked
from imager.repository.backend.s3 import S3Backend
from imager.repository.keyring import Credential
from imager.repository.repository import Repository
from imager.units import DAY, MIB
from imager.upkeep import extend_locks, prune
from tests.s3.machine import Site
from tests.stores.engine import LOCK_DAYS, Engine


@pytest.fixture
def bucket(engine: Engine) -> str:
    return engine.new_bucket(mode="COMPLIANCE")


@pytest.fixture
def site(engine: Engine, bucket: str, tmp_path: Path) -> Site:
    owner, machine = (engine.place(bucket, each) for each in (engine.owner, engine.capture))
    return Site.make(tmp_path, owner, machine)


def await_next_second(backend: S3Backend) -> None:
    """Return when what is stored now counts as newer than what is there: stores tell seconds."""
    newest = max(entry.modified for entry in backend.list(""))
    while backend.now() <= newest:
        pass


def test_a_machine_comes_back_from_a_locked_bucket(site: Site) -> None:
    first = site.new_disk(24 * MIB)
    old = site.capture()
    second = first[: 20 * MIB] + site.new_disk(4 * MIB)
    (site.folder / "disk").write_bytes(second)
    new = site.capture()
    assert site.tell("check", "--ciphertext")["findings"] == []
    backend = S3Backend(site.owner)
    entries = list(backend.list(""))
    assert {entry.newer for entry in entries} == {0}
    for entry in entries:
        until = backend.locked_until(entry.name)
        assert until is not None, entry.name
        assert until >= backend.now() + (LOCK_DAYS - 1) * DAY
    assert hashlib.sha256(site.restored(old)).digest() == hashlib.sha256(first).digest()
    assert hashlib.sha256(site.restored(new)).digest() == hashlib.sha256(second).digest()


def test_prune_respects_the_locks(site: Site) -> None:
    site.new_disk(2 * MIB)
    old = site.capture()
    await_next_second(S3Backend(site.owner))
    site.new_disk(2 * MIB)
    new = site.capture()
    before = {entry.name for entry in S3Backend(site.owner).list("")}
    done = site.tell("prune", "--keep-last", "1")
    assert done["condemn"]["images"] == []
    assert old in str(done["locked"])
    text = site.run("prune", "--keep-last", "1")
    assert "kept by the store: 1 images and 0 packs" in text
    assert "The locks of" not in text
    backend = S3Backend(site.owner)
    assert before <= {entry.name for entry in backend.list("")}
    assert site.restored(new)


class Brief(S3Backend):
    """A store whose locks are for seconds."""

    @property
    def lock_span(self) -> float:
        return 8.0


def test_prune_extends_the_locks_of_what_is_kept(engine: Engine, tmp_path: Path) -> None:
    bucket = engine.new_bucket(mode=None)
    owner, machine = (engine.place(bucket, each) for each in (engine.owner, engine.capture))
    site = Site.make(tmp_path, owner, machine)
    site.new_disk(2 * MIB)
    old = site.capture()
    going = {entry.name for entry in S3Backend(owner).list("packs/")}
    await_next_second(S3Backend(owner))
    site.new_disk(2 * MIB)
    new = site.capture()
    backend = Brief(owner)
    since = {entry.name: entry.modified for entry in backend.list("")}
    newest = max(since.values())
    while backend.now() <= newest + backend.lock_span / 2:
        pass
    repository = replace(Repository.open(owner), backend=backend)
    credential = Credential.read(tmp_path / "keys/capture.credential")
    keys = repository.credential_keys(credential)
    made = prune.plan(repository, keys, frozenset({old}))
    extension = extend_locks.plan(repository, keys, made, {new})
    assert extension is not None
    extend_locks.execute(backend, extension)
    locks = {name: backend.locked_until(name) for name in since}
    assert locks[f"images/{old}"] is None
    kept = {name for name, until in locks.items() if until is not None}
    assert {"config", f"images/{new}"} < kept
    assert {name for name in kept if name.startswith("packs/")} == {
        name for name in since if name.startswith("packs/")
    } - going
    with pytest.raises(ObjectLocked):
        backend.delete(f"images/{new}")
    assert {entry.name: entry.modified for entry in backend.list("")} == since
    while backend.now() <= extension.until:
        pass
    assert backend.locked_until("config") is None
    backend.delete(f"images/{new}")
