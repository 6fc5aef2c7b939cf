"""The tables of FORMAT.md against the constants of the code."""

import dataclasses
import re
from pathlib import Path

import pytest

import imager.repository
from imager.capture import chunker
from imager.layout.network import NetworkCard
from imager.repository import (
    chunk,
    envelope,
    header,
    image,
    index,
    names,
    pack,
    parity_object,
    statement,
    volume_map,
)
from imager.repository.configuration import _FIXED_SECRETS, Configuration, RecipientEntry
from imager.repository.crypto import derive, recipient, sealing, signing
from imager.repository.image import Manifest, Summary

TEXT = (Path(imager.repository.__file__).parent / "FORMAT.md").read_text("utf-8")


def section(number: int) -> str:
    found = re.search(rf"^## {number}\. .*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def offsets(text: str) -> list[list[tuple[int, int]]]:
    """Return the (offset, size) rows of each offset table in a section."""
    tables: list[list[tuple[int, int]]] = []
    for line in text.splitlines():
        if line.strip().startswith("| offset | size"):
            tables.append([])
        row = re.match(r"\s*\| (\d+) \| (\d+) \|", line)
        if row:
            tables[-1].append((int(row[1]), int(row[2])))
    return tables


def fields(dtype: object) -> list[tuple[int, int]]:
    return [(place, kind.itemsize) for kind, place in dtype.fields.values()]


@pytest.mark.parametrize(
    ("table", "dtype"),
    [
        (offsets(section(6))[0], volume_map.RUN),
        (offsets(section(7))[0], pack.ENTRY),
        (offsets(section(9))[0], index.ENTRY),
    ],
)
def test_arrays(table: list[tuple[int, int]], dtype: object) -> None:
    assert table == fields(dtype)


def test_header() -> None:
    table = offsets(section(5))[0]
    assert table == [(0, 8), (8, 2), (10, 1), (11, 1), (12, 4), (16, 16), (32, 16), (48, 16)]
    assert sum(size for _, size in table) == header.HEADER_SIZE
    made = header.Header(
        header.Magic.PACK, header.PackKind.MAPS, 0x01020304, b"s" * 16, b"g" * 16, b"r" * 16
    ).encode()
    assert made[0:8] == b"RMTLPACK"
    assert made[8:10] == header.FORMAT_VERSION.to_bytes(2, "little")
    assert made[10] == 2
    assert made[11] == 1
    assert made[12:16] == bytes.fromhex("04030201")
    assert (made[16:32], made[32:48], made[48:64]) == (b"s" * 16, b"g" * 16, b"r" * 16)
    for magic in header.Magic:
        assert f"`{magic.value.decode()}`" in section(5)


def test_trailer() -> None:
    table = offsets(section(7))[1]
    assert table == [(0, 4), (4, 4), (8, 8)]
    assert sum(size for _, size in table) == pack.TRAILER.size
    assert f"`{pack.TRAILER_MAGIC.decode()}`" in section(7)


def test_parity() -> None:
    prologue, table = offsets(section(13))
    assert prologue == [(0, 2), (2, 2), (4, 4), (8, 32)]
    assert table == [(0, 2), (2, 2), (4, 4), (8, 8), (16, 32)]
    assert sum(size for _, size in prologue) == parity_object.PROLOGUE.size
    assert sum(size for _, size in table) == parity_object.TABLE.size
    assert f"block size: {parity_object.BLOCK}" in section(13)
    assert f"BLAKE3(block)[0:{parity_object.CHECK_SIZE}]" in section(13)
    assert f"at most {parity_object.MOST_LENGTH >> 20} MiB" in section(13)
    assert f"`k + m` at most {parity_object.MOST_SHARES}" in section(13)


def test_pack_row_of_index() -> None:
    assert f"Pack ({index.PACK.itemsize} bytes)" in section(9)


def test_numbers() -> None:
    assert f"({recipient.PUBLIC_SIZE} bytes)" in section(3)
    assert f"{recipient.OVERHEAD + derive.KEY_SIZE} bytes" in section(4)
    assert f"1 + {envelope.ENTRY_SIZE} × count" in section(4)
    assert f"({_FIXED_SECRETS} + 32 × count bytes)" in section(3)
    assert f"`secrets` ({recipient.OVERHEAD + _FIXED_SECRETS} + 32 × count bytes)" in section(3)
    assert f"({signing.SIGNATURE_SIZE} bytes)" in section(10)
    assert f"nonce ({sealing.NONCE_SIZE})" in section(7)
    assert f"at most {volume_map.MOST_RUNS}" in section(6)
    assert f"from {volume_map.LEAST_RUNS} runs on" in section(6)
    assert f"multiple of {volume_map._CUT_MODULUS}" in section(6)
    assert f"at least {chunker.LEAST_ZERO_BLOCKS} blocks" in section(6)
    assert f"blocks of {chunker.BLOCK} bytes" in section(6)
    assert f"before {chunker.LEAST_BLOCKS} blocks, and at {chunker.MOST_BLOCKS} blocks" in section(
        6
    )
    assert f"at most {pack.MOST_SIZE >> 20} MiB" in section(7)
    assert f"at most {chunk.MOST_PLAIN >> 20} MiB" in section(7)
    assert int(chunker._CUT_BELOW) == 2**59
    assert "each as `u32` length" in section(10)
    assert section(10).count("\n| ") == 1 + image.PARTS


@pytest.mark.parametrize(
    ("label", "formula"),
    [
        (derive.CHUNK_ID, "HKDF(group secret, repository id, {})"),
        (derive.MAP_ID, "HKDF(group secret, repository id, {})"),
        (derive.CUT_POINTS, "HKDF(group secret, repository id, {})"),
        (derive.DIRECTORY, "HKDF(group secret, repository id, {})"),
        (derive.MAP, "HKDF(group secret, session id, {})"),
        (derive.CHUNK, "HKDF(session key, session id, {})"),
        (derive.MANIFEST, "HKDF(session key, session id, {})"),
    ],
)
def test_key_formulas(label: str, formula: str) -> None:
    assert "`" + formula.format(f'"{label}"') + "`" in section(4)
    assert derive.context(label) == b"remetal/1 " + label.encode()


def test_documents() -> None:
    for field in Configuration.__struct_fields__:
        assert f"| `{field}` |" in section(3)
    for field in RecipientEntry.__struct_fields__:
        assert f'"{field}"' in section(3)
    for field in (*Summary.__struct_fields__, *Manifest.__struct_fields__):
        assert f"`{field}`" in section(10)
    for field in dataclasses.fields(NetworkCard):
        assert f"`{field.name}`" in section(10)


def test_statements() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| \w[^|]*\| (.*?) \|", section(11), re.MULTILINE))
    for kind, body in statement.BODIES.items():
        text = rows[str(kind.value)]
        while match := re.match(r"as kind (\d+)", text):
            text = rows[match[1]]
        for field in body.__struct_fields__:
            assert f"`{field}`" in text, (kind, field)


def test_names() -> None:
    rows = re.findall(r"^\| [a-z]+ \| (.*?) \|", section(2), re.MULTILINE)
    hashed = re.findall(r"`(\w+/)` \+ (first two hex digits \+ `/` \+ )?hash", "\n".join(rows))
    assert {folder: bool(shard) for folder, shard in hashed} == {
        folder: of.is_sharded for folder, of in names.FOLDERS.items()
    }
    assert f"`{names.CONFIG}`" in rows
    assert any(row.startswith(f"`{names.GENERATIONS}` + its number") for row in rows)
    assert {
        pack.PREFIX,
        index.PREFIX,
        image.PREFIX,
        statement.PREFIX,
        statement.REMOVALS,
        statement.REVOCATIONS,
        parity_object.PREFIX,
    } == names.FOLDERS.keys()
    for kind, body in statement.BODIES.items():
        del body
        if kind is not header.StatementKind.GENERATION:
            assert statement.folder(kind) in names.FOLDERS


def test_what_parity_covers() -> None:
    (rule,) = re.findall(r"The name MUST be (.*?);", section(13), re.DOTALL)
    said = set(re.findall(r"`([a-z]+/?)`", rule))
    covered = {folder for folder, of in names.FOLDERS.items() if of.is_covered}
    assert said == covered | {names.CONFIG, names.GENERATIONS}
