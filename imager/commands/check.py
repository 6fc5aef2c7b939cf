"""`remetal check`: is every image complete and intact?"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from imager.commands.repository_argument import repository_argument
from imager.commands.retention_options import seconds
from imager.commands.secrets import (
    credential_option,
    load_credential,
    load_group_keys,
    load_keys_if_any,
    load_recovery_key,
    recovery_options,
)
from imager.console import Output, verb
from imager.errors import (
    ChecksFailed,
    CredentialNeeded,
    RecoveryKeyNeeded,
    UntrustedObject,
    UsageError,
)
from imager.repository.backend.place import Place
from imager.repository.keyring import GroupKeys
from imager.repository.repository import Repository
from imager.repository.retrieval import Unlocked
from imager.units import format_size
from imager.upkeep.check import check as run_check
from imager.upkeep.check import data_size
from imager.upkeep.check_report import Depth, Fault, Finding, Progress, Report
from imager.upkeep.check_round import Budget, memory_path


@click.command(short_help="Check that every image in REPO is complete and intact.")
@repository_argument()
@click.option(
    "--ciphertext", is_flag=True, help="Read every object, and compare each byte; no key needed."
)
@click.option("--full", is_flag=True, help="Also open every chunk, with the recovery key.")
@click.option(
    "--budget",
    callback=seconds,
    metavar="DURATION",
    help="Stop after this time (30m, 2h), and go on there the next time.",
)
@credential_option
@recovery_options
@verb
def check(
    out: Output,
    repo: Place,
    ciphertext: bool,
    full: bool,
    budget: int | None,
    credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Check that every image in REPO is complete, intact and what it says.

    Without an option the structure is checked, with a credential: images, signatures, maps, indexes,
    and that each chunk's pack is there. With --ciphertext every byte of every object is compared; that
    needs no key, so it can run where the repository is stored; with a credential it names the images
    that damage touches. With --full every chunk is opened besides, with the recovery key.

    With --budget a large repository is walked over many runs; --ciphertext is meant then, unless
    --full is given. Where the last run stopped is kept in ~/.local/state/remetal; if that is lost, a
    new round begins. Damage that was found is told by each run until it is mended.

    \b
    Examples:
      remetal check /srv/images
      remetal check /srv/images --budget 30m
      remetal check /srv/images --full --recovery-key recovery.key
    """
    if ciphertext and full:
        raise UsageError("--full compares each byte too: give --ciphertext or --full, not both")
    # The structure is always quick, so a budget means the bytes.
    ciphertext = ciphertext or (budget is not None and not full)
    repository = Repository.open(repo)
    depth = Depth.FULL if full else Depth.CIPHERTEXT if ciphertext else Depth.STRUCTURE
    unlocked: Unlocked | None = None
    keys: GroupKeys | None
    try:
        if full:
            unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
            keys = unlocked.keys
        elif ciphertext and recovery_key is None:
            keys = _keys_if_any(out, repository, credential)
        elif ciphertext:
            keys = load_keys_if_any(out, repository, credential, recovery_key, passphrase_file)
        else:
            keys = load_group_keys(out, repository, credential, recovery_key, passphrase_file)
    except (UntrustedObject, RecoveryKeyNeeded) as error:
        if not repository.trust.problems:
            raise
        raise _undecided(repo, repository) from error
    limit = None if budget is None else Budget(budget, memory_path(repository.id))
    total = 0 if depth is Depth.STRUCTURE else data_size(repository)
    with out.progress("check", total) as advance:
        report = run_check(repository, keys, advance, depth=depth, unlocked=unlocked, budget=limit)
    _tell(out, report)
    if report.progress is not None and report.progress.lost:
        out.remark(
            f"warning: {memory_path(repository.id)}, which says how far the last runs came, can't be "
            "read; a new round began"
        )
    if report.findings:
        raise ChecksFailed(_summary(report), hint=_hint(report, repo))


def _keys_if_any(out: Output, repository: Repository, credential: Path | None) -> GroupKeys | None:
    """Return the group's keys if a credential is given or lies where it is looked for."""
    try:
        return repository.credential_keys(load_credential(repository, credential))
    except CredentialNeeded:
        if credential is not None:
            raise
    except UntrustedObject as error:
        # The generation that vouches for it may be what is damaged.
        out.remark(f"warning: {error.message}: going on without keys, so no image is named.")
    return None


def _undecided(repo: Place, repository: Repository) -> ChecksFailed:
    problems = "; ".join(problem.message for problem in repository.trust.problems)
    return ChecksFailed(
        f"nobody can tell whether this key counts here: {problems}",
        hint=f"Run `remetal repair {repo}`, then check again; `remetal check {repo} --ciphertext` "
        "needs no key.",
    )


def _hint(report: Report, repo: Place) -> str:
    """Return what to do about each sort of finding."""
    faults = {finding.fault for finding in report.findings}
    repair = f"`remetal repair {repo}`"
    hints = []
    if faults - {Fault.LIE, Fault.UNTRUSTED}:
        hints.append(f"Run {repair}.")
    if Fault.UNTRUSTED in faults:
        lost = (
            f"; if a key generation was lost, {repair} brings it back" if len(faults) == 1 else ""
        )
        hints.append(
            "What is untrusted is not damaged, and nothing uses it: if nobody of yours wrote it, "
            f"remove it from the storage{lost}."
        )
    if Fault.LIE in faults:
        hints.append(
            "What lies was written so, and can't be repaired: revoke the credential of its writer, "
            "remove the packs that lie from the storage, and capture the machines named again."
        )
    return " ".join(hints)


