"""Prune: two phases, rescue, repacking, duplicates, and what a credential can't make it do."""

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from imager.errors import ChecksFailed, ContentRemoved, CredentialNeeded, UsageError
from imager.repository import pack
from imager.repository.crypto.signing import Signer
from imager.repository.header import ID_SIZE, NO_KIND, Header, Magic, PackKind, StatementKind
from imager.repository.index import Segment
from imager.repository.removals import read_removals
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked, open_image
from imager.repository.session import Session
from imager.repository.statement import RemovalBody, Signatory
from imager.repository.volume_map import ZERO
from imager.upkeep import parity
from imager.upkeep.prune import DEFAULT_QUARANTINE, Plan, plan
from imager.upkeep.prune_execute import Result, execute
from tests.conftest import Tiny

NONE: frozenset[str] = frozenset()


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 1 << 18)


def content(repository: Repository, tiny: Tiny, image: str) -> dict[str, bytes]:
    """Return what an image restores to, opened chunk by chunk."""
    problems: list[object] = []
    opened = open_image(repository, image, Unlocked(repository, tiny.key), problems.append)
    assert not problems
    found = {}
    for volume in opened.summary.volumes:
        runs = opened.map(volume.id)
        chunks = dict(
            opened.chunks([row["id"].tobytes() for row in runs if row["id"].tobytes() != ZERO])
        )
        found[volume.id] = b"".join(
            chunks.get(row["id"].tobytes(), bytes(int(row["length"]))) for row in runs
        )
    return found


def planned(tiny: Tiny, unwanted: frozenset[str] = NONE, **options: float) -> Plan:
    repository = tiny.open()
    return plan(repository, repository.credential_keys(tiny.credential), unwanted, **options)


def prune(tiny: Tiny, unwanted: frozenset[str] = NONE, **options: float) -> tuple[Plan, Result]:
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    made = plan(repository, keys, unwanted, **options)
    secrets_ = Unlocked(repository, tiny.key).secrets
    return made, execute(made, repository, keys, Signatory(secrets_.signer), lambda _: None)


def age(tiny: Tiny, folder: str = "removals", seconds: float = DEFAULT_QUARANTINE + 60) -> None:
    for path in (tiny.path / folder).rglob("*"):
        if path.is_file():
            when = path.stat().st_mtime - seconds
            os.utime(path, (when, when))


def packs(tiny: Tiny) -> set[str]:
    return {entry.name for entry in tiny.open().backend.list("packs/")}


def data(count: int = 1 << 20) -> bytes:
    return secrets.token_bytes(count)


def _send_all(_session: Session, identities: Sequence[bytes]) -> list[bool]:
    return [True] * len(identities)


def test_nothing_to_do(tiny: Tiny, tmp_path: Path) -> None:
    tiny.add({"a": data()}, tmp_path)
    before = packs(tiny)
    made, _ = prune(tiny)
    assert (made.condemn_images, made.condemn_packs, made.repack) == ((), (), ())
    assert packs(tiny) == before
    assert not (tiny.path / "removals").exists()


def test_two_phases(tiny: Tiny, tmp_path: Path) -> None:
    first, second = data(), data()
    old = tiny.add({"a": first}, tmp_path)
    new = tiny.add({"a": second}, tmp_path)
    before = packs(tiny)
    made, result = prune(tiny, frozenset({old}))
    assert made.condemn_images == (old,)
    assert result.condemned
    assert packs(tiny) == before
    assert content(tiny.open(), tiny, old) == {"a": first}
    again, result = prune(tiny, frozenset({old}))
    assert not again.condemn_images
    assert not again.condemn_packs
    assert not result.condemned
    age(tiny)
    made, result = prune(tiny, frozenset({old}))
    assert made.remove_images == (old,)
    assert {name for name, _ in made.remove_packs} == before - packs(tiny) != set()
    assert content(tiny.open(), tiny, new) == {"a": second}
    assert [
        image.id for image in tiny.open().images(tiny.open().credential_keys(tiny.credential))[0]
    ] == [new]
    assert not tiny.open().lost_packs(
        tiny.open().load_index(tiny.open().credential_keys(tiny.credential))[0]
    )
    age(tiny, seconds=2 * 86400)
    made, _ = prune(tiny)
    assert len(made.settled) == 1
    assert not list(tiny.open().backend.list("removals/"))


