"""Recovery keys on paper: pages of words, of which some number gives the key back (FORMAT.md section 15).

The words are SLIP-0039: 33 of them for a page, with a checksum, from a list in which the first four
letters tell each word. Fewer pages than needed say nothing at all about the key.
"""

from dataclasses import dataclass, field
from typing import Final

import shamir_mnemonic
from shamir_mnemonic.share import Share
from shamir_mnemonic.wordlist import WORDLIST

from imager.errors import SecretError, UsageError
from imager.repository.crypto.recipient import SEED_SIZE, RecipientKey

WORDS: Final = 33
MOST_PAGES: Final = 16
_LETTERS: Final = 4  # of a word are enough
_BY_PREFIX: Final = {word[:_LETTERS]: word for word in WORDLIST}


@dataclass(frozen=True, slots=True, repr=False)
class Page:
    """What one page says.

    Attributes:
        words: the 33 words.
        number: of the page, from 1.
        need: how many pages give the key back.
        split: number of the split; pages of another split don't fit.
    """

    words: tuple[str, ...]
    number: int
    need: int
    split: int


def check_numbers(need: int, pages: int) -> None:
    """Refuse a split that can't be.

    Raises:
        UsageError: there can't be so many pages or so few.
    """
    if not 2 <= need <= pages <= MOST_PAGES:
        raise UsageError(
            f"{need} of {pages} pages make no sense",
            hint=f"At least 2 pages must be needed, of at most {MOST_PAGES}.",
        )


def split(key: RecipientKey, need: int, pages: int) -> tuple[Page, ...]:
    """Split a recovery key into pages, any `need` of which give it back.

    Raises:
        UsageError: there can't be so many or so few.
    """
    check_numbers(need, pages)
    groups = shamir_mnemonic.generate_mnemonics(
        1, [(need, pages)], key.seed, extendable=True, iteration_exponent=0
    )
    return tuple(parse(mnemonic) for mnemonic in groups[0])


def parse(text: str) -> Page:
    """Read a page as it was typed or scanned: case, numbers and punctuation do not matter.

    Raises:
        SecretError: a word is none, there are too few or too many, or the checksum is wrong.
    """
    words = read_words(text)
    if len(words) != WORDS:
        raise SecretError(
            f"this page has {len(words)} words, and {WORDS} are needed",
            hint="Look for a word that was left out or typed twice.",
        )
    try:
        share = Share.from_mnemonic(" ".join(words))
    except shamir_mnemonic.MnemonicError as error:
        raise SecretError(
            "this page is mistyped: its checksum is wrong",
            hint="Every word is one of the list, but at least one is not the page's, or two are "
            "exchanged. Compare them once more.",
        ) from error
    if (
        len(share.value) != SEED_SIZE
        or share.group_count != 1
        or share.iteration_exponent
        or not share.extendable
    ):
        raise SecretError("these words are no page of a remetal recovery key")
    return Page(tuple(words), share.index + 1, share.member_threshold, share.identifier)


def read_words(text: str, before: int = 0) -> list[str]:
    """Return the words of a page, or of a part of it, in full.

    Args:
        text: as it was typed or scanned.
        before: how many words of the page came before.

    Raises:
        SecretError: a word is of no page.
    """
    words: list[str] = []
    for typed in text.replace(",", " ").replace(";", " ").split():
        token = typed.strip(".:)(").lower()
        if not token or token.isdigit():
            continue
        word = _BY_PREFIX.get(token[:_LETTERS])
        if word is None or not word.startswith(token):
            raise SecretError(
                f"word {before + len(words) + 1}, {typed!r}, is not a word of any page",
                hint="Look at that word again; its first four letters are enough.",
            )
        words.append(word)
    return words


@dataclass(slots=True, repr=False)
class Pages:
    """Pages that were taken in so far.

    Attributes:
        taken: by page number.
    """

    taken: dict[int, Page] = field(default_factory=dict)

    @property
    def missing(self) -> int | None:
        """How many more are needed; None as long as no page has said it."""
        first = next(iter(self.taken.values()), None)
        return None if first is None else max(0, first.need - len(self.taken))

    def add(self, text: str) -> Page:
        """Take a page in.

        Raises:
            SecretError: it is mistyped, was given already, or is of another split.
        """
        page = parse(text)
        first = next(iter(self.taken.values()), page)
        if (page.split, page.need) != (first.split, first.need):
            raise SecretError(
                f"this page is of split {page.split}, and the first one was of {first.split}",
                hint="Use pages of one split only; its number is printed on each of them.",
            )
        known = self.taken.get(page.number)
        if known is not None:
            if known != page:
                raise SecretError(f"two different pages have number {page.number} of this split")
            raise SecretError(
                f"page {page.number} was given already", hint="Take another page of the split."
            )
        self.taken[page.number] = page
        return page

    def key(self) -> RecipientKey:
        """Return the recovery key.

        Raises:
            SecretError: pages are missing, or they don't belong together.
        """
        if self.missing is None or self.missing:
            need = self.missing or "some"
            raise SecretError(
                f"{len(self.taken)} pages are too few: {need} more are needed",
                hint="Fewer pages than needed say nothing about the key.",
            )
        pages = list(self.taken.values())
        enough = pages[: pages[0].need]
        try:
            seed = shamir_mnemonic.combine_mnemonics([" ".join(page.words) for page in enough])
        except shamir_mnemonic.MnemonicError as error:
            raise SecretError("these pages do not belong together") from error
        return RecipientKey(seed)


def read_pages(text: str) -> Pages:
    """Read pages from a text: one for each line, or blocks with empty lines between them.

    Lines that begin with `#` are skipped.

    Raises:
        SecretError: one of them is not a page, or they are of several splits.
    """
    pages = Pages()
    block, begins, count = "", 0, 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if not block.strip():
            begins = number
        if not line.lstrip().startswith("#"):
            block += " " + line
        if block.strip() and (not line.strip() or count_words(block) >= WORDS):
            count += 1
            try:
                pages.add(block)
            except SecretError as error:
                message = f"page {count} (line {begins}) of the text: {error.message}"
                raise SecretError(message, hint=error.hint) from error
            block = ""
    return pages


def count_words(text: str) -> int:
    """Return how many words a text has; numbers are none."""
    return sum(any(letter.isalpha() for letter in word) for word in text.split())
