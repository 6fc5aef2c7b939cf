"""`remetal key split`, `key join`: recovery keys on paper."""

from datetime import UTC, datetime
from pathlib import Path

import click

from imager.commands.secrets import (
    ask,
    load_pages,
    new_passphrase,
    passphrase_option,
    read_passphrase,
)
from imager.console import Output, verb
from imager.repository import shares
from imager.repository.keyring import LockedRecoveryKey, check_new, public_path
from imager.upkeep import paper

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Split a recovery key into pages to print.")
@click.argument("keyfile", type=_FILE)
@click.option("--need", type=int, default=3, show_default=True, help="How many pages are enough.")
@click.option("--pages", type=int, default=5, show_default=True, help="How many are made.")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the pages go; print them, then delete the files.",
)
@passphrase_option
@verb
def split(
    out: Output, keyfile: Path, need: int, pages: int, folder: Path, passphrase_file: Path | None
) -> None:
    """Split the recovery key in KEYFILE into pages to print; some of them give it back.

    Enough pages open every image without the passphrase. KEYFILE stays as it is.

    \b
    Examples:
      remetal key split recovery.key --need 3 --pages 5 -o /media/stick/pages
      remetal key join -o recovery.key
    """
    shares.check_numbers(need, pages)
    paper.check_place(folder, pages)
    locked = LockedRecoveryKey.read(keyfile)
    secret = read_passphrase(passphrase_file)
    key = locked.unlock(ask(f"Passphrase of {keyfile}") if secret is None else secret)
    made = shares.split(key, need, pages)
    written = paper.write(
        folder,
        made,
        label=locked.label,
        recipient=locked.recipient.id.hex(),
        repository=locked.repository.hex() if locked.repository else None,
        today=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    out.document({"need": need, "pages": pages, "files": [str(path) for path in written]})
    out.say(f"Wrote {pages} pages to {folder}; any {need} of them open every image.")
    out.say("Print them, keep them in different places, and delete the files. An older split")
    out.say("of the same key stays good: destroy its pages if they shall open nothing.")


@click.command(short_help="Make a recovery key file from enough pages.")
@click.option("-o", "--output", required=True, type=_FILE, help="The recovery key to be made.")
@click.option("--label", default="recovery key", help="What people call this key.")
@click.option(
    "--pages",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default="-",
    show_default=True,
    help="File with the words of the pages; `-` asks for them.",
)
@passphrase_option
@verb
def join(out: Output, output: Path, label: str, pages: Path, passphrase_file: Path | None) -> None:
    """Make a recovery key file from enough pages, under a new passphrase.

    \b
    Example:
      remetal key join -o recovery.key
    """
    for path in (output, public_path(output)):
        check_new(path)
    key = load_pages(out, pages)
    secret = new_passphrase(out, passphrase_file)
    locked = LockedRecoveryKey.lock(key, secret, label, None)
    public = locked.write_with_public(output)
    recipient = locked.recipient.id.hex()
    out.document({"recovery_key": str(output), "public_part": str(public), "recipient": recipient})
    out.say(f"Made the recovery key {output} ({recipient}), under the new passphrase.")
