"""Repair: what was lost or has rotted comes back, or is named; what verifies is never touched."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from imager.commands.parity import parity as parity_command
from imager.commands.repair import repair as repair_command
from imager.errors import RemetalError, RepairIncomplete
from imager.repository import pack as pack_format
from imager.repository import parity_object
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.parity_object import Member
from imager.upkeep import parity, repair
from imager.upkeep.repair_scan import State
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import (
    ONE,
    TWO,
    content,
    cover,
    flip,
    no_keys,
    objects,
    packs_of,
    restored,
    run,
)


def damage_index(tiny: Tiny) -> None:
    shutil.rmtree(tiny.path / "indexes")


def damage_delete(tiny: Tiny) -> None:
    packs_of(tiny, "one")[0].unlink()


def damage_truncate(tiny: Tiny) -> None:
    os.truncate(packs_of(tiny, "two")[0], 5000)


def damage_config(tiny: Tiny) -> None:
    (tiny.path / "config").unlink()


def damage_config_rot(tiny: Tiny) -> None:
    flip(tiny.path / "config", 100)


def damage_image(tiny: Tiny) -> None:
    objects(tiny, "images")[0].unlink()


def damage_image_rot(tiny: Tiny) -> None:
    flip(objects(tiny, "images")[1], 700)


def damage_parity(tiny: Tiny) -> None:
    first, *_, last = sorted(objects(tiny, "parity"), key=lambda path: path.stat().st_size)
    first.unlink()
    flip(last, 10)


def damage_parity_group(tiny: Tiny) -> None:
    """No share of a group can be read any more: parity is made anew."""
    shares = objects(tiny, "parity")
    smallest = min(path.stat().st_size for path in shares)
    for path in [path for path in shares if path.stat().st_size == smallest]:
        flip(path, 10)


def damage_parity_rot(tiny: Tiny) -> None:
    for path in objects(tiny, "parity"):
        flip(path, path.stat().st_size - 1)


ALONE = [
    damage_index,
    damage_delete,
    damage_truncate,
    damage_config,
    damage_config_rot,
    damage_image,
    damage_image_rot,
    damage_parity,
    damage_parity_group,
    damage_parity_rot,
]


@pytest.mark.parametrize("damage", ALONE)
def test_each_damage_alone(covered: Tiny, damage: Callable[[Tiny], None]) -> None:
    before = content(covered)
    damage(covered)
    assert content(covered) != before
    assert run(covered) == ([], ())
    assert content(covered) == before
    assert restored(covered, "one") == ONE["disk0"]
    assert restored(covered, "two") == TWO["disk0"]


def test_ten_packs_and_all_together(tiny: Tiny, tmp_path: Path) -> None:
    """Show 5 of the issue: ten packs with flipped bytes; then these, one deleted, one cut off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_format, "TARGET_SIZE", 900_000)
        tiny.add({"disk0": random.Random(3).randbytes(14 << 20)}, tmp_path, "one")
        tiny.add(TWO, tmp_path, "two")
    cover(tiny, overhead=50)
    before = content(tiny)
    full = [path for path in packs_of(tiny, "one") if path.stat().st_size > 900_000]
    assert len(full) > 10
    for number, path in enumerate(full[:10]):
        flip(path, number % 5 * parity_object.BLOCK + 77)
    assert run(tiny) == ([], ())
    assert content(tiny) == before
    for number, path in enumerate(full[:10]):
        flip(path, number % 5 * parity_object.BLOCK + 77)
    packs_of(tiny, "two")[0].unlink()
    os.truncate(full[10], 100_000)
    shutil.rmtree(tiny.path / "indexes")
    os.truncate(tiny.path / "config", 10)
    assert run(tiny, keys=no_keys) == ([], ())
    assert content(tiny) == before


