"""Show 7: a 3-of-5 key comes back from any three pages, and from no two."""

import itertools
import json
from pathlib import Path

import pytest
import shamir_mnemonic
import zxingcpp
from click.testing import CliRunner
from PIL import Image

from imager.commands.key import key as key_group
from imager.commands.secrets import ask_pages
from imager.errors import SecretError, UsageError
from imager.repository import shares
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import LockedRecoveryKey, NamedRecipient
from imager.upkeep import paper

KEY = RecipientKey(bytes(range(32)))
PAGES = shares.split(KEY, 3, 5)
LINES = [" ".join(page.words) for page in PAGES]


def test_the_seed_is_expanded_as_the_draft_says() -> None:
    """First test vector of draft-connolly-cfrg-xwing-kem."""
    seed = bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    public = RecipientKey(seed).recipient.public_key
    assert public[:24].hex() == "e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b"
    assert public[-6:].hex() == "049040ef6534"


@pytest.mark.parametrize("chosen", list(itertools.combinations(range(5), 3)))
def test_any_three_pages(chosen: tuple[int, ...]) -> None:
    assert shares.read_pages("\n".join(LINES[at] for at in chosen)).key() == KEY


@pytest.mark.parametrize("chosen", list(itertools.combinations(range(5), 2)))
def test_no_two_pages(chosen: tuple[int, ...]) -> None:
    text = "\n".join(LINES[at] for at in chosen)
    pages = shares.read_pages(text)
    assert pages.missing == 1
    with pytest.raises(SecretError, match="1 more"):
        pages.key()
    with pytest.raises(shamir_mnemonic.MnemonicError):
        shamir_mnemonic.combine_mnemonics([LINES[at] for at in chosen])


def test_how_it_was_typed_does_not_matter() -> None:
    upper = LINES[0].upper()
    prefixes = " ".join(word[:4] for word in PAGES[1].words)
    numbered = "\n".join(f"{at}. {word}," for at, word in enumerate(PAGES[2].words, 1))
    assert shares.read_pages(f"{upper}\n\n{prefixes}\n# a note\n{numbered}\n").key() == KEY


@pytest.mark.parametrize("at", range(shares.WORDS))
def test_every_wrong_word_is_noticed(at: int) -> None:
    words = list(PAGES[0].words)
    words[at] = "academic" if words[at] != "academic" else "acid"
    with pytest.raises(SecretError, match="mistyped"):
        shares.parse(" ".join(words))
    words[at] = "remetal"
    with pytest.raises(SecretError, match=f"word {at + 1}, 'remetal'"):
        shares.parse(" ".join(words))
    del words[at]
    with pytest.raises(SecretError, match="32 words"):
        shares.parse(" ".join(words))


def test_pages_that_do_not_fit() -> None:
    pages = shares.Pages()
    pages.add(LINES[0])
    with pytest.raises(SecretError, match="page 1 was given already"):
        pages.add(LINES[0])
    other = next(page for page in shares.split(KEY, 3, 5) if page.split != PAGES[0].split)
    with pytest.raises(SecretError, match="of split"):
        pages.add(" ".join(other.words))
    assert pages.missing == 2


@pytest.mark.parametrize(("need", "pages"), [(1, 5), (0, 0), (6, 5), (3, 17)])
def test_splits_that_make_no_sense(need: int, pages: int) -> None:
    with pytest.raises(UsageError):
        shares.split(KEY, need, pages)


def test_asking_says_at_once_what_is_wrong() -> None:
    half = LINES[1].split()
    answers = iter(
        [
            LINES[0],
            LINES[0],
            " ".join(half[:20]),
            " ".join(half[20:]),
            "remetal",
            "academic",
            "/new",
            LINES[4],
        ]
    )
    said: list[str] = []
    assert ask_pages(said.append, lambda _: next(answers)) == KEY
    assert any("given already" in line for line in said)
    assert said[-1] == "Page 5 is right; 0 more needed."


def scanned(page: shares.Page, folder: Path) -> str:
    picture = folder / f"{page.number}.png"
    paper.code(page).save(str(picture), scale=4)
    # Reading any kind of code, one in 170 of these seems to have a short one of bars inside.
    found = zxingcpp.read_barcodes(
        Image.open(picture).convert("L"), formats=zxingcpp.BarcodeFormat.QRCode
    )
    assert len(found) == 1
    text: str = found[0].text
    return text


def test_scanned_pages(tmp_path: Path) -> None:
    text = "\n".join(scanned(page, tmp_path) for page in PAGES[1:4])
    assert text == text.upper()
    assert shares.read_pages(text).key() == KEY
    assert paper.code(PAGES[0]).mode == "alphanumeric"


def test_split_and_join(tmp_path: Path) -> None:
    file, phrase = tmp_path / "recovery.key", tmp_path / "phrase"
    LockedRecoveryKey.lock(KEY, "right horse", "key of the board", None).write(file)
    phrase.write_text("right horse")
    run = CliRunner()
    folder = tmp_path / "pages"
    args = ["split", str(file), "-o", str(folder), "--passphrase-file", str(phrase), "--json"]
    done = run.invoke(key_group, args)
    assert done.exit_code == 0, done.output
    files = [Path(name) for name in json.loads(done.stdout)["files"]]
    assert len(files) == 10
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        text = path.read_text()
        assert "key of the board" in text
        assert KEY.recipient.id.hex() in text
        assert "right horse" not in text
    typed = tmp_path / "typed"
    typed.write_text("\n".join(path.read_text() for path in sorted(files) if path.suffix == ".txt"))
    joined = tmp_path / "joined.key"
    args = ["join", "-o", str(joined), "--pages", str(typed), "--passphrase-file", str(phrase)]
    done = run.invoke(key_group, args)
    assert done.exit_code == 0, done.output
    assert LockedRecoveryKey.read(joined).unlock("right horse") == KEY
    public = NamedRecipient.read(joined.with_name("joined.key.pub"))
    assert public.recipient == KEY.recipient