def _summary(report: Report) -> str:
    count = len(report.findings)
    if report.images is None:
        return f"{count} objects are damaged; without keys nobody knows which images that touches"
    touched = {image for finding in report.findings for image in finding.images}
    lost = {
        image for finding in report.findings if not finding.repairable for image in finding.images
    }
    return (
        f"{count} objects are {_what(report)}; {len(touched)} of {report.images} images are "
        f"touched, {len(lost)} of them can't be restored whole as it is"
    )


def _what(report: Report) -> str:
    if all(finding.fault is Fault.UNTRUSTED for finding in report.findings):
        return "signed by nobody who counts here"
    return "damaged, missing or not as they should be"


def _tell(out: Output, report: Report) -> None:
    out.document(_document(report))
    for finding in report.findings:
        out.say(_sentence(finding, named=report.images is not None))
    for finding in report.ignored:
        out.say(f"{finding.name}: {finding.message}; it is intact, and nothing uses it")
    images = "" if report.images is None else f"{report.images} images, "
    read = f", {format_size(report.read_bytes)} read and compared" if report.read_bytes else ""
    chunks = f", {report.opened_chunks} chunks opened" if report.opened_chunks else ""
    out.say(f"{images}{report.objects} objects verified{read}{chunks}.")
    for note in _notes(report):
        out.say(note)
    if report.progress is not None:
        out.say(_round(report.progress))
    if report.findings:
        return
    if report.progress is not None and report.progress.runs_left:
        out.say("All that was read is well.")
    else:
        out.say("All is well.")
    if report.depth is Depth.CIPHERTEXT:
        out.say(
            "This does not prove that the content opens to what was captured: `check --full` does."
        )


def _notes(report: Report) -> Iterator[str]:
    """Yield what is worth saying and no failure."""
    if report.orphan_packs:
        yield (
            f"{report.orphan_packs} packs ({format_size(report.orphan_bytes)}) are not in any index "
            "yet: of captures that run or were interrupted. That is no damage."
        )
    if report.unopened_packs:
        yield f"{report.unopened_packs} packs can't be opened with this key; their bytes are right."
    if report.ignored:
        yield (
            f"{len(report.ignored)} objects are ignored, as credentials wrote them that were revoked "
            "before. That is no damage; they may be removed from the storage."
        )
    if report.rotten_removals:
        yield (
            f"{len(report.rotten_removals)} statements of removals have rotted, such as "
            f"{report.rotten_removals[0]}. No image needs them; `remetal repair` lets them go."
        )
    if report.tampered:
        yield (
            f"{len(report.tampered)} objects were overwritten or marked as deleted after they were "
            f"put, such as {report.tampered[0]}. What was put first is what is read, so that is no "
            "damage; but somebody tried: the store's log says who."
        )
    if report.strange:
        yield (
            f"{len(report.strange)} files are no objects of a repository, such as {report.strange[0]}."
        )


def _document(report: Report) -> dict[str, object]:
    progress = report.progress
    return {
        "depth": report.depth.value,
        "images": report.images,
        "objects": report.objects,
        "read_bytes": report.read_bytes,
        "opened_chunks": report.opened_chunks,
        "orphan_packs": report.orphan_packs,
        "orphan_bytes": report.orphan_bytes,
        "unopened_packs": report.unopened_packs,
        "strange": report.strange,
        "tampered": report.tampered,
        "ignored": [
            {"object": finding.name, "message": finding.message} for finding in report.ignored
        ],
        "rotten_removals": report.rotten_removals,
        "round": None if progress is None else {**asdict(progress), "percent": progress.percent},
        "findings": [
            {
                "object": finding.name,
                "fault": finding.fault.value,
                "message": finding.message,
                "images": finding.images,
                "machines": finding.machines,
                "repairable": finding.repairable,
                "writer": finding.writer,
            }
            for finding in report.findings
        ],
    }


def _sentence(finding: Finding, *, named: bool) -> str:
    text = f"{finding.name}: {finding.message}"
    if finding.fault is Fault.LIE:
        text += f"; it lies as it was written, by {finding.writer or 'unknown'}"
    if not named:
        return text
    images = ", ".join(image[:12] for image in finding.images) or "none"
    machines = f" of {', '.join(finding.machines)}" if finding.machines else ""
    still = " (they still restore without it)" if finding.repairable and finding.images else ""
    return f"{text}; images touched: {images}{machines}{still}"


def _round(progress: Progress) -> str:
    text = f"Round {progress.number}: {progress.percent} % done, began {progress.began[:10]}"
    if progress.runs_left:
        text += f", all of it seen in about {progress.runs_left} more runs like this"
    if not progress.remembered:
        text += "; it could not be remembered, so the next run begins anew"
    return text + "."
