"""`remetal drill`: prove that a saved machine comes back."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from bootmedia import iso as iso_image
from bootmedia.config import MediumConfig, default_cache
from bootmedia.medium import medium_kernel
from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import (
    RECOVERY_KEY_FILE,
    ask,
    default_folder,
    read_passphrase,
    recovery_key_options,
)
from imager.console import Output, verb
from imager.errors import DrillFailed, RecoveryKeyNeeded, RemetalError, UsageError
from imager.repository.backend.place import Place
from imager.repository.repository import Repository
from restore.drill import accelerator, fixture, report, run
from restore.drill.bring_back import Settings
from restore.drill.matrix import cross, drill_all, read_matrix, went_well
from restore.drill.reach import reach
from restore.drill.record import record
from restore.drill.report import Outcome, Result
from restore.drill.scenario import Medium
from restore.drill.variation import Variation
from restore.drill.vm_spec import Accelerator, Firmware


@click.command(short_help="Prove that IMAGE comes back, in QEMU; no real disk is touched.")
@repository_argument(required=False)
@click.argument("image", required=False)
@click.option(
    "--fixture",
    "fixtures",
    multiple=True,
    metavar="NAME",
    help="Instead of IMAGE: build this machine of vm-fixtures, save it, destroy it, and bring "
    "it back. May be given more than once; needs a source checkout. With REPO, which must be an empty "
    "place, its repository is made there.",
)
@click.option(
    "--vary",
    "variations",
    multiple=True,
    type=click.Choice([each.value for each in Variation]),
    default=(Variation.SAME.value,),
    show_default=True,
    help="In what the machine that a fixture comes back on differs: other controllers, disks in "
    "reverse order, larger or smaller ones (which must be refused, or, as `shrunk`, take the fitted "
    "machine), ones with other sectors, an old disk left plugged in, the first disk alone, the "
    "repository on a disk of the same size, power cuts. May be given more than once.",
)
@click.option(
    "--matrix",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Instead of --fixture and --vary: all drills that this file names, as "
    "vm-fixtures/matrix.toml does.",
)
@click.option(
    "--firmware",
    type=click.Choice([each.value for each in Firmware]),
    help="What starts the machine; by default what it had.",
)
@click.option(
    "--medium",
    type=click.Choice([each.value for each in Medium]),
    default=Medium.CD.value,
    show_default=True,
    help="What the rescue medium is attached as.",
)
@click.option(
    "--iso",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A rescue medium that was built before; by default a new one is built.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=click.IntRange(1, 65535),
    default=(22,),
    show_default=True,
    help="A TCP port of the restored machine; an open one proves that it is up.",
)
@click.option(
    "--accept-screen",
    is_flag=True,
    help="Count a still screen as proof when nothing better shows. Weak: so is a boot menu.",
)
@click.option("--memory", "memory_mib", type=click.IntRange(128), help="MiB of its memory.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep disks, consoles and pictures in this folder, also of a drill that succeeds.",
)
@click.option(
    "--report",
    "report_folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write report.json and a picture of the time, timeline.svg, into this folder; of many drills "
    "after each.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many drills of fixtures run at the same time. They share the processors, one each is "
    "enough; each needs 2 GiB, and their RTO is no promise any more.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Leave out the drills that went well by the report which is in the folder of --report.",
)
@click.option("--verbose", is_flag=True, help="Show the consoles of the virtual machines.")
@recovery_key_options
@verb
def drill(
    out: Output,
    repo: Place | None,
    image: str | None,
    fixtures: tuple[str, ...],
    variations: tuple[str, ...],
    matrix: Path | None,
    firmware: str | None,
    medium: str,
    iso: Path | None,
    ports: tuple[int, ...],
    accept_screen: bool,
    memory_mib: int | None,
    keep: Path | None,
    report_folder: Path | None,
    jobs: int,
    resume: bool,
    verbose: bool,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Prove that IMAGE of REPO comes back, in QEMU, without touching any real disk.

    The real rescue medium restores the image onto blank disks, the disks are started alone on a
    network that leads nowhere, and the drill waits for proof that the machine is up: a login
    prompt on its serial console or an open TCP port. Each step is timed; the RTO counts from
    power-on of the rescue to the proof.

    If REPO is on the network, the rescue system reaches that host and port, and nothing else.

    \b
    Examples:
      remetal drill /srv/images latest
      remetal drill /srv/images web1 --firmware secureboot --medium usb
      remetal drill ssh://backup@10.0.0.5/srv/images latest
      remetal drill --fixture uefi-ext4 --fixture bios-ext4
      remetal drill --fixture uefi-raid1-lvm --vary reversed --vary larger
      remetal drill --matrix vm-fixtures/matrix.toml --jobs 2 --report drills --resume
    """
    cells = read_matrix(matrix) if matrix else cross(fixtures, variations)
    if [bool(fixtures), bool(image), matrix is not None].count(True) != 1 or (image and not repo):
        raise UsageError("a drill needs REPO and IMAGE, or --fixture NAME, or --matrix FILE")
    if repo is not None and len(cells) > 1:
        raise UsageError("one repository is made in REPO, so there can be one --fixture")
    if resume and (report_folder is None or not cells):
        raise UsageError("--resume goes with --report, and with --fixture or --matrix")
    if iso is not None:
        iso_image.read(iso, ".disk/info")  # better known before anything else is done
    choices = run.Choices(
        firmware=Firmware(firmware) if firmware else None,
        medium=Medium(medium),
        iso=iso,
        cache=fixture.cache() if cells else default_cache(),
        memory_mib=memory_mib,
        ports=ports,
        store=run.Store.of(repo) if repo else None,
    )
    subject = None
    if repo and image:
        subject = _subject(repo, image, recovery_key, passphrase_file)
    settings = Settings(
        accelerator=_accelerator(out, choices),
        say=out.remark,
        verbose=verbose,
        keep=keep,
        accept_screen=accept_screen,
    )
    if subject is not None:
        results = [run.drill_image(subject, choices, settings)]
        _record(out, subject, results[0])
    else:

        def keep_report(results: Sequence[Result]) -> None:
            if report_folder is not None:
                report.write(results, report_folder)

        found = report.read(report_folder) if resume and report_folder else []
        known = went_well(cells, choices, found)
        results = drill_all(cells, choices, settings, keep_report, jobs, known)
    _tell(out, results, report_folder)


