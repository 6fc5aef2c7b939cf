"""`remetal restore`: rewrite disks with a saved machine."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import load_recovery_key, recovery_options
from imager.commands.stage_table import show_stages, stats_option
from imager.console import Output, verb
from imager.errors import NotConfirmed, UsageError
from imager.repository.backend.place import Place
from imager.repository.repository import Repository
from imager.units import format_duration
from restore import foreign, job
from restore.cards import parse_nics
from restore.circumstances import Wishes
from restore.log import DEFAULT_PATH, RestoreLog
from restore.match import parse_map
from restore.medium import on_medium
from restore.plan import Plan
from restore.target import Target

CONFIRMATION = "overwrite"


@click.command()
@repository_argument()
@click.argument("image")
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="SAVED=TARGET",
    help="Which disk takes a saved disk; may be given more than once. SAVED is its id (disk0) or "
    "its serial, TARGET a disk or a raw file; a file that does not exist is made. "
    "By default disks are recognised by WWN, serial and size.",
)
@click.option(
    "--leave-out",
    "leave_out",
    multiple=True,
    metavar="SAVED",
    help="Do not restore this saved disk, by its id (disk1) or its serial; may be given more than "
    "once. Only where the machine comes up without it, such as on one disk of two that were "
    "mirrored.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, and write nothing.")
@click.option(
    "--yes",
    is_flag=True,
    help="Do not ask before writing. A foreign disk must be named with --overwrite-serial as well.",
)
@click.option(
    "--overwrite-serial",
    "overwrite_serials",
    multiple=True,
    metavar="SERIAL",
    help="Overwrite the disk with this serial number although it is foreign; may be given more than "
    "once. Of a disk without one: its size in bytes.",
)
@click.option(
    "--delta",
    is_flag=True,
    help="Compare the disks with the image first and write only what differs; for disks that are "
    "still half good. Free space keeps what it holds.",
)
@click.option(
    "--anew",
    is_flag=True,
    help="Begin from the start, also where an interrupted restore of the same image could be "
    "resumed.",
)
@click.option(
    "--fit",
    is_flag=True,
    help="Where a disk is smaller than the saved one, shrink swap and filesystems (ext2 to ext4, "
    "btrfs, NTFS; XFS is made anew, file by file) that have room, in linear volumes of LVM as well, "
    "and move what lies behind; where its logical sectors have another size (512, 4096), make anew "
    "what counts in them (GPT, FAT). The plan says what. Refused before anything is written if it "
    "can't be done.",
)
@click.option(
    "--grow",
    metavar="VOLUME",
    help="On a larger disk let this volume (such as disk0/p2, or system/root for a logical one of "
    "LVM), or the `last` one of each disk, take the space that is free, and its filesystem with it "
    "(ext2 to ext4, XFS, btrfs, NTFS, swap).",
)
@click.option(
    "--verify-written/--no-verify-written",
    default=False,
    show_default=True,
    help="Read back all that was written and compare it. Everything is checked before it is "
    "written; this finds disks that don't keep what they took, and reads all of it once more.",
)
@click.option(
    "--boot-entries/--no-boot-entries",
    default=None,
    help="Set the boot entries in the UEFI firmware of this machine. By default on the rescue "
    "medium only.",
)
@click.option(
    "--boot-repair/--no-boot-repair",
    default=None,
    help="Look whether the restored system has the drivers of the disks of this machine in its "
    "initramfs, and rebuild it with its own tool only if not; keep the names and settings of its "
    "network cards where they are others now. By default on the rescue medium only.",
)
@click.option(
    "--nic",
    "nics",
    multiple=True,
    metavar="SAVED=CARD",
    help="Which network card of this machine takes the place of a saved one; may be given more than "
    "once. Each by its name or its address. By default they are recognised by address, then by "
    "place and driver, then by the order of their places.",
)
@click.option(
    "--log",
    "log_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Where to write the log; by default, for root, {DEFAULT_PATH}.",
)
@click.option(
    "--log-to-esp",
    is_flag=True,
    help="Also leave the log on the restored EFI system partition.",
)
@stats_option
@recovery_options
@verb
def restore(
    out: Output,
    repo: Place,
    image: str,
    maps: tuple[str, ...],
    leave_out: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    overwrite_serials: tuple[str, ...],
    delta: bool,
    anew: bool,
    fit: bool,
    grow: str | None,
    verify_written: bool,
    boot_entries: bool | None,
    boot_repair: bool | None,
    nics: tuple[str, ...],
    log_path: Path | None,
    log_to_esp: bool,
    stats: bool,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Rewrite disks with the machine in IMAGE. All data on them is replaced.

    IMAGE is `latest`, a machine's name (its newest image), or the beginning of an image's id.
    The plan is shown first; nothing is written before it is agreed to. Disks that are in use, that
    hold the repository, this system or the rescue medium, and disks that are too small are
    refused. --fit brings a machine back on smaller ones, if its data fits, and on ones with other
    sectors; --grow uses the room of a larger one. Where all disks are as large as the saved ones,
    with the same sectors, --fit changes nothing.

    A disk is foreign when it is not recognised by WWN or serial and holds data that is not of the
    machine in IMAGE. The plan says what it holds, and its serial number has to be typed.

    A restore that was interrupted goes on where it stood when it is started again; one with --delta
    compares everything again.

    \b
    Examples:
      remetal restore /srv/images web1 --dry-run
      remetal restore /srv/images latest --map disk0=/dev/sdb
      remetal restore /srv/images 4f2a --map disk0=/var/lib/vm/web1.raw
      remetal restore /srv/images web1 --delta --dry-run
      remetal restore /srv/images web1 --leave-out disk1
      remetal restore /srv/images web1 --fit --dry-run
      remetal restore /srv/images web1 --nic eth0=52:54:00:12:34:56
    """
    mapping, named = parse_map(maps), parse_nics(nics)
    if out.as_json and not (dry_run or yes):
        raise UsageError("with --json nobody can be asked", hint="Give --yes or --dry-run as well.")
    repository = Repository.open(repo)
    unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
    medium = on_medium()
    default_log = DEFAULT_PATH if os.geteuid() == 0 else None
    log = RestoreLog(None if dry_run else log_path or default_log)
    wishes = Wishes(
        verify_written=verify_written,
        delta=delta,
        anew=anew,
        boot_entries=medium if boot_entries is None else boot_entries,
        boot_repair=medium if boot_repair is None else boot_repair,
        log_to_esp=log_to_esp,
        leave_out=leave_out,
        fit=fit,
        grow=grow,
        nics=named,
    )
    with log.watch():
        opened = job.open_saved(out, repository, image, unlocked, log)
        plan = job.prepare(repository, opened, mapping, wishes, log)
        for line in plan.lines():
            out.say(line)
        unnamed = foreign.unnamed(plan.targets, overwrite_serials)
        if dry_run:
            out.document({"dry_run": True, "plan": plan.document()})
            return
        if yes:
            foreign.require(plan.targets, overwrite_serials)
        else:
            _confirm(out, plan, unnamed)
        try:
            job.carry_out(out, opened, plan, log)
        finally:
            out.document({**log.report(), "plan": plan.document(), "log": log.path})
            if log.path is not None:
                out.remark(f"The log is in {log.path}.")
    out.say()
    for outcome in log.outcomes:
        for note in outcome.notes:
            out.say(f"{outcome.subject}: {note}")
    if stats:
        for name, stages in log.passes:
            out.say(f"{name}, {format_duration(stages.seconds)}:")
            show_stages(out, stages)
    seconds = sum(outcome.seconds for outcome in log.outcomes)
    verified = "and verified " if plan.verified else ""
    out.say(f"{plan.machine} is restored {verified}in {format_duration(seconds)}.")


def _confirm(out: Output, plan: Plan, unnamed: Sequence[Target]) -> None:
    """Ask for a word that nobody types by accident; where disks are foreign, for their serials.

    Args:
        out: where to ask.
        plan: what is to be agreed to.
        unnamed: foreign targets that the command line does not name.

    Raises:
        NotConfirmed: something else was typed, or there is no terminal to ask at.
    """
    if not sys.stdin.isatty():
        raise NotConfirmed(
            "there is no terminal to ask at before overwriting disks",
            hint="Give --yes when the plan is what you want; nothing was written.",
        )
    out.say()
    out.say("This overwrites:")
    for target in plan.targets:
        out.say(f"  {target.describe()}")
    for target in unnamed:
        out.say()
        out.say(f"{target.path} {foreign.describe(target)}.")
        foreign.check_answer(target, _ask(foreign.question(target)))
    if not unnamed and _ask(f"Type {CONFIRMATION} to go on") != CONFIRMATION:
        raise NotConfirmed("the plan was not agreed to")


def _ask(question: str) -> str:
    answer: str = click.prompt(f"{question}, anything else to stop", default="", show_default=False)
    return answer.strip()
