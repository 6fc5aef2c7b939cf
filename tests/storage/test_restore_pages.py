"""Show 7: a real restore with three recovery pages, typed or scanned; two are refused."""

import io
from pathlib import Path

import pytest
import zxingcpp
from PIL import Image
from restored_disks import Saved, digest, run

from imager.repository import shares
from imager.repository.keyring import LockedRecoveryKey
from imager.upkeep import paper


@pytest.fixture(scope="module")
def pages(saved: Saved) -> tuple[shares.Page, ...]:
    locked = LockedRecoveryKey.read(saved.folder / "keys" / "recovery.key")
    secret = (saved.folder / "passphrase").read_text().splitlines()[0]
    return shares.split(locked.unlock(secret), 3, 5)


def restore(saved: Saved, words: str, target: Path, folder: Path) -> int:
    file = folder / "words"
    file.write_text(words)
    options = ["--map", f"disk0={target}", "--yes", "--recovery-pages", str(file)]
    return run(["restore", str(saved.repository), "bios", *options])


def typed(page: shares.Page) -> str:
    return "\n".join(f"{number}. {word}" for number, word in enumerate(page.words, 1))


def scanned(page: shares.Page) -> str:
    picture = io.BytesIO()
    paper.code(page).save(picture, kind="png", scale=4)
    (found,) = zxingcpp.read_barcodes(Image.open(picture).convert("L"))
    text: str = found.text
    return text


@pytest.mark.parametrize("way", [typed, scanned])
def test_three_pages_restore(
    saved: Saved, pages: tuple[shares.Page, ...], tmp_path: Path, way: object
) -> None:
    target = tmp_path / "bios.raw"
    words = "\n".join(way(page) for page in (pages[4], pages[0], pages[2]))
    assert restore(saved, words, target, tmp_path) == 0
    assert digest(target) == digest(saved.mbr)


def test_two_pages_restore_nothing(
    saved: Saved,
    pages: tuple[shares.Page, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "bios.raw"
    assert restore(saved, "\n".join(typed(page) for page in pages[:2]), target, tmp_path) == 20
    assert not target.exists()
    assert "1 more" in capsys.readouterr().err
