"""`remetal check`: is every image complete and intact?"""

from pathlib import Path

import click

from imager.commands.secrets import (
    credential_option,
    load_group_keys,
    load_recovery_key,
    recovery_options,
)
from imager.console import Output, verb
from imager.errors import ChecksFailed
from imager.repository.repository import Repository
from imager.units import format_size
from imager.upkeep.check import Finding, Report, data_size
from imager.upkeep.check import check as run_check


@click.command()
@click.argument("repo")
@click.option("--read-data", is_flag=True, help="Read every pack, and compare each byte.")
@credential_option
@recovery_options
@verb
def check(
    out: Output,
    repo: str,
    read_data: bool,
    credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Check that every image in REPO is complete, intact and what it says.

    Without --read-data the structure is checked: images, signatures, maps, indexes, and that each
    chunk's pack is there. With it every byte of every pack is compared too; a capture credential
    is enough for both. With --recovery-key besides, every chunk is also opened.

    \b
    Examples:
      remetal check /srv/images
      remetal check /srv/images --read-data --recovery-key recovery.key
    """
    repository = Repository.open(repo)
    unlocked = None
    if recovery_key is not None:
        unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
        keys = unlocked.keys
    else:
        keys = load_group_keys(out, repository, credential, None, passphrase_file)
    total = data_size(repository) if read_data else 0
    with out.progress("check", total) as advance:
        report = run_check(
            repository,
            keys,
            advance,
            read_data=read_data,
            unlocked=unlocked if read_data else None,
        )
    _tell(out, report)
    if report.findings:
        touched = {image for finding in report.findings for image in finding.images}
        lost = {
            image
            for finding in report.findings
            if not finding.repairable
            for image in finding.images
        }
        raise ChecksFailed(
            f"{len(report.findings)} objects are damaged or missing; {len(touched)} of "
            f"{report.images} images are touched, {len(lost)} of them can't be restored whole",
            hint="Bring the objects named above back from another copy of the repository.",
        )


def _tell(out: Output, report: Report) -> None:
    out.document(
        {
            "images": report.images,
            "objects": report.objects,
            "read_bytes": report.read_bytes,
            "opened_chunks": report.opened_chunks,
            "findings": [
                {
                    "object": finding.name,
                    "message": finding.message,
                    "images": finding.images,
                    "repairable": finding.repairable,
                }
                for finding in report.findings
            ],
        }
    )
    for finding in report.findings:
        out.say(_sentence(finding))
    read = f", {format_size(report.read_bytes)} of packs read" if report.read_bytes else ""
    chunks = f", {report.opened_chunks} chunks opened" if report.opened_chunks else ""
    out.say(f"{report.images} images, {report.objects} objects verified{read}{chunks}.")
    if not report.findings:
        out.say("All is well.")


def _sentence(finding: Finding) -> str:
    images = ", ".join(image[:12] for image in finding.images) or "none"
    still = " (they still restore without it)" if finding.repairable and finding.images else ""
    return f"{finding.name}: {finding.message}; images touched: {images}{still}"