def test_an_image_that_is_wanted_again_stays(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    old = tiny.add({"a": text}, tmp_path)
    prune(tiny, frozenset({old}))
    age(tiny)
    made, result = prune(tiny)
    assert made.rescued_images == (old,)
    assert result.removed_packs == 0
    assert content(tiny.open(), tiny, old) == {"a": text}


def test_a_capture_rescues_what_is_in_quarantine(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    old = tiny.add({"a": text}, tmp_path)
    before = packs(tiny)
    prune(tiny, frozenset({old}))
    new = tiny.add({"a": text}, tmp_path)
    assert packs(tiny) == before, "what is in the first half of its quarantine is not sent again"
    age(tiny)
    made, _ = prune(tiny, frozenset({old}))
    assert made.remove_images == (old,)
    assert made.rescued_packs == len(before)
    assert packs(tiny) == before
    assert content(tiny.open(), tiny, new) == {"a": text}


def test_late_in_the_quarantine_content_is_sent_again(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    old = tiny.add({"a": text}, tmp_path)
    before = packs(tiny)
    prune(tiny, frozenset({old}))
    age(tiny, seconds=DEFAULT_QUARANTINE * 0.6)
    new = tiny.add({"a": text}, tmp_path)
    assert packs(tiny) > before
    age(tiny)
    prune(tiny, frozenset({old}))
    assert not packs(tiny) & before
    assert content(tiny.open(), tiny, new) == {"a": text}


def test_a_capture_that_outlives_the_quarantine_makes_no_image(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    old = tiny.add({"a": text}, tmp_path)
    finish = Session.finish

    def late(session: Session, *arguments: object) -> object:
        prune(tiny, frozenset({old}))
        age(tiny)
        prune(tiny, frozenset({old}))
        return finish(session, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "finish", late)
        with pytest.raises(ContentRemoved):
            tiny.add({"a": text}, tmp_path)
    assert not list(tiny.open().backend.list("images/"))
    new = tiny.add({"a": text}, tmp_path)
    assert content(tiny.open(), tiny, new) == {"a": text}


def test_repacking_keeps_waste_within_its_bound(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 1 << 20)
    blocks = [data(1 << 19) for _ in range(8)]
    old = tiny.add({"a": b"".join(blocks)}, tmp_path)
    half = b"".join(block for number, block in enumerate(blocks) if number % 2)
    new = tiny.add({"a": half}, tmp_path)
    before = packs(tiny)
    made, result = prune(tiny, frozenset({old}), waste=0.05)
    assert made.repack
    assert result.repacked_bytes > 0
    age(tiny)
    prune(tiny, frozenset({old}), waste=0.05)
    after = planned(tiny)
    assert after.sizes.dead <= 0.05 * (after.sizes.live + after.sizes.dead)
    assert packs(tiny) - before
    assert content(tiny.open(), tiny, new) == {"a": half}


def test_the_same_data_sent_twice_is_stored_once(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "claim", _send_all)
        images = [tiny.add({"a": text}, tmp_path) for _ in range(2)]
    assert planned(tiny).sizes.dead > len(text) * 0.9
    prune(tiny)
    age(tiny)
    prune(tiny)
    assert planned(tiny).sizes.dead < len(text) * 0.1
    for image in images:
        assert content(tiny.open(), tiny, image) == {"a": text}


def test_nothing_goes_while_an_image_is_damaged(tiny: Tiny, tmp_path: Path) -> None:
    old, other = tiny.add({"a": data()}, tmp_path), tiny.add({"a": data()}, tmp_path)
    path = tiny.path / "images" / other
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ChecksFailed, match=other):
        planned(tiny, frozenset({old}))


def test_nothing_goes_while_a_map_is_damaged(tiny: Tiny, tmp_path: Path) -> None:
    image = tiny.add({"a": data()}, tmp_path)
    for path in (tiny.path / "packs").rglob("*"):
        if path.is_file() and path.read_bytes()[10] == PackKind.MAPS:
            path.unlink()
    with pytest.raises(ChecksFailed, match=image):
        planned(tiny)


def test_an_index_that_lies_removes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """A credential holder says that ids lie in an older pack; the real copies must stay."""
    older = tiny.add({"a": data()}, tmp_path)
    old_packs = packs(tiny)
    text = data()
    image = tiny.add({"a": text}, tmp_path)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    for name in old_packs | packs(tiny):
        when = 1e9 if name in old_packs else 1.1e9
        os.utime(tiny.path / name, (when, when))
    index, _ = repository.load_index(keys)
    is_old = index.are(old_packs)
    target = int(np.flatnonzero(is_old & index.of_kind[PackKind.DATA])[0])
    (entries,) = index.windows()
    rows = entries[~is_old[entries["pack"]]]
    lie = np.zeros(len(rows), dtype=pack.ENTRY)
    for field in ("id", "length", "plain"):
        lie[field] = rows[field]
    lie["offset"], lie["length"] = 64, 64
    header = Header(Magic.INDEX, NO_KIND, 0, os.urandom(ID_SIZE), keys.group, repository.id)
    name, encoded = Segment.collect([(index.digests[target].tobytes(), PackKind.DATA, lie)]).encode(
        header, keys.directory_key
    )
    repository.backend.put_new(name, [encoded])
    for _ in range(2):
        made, _ = prune(tiny)
        age(tiny)
    assert any("directory does not" in problem.error.message for problem in made.problems)
    assert content(tiny.open(), tiny, image) == {"a": text}
    assert older


def test_a_younger_copy_never_replaces_an_older(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "claim", _send_all)
        tiny.add({"a": text}, tmp_path)
        first = packs(tiny)
        for name in first:
            os.utime(tiny.path / name, (1e9, 1e9))
        tiny.add({"a": text}, tmp_path)
    made, _ = prune(tiny)
    assert {name for name, _ in made.condemn_packs}.isdisjoint(first)


def test_a_pack_that_two_indexes_name_counts_once(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    image = tiny.add({"a": text}, tmp_path)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    for entry in list(repository.backend.list("indexes/")):
        segment = Segment.decode(
            repository.backend.get(entry.name), entry.name, keys.directory_key, repository.id
        )
        header = Header(Magic.INDEX, NO_KIND, 0, os.urandom(ID_SIZE), keys.group, repository.id)
        name, encoded = segment.encode(header, keys.directory_key)
        repository.backend.put_new(name, [encoded])
    made = planned(tiny)
    assert not made.condemn_packs
    assert not made.repack
    assert content(tiny.open(), tiny, image) == {"a": text}


def test_only_upkeep_may_condemn(tiny: Tiny, tmp_path: Path) -> None:
    image = tiny.add({"a": data()}, tmp_path)
    repository = tiny.open()
    keys = repository.credential_keys(tiny.credential)
    body = RemovalBody(
        (image,), tuple(n.rpartition("/")[2] for n in packs(tiny)), 0, "2026-01-01T00:00:00Z"
    )
    forged = [
        Signatory(Signer.generate()),
        Signatory(tiny.credential.signer, tiny.credential.certificate),
    ]
    for signatory in forged:
        repository.state(StatementKind.CONDEMNED, body, signatory, keys.group)
    age(tiny)
    made, _ = prune(tiny, frozenset({image}))
    assert not made.due
    assert len(made.problems) == len(forged)
    assert list(repository.backend.list("images/"))


def test_an_upkeep_credential_prunes(tiny: Tiny, tmp_path: Path) -> None:
    old = tiny.add({"a": data()}, tmp_path)
    repository = tiny.open()
    secrets_ = Unlocked(repository, tiny.key).secrets
    upkeep = repository.new_credential(secrets_, "house", StatementKind.UPKEEP)
    keys = repository.credential_keys(upkeep)
    made = plan(repository, keys, frozenset({old}))
    signatory = Signatory(upkeep.signer, upkeep.certificate)
    execute(made, repository, keys, signatory, lambda _: None)
    age(tiny)
    assert planned(tiny, frozenset({old})).remove_images == (old,)
    with pytest.raises(CredentialNeeded):
        Session(repository, upkeep)


def test_bad_options(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="an hour"):
        planned(tiny, quarantine=60)


def test_what_stays_is_covered_by_parity_after_a_prune(tiny: Tiny, tmp_path: Path) -> None:
    old, text = tiny.add({"a": data()}, tmp_path), data()
    new = tiny.add({"a": text}, tmp_path)
    repository = tiny.open()
    backend = repository.backend
    parity.execute(backend, repository.id, parity.plan(backend, repository.id), lambda _: None)
    prune(tiny, frozenset({old}))
    age(tiny)
    prune(tiny, frozenset({old}))
    left = {
        m.name
        for g in parity.read_groups(backend, repository.id)[0].values()
        for m in g.table.members
    }
    assert packs(tiny) <= left
    assert f"images/{old}" not in left
    assert content(tiny.open(), tiny, new) == {"a": text}


def test_what_was_removed_is_told_while_parity_names_it(tiny: Tiny, tmp_path: Path) -> None:
    """A parity run that was stopped left a group beside the prune: a repair must not take it for lost."""
    old = tiny.add({"a": data()}, tmp_path)
    tiny.add({"a": data()}, tmp_path)
    repository = tiny.open()
    parity.execute(
        repository.backend,
        repository.id,
        parity.plan(repository.backend, repository.id),
        lambda _: None,
    )
    stale = tmp_path / "stale"
    shutil.copytree(tiny.path / "parity", stale)
    prune(tiny, frozenset({old}))
    age(tiny)
    prune(tiny, frozenset({old}))
    fresh = tmp_path / "fresh"
    shutil.copytree(tiny.path / "parity", fresh)
    shutil.copytree(stale, tiny.path / "parity", dirs_exist_ok=True)
    age(tiny)
    prune(tiny)
    assert read_removals(tiny.open()).removed
    shutil.rmtree(tiny.path / "parity")
    shutil.copytree(fresh, tiny.path / "parity")
    prune(tiny)
    assert not read_removals(tiny.open()).removed


def test_a_capture_that_runs_for_days_keeps_what_it_stored(tiny: Tiny, tmp_path: Path) -> None:
    """Its first packs are older than a day, and no index names them before it ends."""
    store = Session._store_pack
    made: list[Plan] = []

    def slow(session: Session, kind: PackKind) -> None:
        before = packs(tiny)
        store(session, kind)
        session._packs.drain()
        if packs(tiny) != before:
            age(tiny, "packs", 20 * 3600)
            made.append(prune(tiny)[0])

    text = data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_store_pack", slow)
        image = tiny.add({"a": text}, tmp_path)
    assert made
    assert not any(each.condemn_packs for each in made)
    assert content(tiny.open(), tiny, image) == {"a": text}


def test_what_an_interrupted_capture_left_is_condemned_after_a_day(
    tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_store_indexes", _stop)
        with pytest.raises(KeyboardInterrupt):
            tiny.add({"a": data()}, tmp_path)
    age(tiny, "packs", 20 * 3600)
    assert not planned(tiny).condemn_packs
    age(tiny, "packs", 5 * 3600)
    assert {name for name, _ in planned(tiny).condemn_packs} == packs(tiny)


def _stop(_session: Session) -> None:
    raise KeyboardInterrupt