def _subject(
    repo: Place, image: str, recovery_key: Path | None, passphrase_file: Path | None
) -> run.Subject:
    reach(repo)  # better known before anything else is done
    repository = Repository.open(repo)
    key = recovery_key or default_folder(repository.id) / RECOVERY_KEY_FILE
    if not key.exists():
        raise RecoveryKeyNeeded(f"a drill opens the image, and there is no recovery key at {key}")
    secret = read_passphrase(passphrase_file)
    if secret is None:
        secret = ask(f"Passphrase of {key}")
    return run.open_subject(repo, image, key, secret)


def _record(out: Output, subject: run.Subject, result: Result) -> None:
    try:
        done = record(subject, result)
    except RemetalError as error:
        out.remark(f"warning: the drill was not noted in the repository: {error.message}")
        return
    if not done:
        out.remark("The drill was not noted in the repository: its recovery key was removed there.")


def _accelerator(out: Output, choices: run.Choices) -> Accelerator:
    """Choose with the kernel of the medium, which the drill is going to start."""
    with tempfile.TemporaryDirectory(prefix="remetal-drill-") as folder:

        def kernel() -> Path:
            if choices.iso is None:
                return medium_kernel(MediumConfig(), choices.cache, out.remark)
            place = Path(folder) / "vmlinuz"
            place.write_bytes(iso_image.read(choices.iso, "boot/vmlinuz"))
            return place

        chosen = accelerator.choose(kernel)
    out.remark(chosen.reason)
    return chosen.accelerator


def _tell(out: Output, results: list[Result], folder: Path | None) -> None:
    out.document(report.document(results))
    for columns, rows in report.tables(results):
        out.say()
        out.table(columns, rows)
    out.say()
    for result in results:
        for line in report.lines(result):
            out.say(line)
    if folder is not None:
        report.write(results, folder)
        out.say(f"Report and picture: {folder}")
    failed = [result for result in results if result.outcome is Outcome.FAILED]
    if failed:
        raise DrillFailed(
            f"{len(failed)} of {len(results)} drills failed: "
            + ", ".join(result.title for result in failed),
            hint="What was kept is named above: consoles, pictures and logs.",
        )