def test_healthy_is_left_alone(covered: Tiny) -> None:
    def state() -> list[tuple[str, int, int]]:
        return [
            (str(p), p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted(covered.path.rglob("*"))
        ]

    before = state()
    assert run(covered) == ([], ())
    assert state() == before


def test_what_came_back_meanwhile_is_not_touched(covered: Tiny) -> None:
    """Verified again right before the write: somebody else repaired it after the plan was made."""
    backend = DirectoryBackend(covered.path)
    pack = packs_of(covered, "one")[0]
    good = pack.read_bytes()
    flip(pack, 100)
    plan = repair.plan(backend, [], no_keys, lambda _: None)
    assert [step.state for step in plan.steps] == [State.DAMAGED]
    pack.write_bytes(good)
    before = pack.stat()
    repair.execute(backend, no_keys, plan)
    assert (pack.stat().st_ino, pack.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_beyond_the_bound_exactly_the_touched_are_named(covered: Tiny) -> None:
    lost = packs_of(covered, "one")[:5]
    for path in lost:
        path.unlink()
    names = [path.relative_to(covered.path).as_posix() for path in lost]
    broken, touched = run(covered)
    assert broken == sorted(names)
    assert touched is not None
    (image,) = touched
    assert image.machine == "one"
    assert image.objects == tuple(sorted(names))
    assert restored(covered, "two") == TWO["disk0"]
    with pytest.raises(RemetalError):
        restored(covered, "one")


def test_a_damaged_pack_that_stays_serves_its_intact_chunks(tiny: Tiny, tmp_path: Path) -> None:
    """Both machines in one group; the map says which blocks rotted, and whose they are."""
    tiny.add(ONE, tmp_path, "one")
    tiny.add(TWO, tmp_path, "two")
    cover(tiny)
    (one,) = packs_of(tiny, "one")
    (two,) = packs_of(tiny, "two")
    place = 1 << 20
    flip(one, place)
    flip(two, place)
    for path in objects(tiny, "parity"):
        if path.stat().st_size > 1 << 20:
            flip(path, path.stat().st_size - 20)
            data = bytearray(path.read_bytes())
            data[-(3 << 20) :] = bytes(3 << 20)
            path.write_bytes(data)
    before = (one.read_bytes(), two.read_bytes())
    broken, touched = run(tiny)
    assert len(broken) == 2
    assert touched is not None
    assert sorted(item.machine for item in touched) == ["one", "two"]
    assert (one.read_bytes(), two.read_bytes()) == before


def test_without_keys_objects_only(covered: Tiny) -> None:
    for path in packs_of(covered, "one")[:5]:
        path.unlink()
    broken, touched = run(covered, keys=no_keys)
    assert len(broken) == 5
    assert touched is None


def test_a_lost_index_is_rebuilt_without_parity(tiny: Tiny, tmp_path: Path) -> None:
    tiny.add(ONE, tmp_path, "one")
    (index,) = objects(tiny, "indexes")
    flip(index, 300)
    assert run(tiny) == ([], ())
    (rebuilt,) = objects(tiny, "indexes")
    assert rebuilt != index
    assert restored(tiny, "one") == ONE["disk0"]
    rebuilt.unlink()
    assert run(tiny) == ([], ())
    assert len(objects(tiny, "indexes")) == 1
    after = content(tiny)
    assert run(tiny) == ([], ())
    assert content(tiny) == after


def test_from_another_copy(tiny: Tiny, tmp_path: Path) -> None:
    """No parity at all: what rotted, and what the index knows to be lost, come from the copy."""
    tiny.add(ONE, tmp_path, "one")
    copy = tmp_path / "copy"
    shutil.copytree(tiny.path, copy)
    before = content(tiny)
    (data,) = packs_of(tiny, "one")
    (maps,) = set(objects(tiny, "packs")) - {data}
    flip(data, 5000)
    maps.unlink()
    flip(objects(tiny, "images")[0], 900)
    (tiny.path / "config").unlink()
    flip(copy / data.relative_to(tiny.path), 9000)
    broken, touched = run(tiny, copy)
    assert broken == [data.relative_to(tiny.path).as_posix()]
    assert touched is not None
    assert [item.machine for item in touched] == ["one"]
    flip(copy / data.relative_to(tiny.path), 9000)
    assert run(tiny, copy) == ([], ())
    assert content(tiny) == before


def test_a_copy_and_parity_help_each_other(covered: Tiny, tmp_path: Path) -> None:
    """Five lost, three can be solved: two from the copy bring the rest within the bound."""
    copy = tmp_path / "copy"
    shutil.copytree(covered.path, copy)
    before = content(covered)
    lost = packs_of(covered, "one")[:5]
    for number, path in enumerate(lost):
        path.unlink()
        if number < 2:
            (copy / path.relative_to(covered.path)).unlink()
    assert run(covered, copy) == ([], ())
    assert content(covered) == before


def test_hostile_parity_writes_nothing_wrong(covered: Tiny) -> None:
    """Shares that claim false members: names made of hashes, the configuration, a generation."""
    repository = covered.open()
    before = content(covered)
    false = os.urandom(500)
    pack = objects(covered, "packs")[0]
    pack_name = pack.relative_to(covered.path).as_posix()
    claims = [
        Member("config", 500, hashlib.sha256(false).digest()),
        Member("generations/2", 500, hashlib.sha256(false).digest()),
        Member(pack_name, 500, bytes.fromhex(pack.name)),
    ]
    for member in claims:
        checks = parity_object.check_of(false) * 2
        table = parity_object.make_table([member], 1, checks)
        prefix = parity_object.encode_prefix(repository.id, table, 0, checks)
        digest = hashlib.sha256(prefix + false).digest()
        repository.backend.put_new(parity_object.object_name(digest), [prefix, false])
    hostile = content(covered)
    broken, touched = run(covered)
    assert broken == ["generations/2"]
    assert touched == ()
    assert content(covered) == hostile
    pack.unlink()
    (covered.path / "config").unlink()
    assert run(covered)[0] == ["generations/2"]
    after = content(covered)
    assert {name: after[name] for name in before} == before


def test_incremental_parity_covers_what_is_new(covered: Tiny, tmp_path: Path) -> None:
    first = {path.name for path in objects(covered, "parity")}
    again = cover(covered)
    assert again.made == 0
    assert {path.name for path in objects(covered, "parity")} == first
    covered.add({"disk0": b"few new bytes" * 100}, tmp_path, "four")
    outcome = cover(covered)
    assert outcome.made
    names = {
        path.relative_to(covered.path).as_posix()
        for folder in ("packs", "images", "indexes", "statements")
        for path in objects(covered, folder)
    } | {"config"}
    assert outcome.members == len(names)
    before = content(covered)
    objects(covered, "packs")[-1].unlink()
    assert run(covered) == ([], ())
    assert content(covered) == before


def test_groups_without_what_prune_removes(covered: Tiny) -> None:
    repository = covered.open()
    going = packs_of(covered, "one")[:4]
    names = {path.relative_to(covered.path).as_posix() for path in going}
    plan = parity.plan_without(repository.backend, repository.id, names)
    outcome = parity.execute(repository.backend, repository.id, plan, lambda _: None)
    assert outcome.damaged == ()
    for path in going:
        path.unlink()
    before = content(covered)
    assert run(covered, keys=no_keys) == ([], ())
    packs_of(covered, "two")[0].unlink()
    assert run(covered, keys=no_keys) == ([], ())
    assert content(covered) == before
    assert parity.plan_without(repository.backend, repository.id, names).make == ()


@pytest.mark.parametrize(
    ("members", "overhead", "shares"),
    [(1, 5, 2), (40, 5, 2), (41, 5, 3), (80, 5, 4), (80, 10, 8), (200, 1, 2), (80, 100, 80)],
)
def test_rule_of_shares(members: int, overhead: float, shares: int) -> None:
    assert parity.shares_for(members, overhead) == shares
    assert (
        parity.members_for(overhead) + parity.shares_for(parity.members_for(overhead), overhead)
        <= 256
    )


def test_commands(covered: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    runner = CliRunner()
    done = runner.invoke(parity_command, [str(covered.path), "--json"])
    assert json.loads(done.stdout)["groups_made"] == 0
    before = content(covered)
    pack = packs_of(covered, "one")[0]
    pack.unlink()
    dry = runner.invoke(repair_command, [str(covered.path), "--dry-run", "--json"])
    assert not pack.exists()
    assert len(json.loads(dry.stdout)["steps"]) == 1
    done = runner.invoke(repair_command, [str(covered.path)])
    assert done.exit_code == 0, done.output
    assert "All is well" in done.stdout
    assert content(covered) == before
    for path in packs_of(covered, "one")[:5]:
        path.unlink()
    credential = tmp_path / "credential"
    covered.credential.write(credential)
    failed = runner.invoke(repair_command, [str(covered.path), "--credential", str(credential)])
    assert isinstance(failed.exception, RepairIncomplete)
    assert "1 images are touched, of one" in failed.exception.message
    failed = runner.invoke(repair_command, [str(covered.path), "--json"])
    assert json.loads(failed.stdout)["error"]["exit_code"] == RepairIncomplete.exit_code
