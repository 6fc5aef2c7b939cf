"""Which names are names of objects."""

import pytest

from imager.repository import names
from imager.repository.header import Magic

DIGEST = "0f" + "3" * 62


@pytest.mark.parametrize("folder", sorted(names.FOLDERS))
def test_hash_below_a_folder(folder: str) -> None:
    of = names.FOLDERS[folder]
    right = f"{folder}{DIGEST[:2]}/{DIGEST}" if of.is_sharded else folder + DIGEST
    wrong = folder + DIGEST if of.is_sharded else f"{folder}{DIGEST[:2]}/{DIGEST}"
    assert names.folder_of(right) is of
    assert names.digest_of(right) == DIGEST
    assert names.is_object(right)
    assert names.may_be_covered(right) == of.is_covered
    for name in (wrong, right + "0", right[:-1], right.upper(), f"repaired/{right}", f"/{right}"):
        assert names.folder_of(name) is None
        assert names.digest_of(name) is None
        assert not names.is_object(name)
        assert not names.may_be_covered(name)


def test_a_pack_below_another_shard_is_no_object() -> None:
    assert not names.is_object(f"packs/1f/{DIGEST}")


def test_what_has_no_hash() -> None:
    assert names.is_object("config")
    assert names.may_be_covered("config")
    assert names.digest_of("config") is None
    assert names.generation_of("generations/12") == 12
    assert names.may_be_covered("generations/12")
    for name in ("generations/", "generations/02", "generations/0", "12", "generations/1234567890"):
        assert names.generation_of(name) is None
        assert not names.is_object(name)


def test_magic() -> None:
    assert {of.magic for of in names.FOLDERS.values()} == set(Magic)
