"""FORMAT.md is enough: a reader that shares no code with remetal gets every byte."""

import random
import re
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag

from imager.repository.keyring import LockedRecoveryKey
from tests.conftest import Tiny

sys.path.insert(0, str(Path(__file__).parents[2]))
import independent_reader


def test_it_reads_what_was_captured(tiny: Tiny, tmp_path: Path) -> None:
    noise = random.Random(1)
    content = {
        "disk0/p1": noise.randbytes(700_000) + bytes(300_000) + b"text " * 50_000,
        "disk0/p2": bytes(1 << 20),
    }
    image = tiny.add(content, tmp_path)
    key = tmp_path / "key"
    LockedRecoveryKey.lock(tiny.key, "passphrase", "test", tiny.open().id).write(key)
    out = tmp_path / "out"
    out.mkdir()
    summary, manifest = independent_reader.read_image(tiny.path, image, key, "passphrase", out)
    assert summary["machine_name"] == manifest["machine"]["name"] == "tiny"
    for volume, data in content.items():
        assert (out / volume.replace("/", "-")).read_bytes() == data


def test_it_is_short_and_shares_no_code() -> None:
    source = Path(independent_reader.__file__).read_text()
    assert len(source.splitlines()) < 240
    assert not re.search(r"^\s*(import|from) (imager|restore|bootmedia)", source, re.MULTILINE)


def test_it_refuses_a_wrong_passphrase(tiny: Tiny, tmp_path: Path) -> None:
    key = tmp_path / "key"
    LockedRecoveryKey.lock(tiny.key, "passphrase", "test", None).write(key)
    with pytest.raises(InvalidTag):
        independent_reader.unlock(key, "other passphrase")
