"""Recovery keys printed: pages for people, for printers and for scanners.

A page never holds the passphrase of the key: enough pages open the images without it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import jinja2
import segno

from imager.repository.keyring import check_new, unwritable, write_new
from imager.repository.shares import Page

_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("imager.upkeep"),
    # Plain text is no markup: a label stands there as it is.
    autoescape=jinja2.select_autoescape(("html.j2",)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_COLUMNS: Final = 3


def code(page: Page) -> segno.QRCode:
    """Return the QR code of a page: its words in upper case."""
    return segno.make_qr(" ".join(page.words).upper(), error="m")


def check_place(folder: Path, total: int) -> None:
    """Refuse a folder that takes no pages of a split, before anything is asked or made.

    Raises:
        OutputExists: it holds a page of the same name.
        OutputError: it is no folder, can't be made, or can't be written to.
    """
    if folder.is_dir():
        for number in range(1, total + 1):
            for path in _paths(folder, number, total).values():
                check_new(path)
        return
    outermost = folder.absolute()
    while not os.path.lexists(outermost.parent):
        outermost = outermost.parent
    check_new(outermost)


def _paths(folder: Path, number: int, total: int) -> dict[str, Path]:
    """Return the files of a page, by their kind."""
    stem = folder / f"page-{number}-of-{total}"
    return {kind: stem.with_suffix(f".{kind}") for kind in ("html", "txt")}


def write(
    folder: Path,
    pages: Sequence[Page],
    *,
    label: str,
    recipient: str,
    repository: str | None,
    today: str,
) -> list[Path]:
    """Write each page as HTML and as text, readable by their owner only, and return the files.

    Raises:
        OutputExists: one of them is there already.
        OutputError: they can't be written; none is left behind then.
    """
    files: dict[Path, str] = {}
    for page in pages:
        rows = -(-len(page.words) // _COLUMNS)
        numbered = list(enumerate(page.words, 1))
        lines = [numbered[row::rows] for row in range(rows)]
        told = {
            "page": page,
            "total": len(pages),
            "lines": lines,
            "label": " ".join(label.split()),
            "recipient": recipient,
            "repository": repository,
            "today": today,
            "code": code(page).svg_inline(scale=4),
        }
        for kind, path in _paths(folder, page.number, len(pages)).items():
            template = _TEMPLATES.get_template(f"recovery-page.{kind}.j2")
            files[path] = template.render(told)
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in files:
            check_new(path)
        for path, text in files.items():
            write_new(path, text.encode())
            written.append(path)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        # Half a split is secret and of no use.
        if len(written) < len(files):
            for path in written:
                path.unlink(missing_ok=True)
    return written
