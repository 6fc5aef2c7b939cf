"""Parity: what is made of members gives them back, exactly within its bound."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imager.errors import ObjectDamaged, RemetalError
from imager.repository import parity_object
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.parity_object import BLOCK, TABLE_START
from imager.upkeep.parity_shares import GroupSolver, make_shares, read_groups

REPOSITORY = b"r" * 16


def put(backend: DirectoryBackend, data: bytes) -> tuple[str, int, bytes]:
    digest = hashlib.sha256(data).digest()
    name = f"packs/{digest.hex()[:2]}/{digest.hex()}"
    backend.put_new(name, [data])
    return name, len(data), digest


def multiply(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def power(exponent: int) -> int:
    value = 1
    for _ in range(exponent % 255):
        value = multiply(value, 2)
    return value


def inverse(matrix: list[list[int]]) -> list[list[int]]:
    size = len(matrix)
    rows = [row + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(r for r in range(column, size) if rows[r][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        factor = next(x for x in range(256) if multiply(x, rows[column][column]) == 1)
        rows[column] = [multiply(factor, value) for value in rows[column]]
        for r in range(size):
            if r != column and rows[r][column]:
                scale = rows[r][column]
                rows[r] = [
                    v ^ multiply(scale, w) for v, w in zip(rows[r], rows[column], strict=True)
                ]
    return [row[size:] for row in rows]


def test_shares_are_what_the_format_says(tmp_path: Path) -> None:
    """The formula of FORMAT.md section 13, written anew."""
    backend = DirectoryBackend(tmp_path)
    contents = [os.urandom(size) for size in (40, 33, 7)]
    made, bad = make_shares(
        backend, REPOSITORY, [put(backend, c) for c in contents], 2, lambda _: None
    )
    assert made is not None
    assert bad == ()
    k = 3
    v = [[1, 0, 0]] + [[power((r - 1) * c) for c in range(k)] for r in range(1, k + 2)]
    top = inverse(v[:k])
    for share, (name, (prefix, body)) in enumerate(made.objects):
        g = [0] * k
        for column in range(k):
            for inner in range(k):
                g[column] ^= multiply(v[k + share][inner], top[inner][column])
        for place in range(40):
            byte = 0
            for j, content in enumerate(contents):
                byte ^= multiply(g[j], content.ljust(40, b"\0")[place])
            assert body[place] == byte
        assert name == parity_object.object_name(hashlib.sha256(prefix + body).digest())


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_solved_exactly_within_the_bound(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    backend_path = tmp_path_factory.mktemp("group")
    backend = DirectoryBackend(backend_path)
    count = data.draw(st.integers(1, 5))
    shares = data.draw(st.integers(1, 3))
    sizes = [data.draw(st.integers(16, 3 * BLOCK)) for _ in range(count)]
    contents = [os.urandom(size) for size in sizes]
    rows = [put(backend, content) for content in contents]
    made, _ = make_shares(backend, REPOSITORY, rows, shares, lambda _: None)
    assert made is not None
    table = made.table
    for name, parts in made.objects:
        backend.put_new(name, parts)
    names = [row[0] for row in rows] + [name for name, _ in made.objects]
    lengths = sizes + [table.length] * shares
    bad: list[set[int]] = [set() for _ in names]
    for number, name in enumerate(names):
        path = backend_path / name
        start = table.share_start if number >= count else 0
        blocks = parity_object.blocks_of(lengths[number])
        kind = data.draw(st.sampled_from(["none", "none", "lost", "cut", "flip", "flip"]))
        if kind == "lost" and (number < count or (shares > 1 and number != count)):
            path.unlink()
            bad[number] = set(range(blocks))
        elif kind == "cut":
            keep = data.draw(st.integers(0, lengths[number] - 1))
            os.truncate(path, start + keep)
            bad[number] = set(range(keep // BLOCK, blocks))
        elif kind == "flip":
            for block in data.draw(st.sets(st.integers(0, blocks - 1))):
                with path.open("r+b") as file:
                    place = start + block * BLOCK
                    file.seek(place)
                    byte = file.read(1)[0]
                    file.seek(place)
                    file.write(bytes([byte ^ 0xFF]))
                bad[number].add(block)
    groups, unreadable = read_groups(backend, REPOSITORY)
    assert unreadable == ()
    (group,) = groups.values()
    solver = GroupSolver(backend, group, frozenset())
    for number, content in enumerate(contents):
        within = all(sum(row in b for b in bad) <= shares for row in bad[number])
        assert solver.solvable(names[number]) is within
        assert solver.bad_blocks(names[number]) == bad[number]
        if within:
            assert solver.solve(names[number]) == content
        else:
            with pytest.raises(ObjectDamaged):
                solver.solve(names[number])


def test_no_parity_of_a_member_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    backend = DirectoryBackend(tmp_path)
    good, rotten = put(backend, b"good" * 50), put(backend, b"rotten" * 50)
    (tmp_path / rotten[0]).write_bytes(b"rottem" * 50)
    made, bad = make_shares(backend, REPOSITORY, [good, rotten], 2, lambda _: None)
    assert made is None
    assert bad == (rotten[0],)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 299), st.integers(1, 255))
def test_readers_fail_closed(noise: bytes, place: int, flip: int) -> None:
    member = parity_object.Member("config", 10, b"d" * 32)
    other = parity_object.Member("packs/" + "ab/" + "ab" * 32, 9, bytes.fromhex("ab" * 32))
    table = parity_object.make_table([member, other], 2, b"")
    prefix = parity_object.encode_prefix(REPOSITORY, table, 1, b"")
    broken = bytearray(prefix)
    broken[place % len(broken)] ^= flip
    for data in (noise, bytes(broken), prefix[: place % len(prefix)]):
        try:
            number, length, group = parity_object.decode_prologue(data, REPOSITORY, "it")
            text = data[TABLE_START : TABLE_START + length]
            if len(text) != length:  # get_range refuses that
                continue
            found = parity_object.decode_table(text, group, "it")
        except RemetalError:
            continue
        # Only the number of the share is not covered by the group's id: a wrong one makes all
        # its blocks fail their checks.
        assert found == table
        assert number != 1


def test_impossible_tables_are_refused() -> None:
    member = parity_object.Member("config", 10, b"d" * 32)
    tables = [
        parity_object.make_table([parity_object.Member(name, 10, b"d" * 32)], 2, b"")
        for name in ("../etc", "parity/ab/" + "ab" * 32, "packs/ab/" + "ab" * 32, "indexes/x", "")
    ]
    tables += [
        parity_object.make_table([member], 0, b""),
        parity_object.make_table([member], 256, b""),
        parity_object.make_table([member, member], 2, b""),
        parity_object.make_table([parity_object.Member("config", 1 << 40, b"d" * 32)], 2, b""),
        parity_object.make_table([parity_object.Member("config", 0, b"d" * 32)], 2, b""),
    ]
    for table in tables:
        with pytest.raises(ObjectDamaged):
            parity_object.decode_table(table.encoded, table.id, "it")
