"""`remetal capture`: save a machine."""

import contextlib
import platform
import time
from pathlib import Path
from typing import Any

import click

from imager import politeness
from imager.capture.capture import Captured
from imager.capture.capture import capture as run_capture
from imager.capture.planner import CapturePlan, plan
from imager.capture.source import default_disks, open_sources, with_devices, with_serials
from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import credential_option, load_credential
from imager.commands.stage_table import show_stages, stats_option
from imager.console import Output, verb
from imager.layout import codec
from imager.repository.backend.place import Place
from imager.repository.compression import LEAST_LEVEL, MOST_LEVEL
from imager.repository.repository import Repository
from imager.units import format_duration, format_size

_AUTO = "auto"


class _Level(click.ParamType[int | None]):
    """A level of zstd, or None for one that follows what is the bound."""

    name = "level"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == _AUTO or value is None:
            return None
        return click.IntRange(LEAST_LEVEL, MOST_LEVEL).convert(value, param, ctx)


@click.command()
@repository_argument()
@click.option(
    "--disk",
    "disks",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A block device, or a raw or qcow2 file; may be given more than once. "
    "By default every disk of this machine except those that hold the repository.",
)
@click.option(
    "--serial",
    "serials",
    multiple=True,
    metavar="DISK=SERIAL",
    help="Serial number that the machine reads of a disk file, which has none by itself: by it a "
    "restore tells equal disks apart. May be given more than once.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DISK=DEVICE",
    help="What the machine calls a disk that is a file here, such as web1.qcow2=/dev/vda: where its "
    "fstab, command line and such say so, a restore onto another bus corrects it. May be given more "
    "than once.",
)
@click.option("--name", help="Name of the machine; by default this host's name.")
@click.option(
    "--compression",
    type=_Level(),
    default=_AUTO,
    show_default=True,
    help=f"Level of zstd, {LEAST_LEVEL} to {MOST_LEVEL}, or {_AUTO}: fast while the processors are the bound, "
    "stronger while the store is.",
)
@click.option(
    "--polite/--no-polite",
    default=True,
    show_default=True,
    help="Let all other processes of this machine go first (nice 10, idle I/O).",
)
@click.option(
    "--forensic",
    is_flag=True,
    help="Read every sector: deleted files, swap and unpartitioned space too.",
)
@stats_option
@click.option("--dry-run", is_flag=True, help="Show what would be read, and store nothing.")
@credential_option
@verb
def capture(
    out: Output,
    repo: Place,
    disks: tuple[Path, ...],
    serials: tuple[str, ...],
    devices: tuple[str, ...],
    name: str | None,
    compression: int | None,
    polite: bool,
    forensic: bool,
    stats: bool,
    dry_run: bool,
    credential: Path | None,
) -> None:
    """Save the disks of a machine as a new image in REPO.

    Only what is in use is read: used blocks of ext2, ext3, ext4, XFS, btrfs, FAT, exFAT, NTFS and
    F2FS, of LVM what logical volumes have, of swap its header; everything else whole, with runs of
    zeros left out. Where it is not certain what is in use, all is read, and the reason is said.
    What was deleted is not captured, unless --forensic asks for it. The disks are never written to.

    \b
    Examples:
      remetal capture /srv/images
      remetal capture /srv/images --disk /var/lib/vm/web1.qcow2 --name web1
    """
    repository = Repository.open(repo)
    held = load_credential(repository, credential)
    repository.credential_keys(held)
    chosen = disks or default_disks(repository.backend.folders)
    with open_sources(chosen) as sources:
        named = with_devices(with_serials(sources, serials), devices)
        planned = plan(named, name or platform.node() or "machine", forensic=forensic)
        _show_plan(out, planned)
        if dry_run:
            out.document({"dry_run": True, **_plan_document(planned)})
            return
        start = time.monotonic()
        manners = politeness.polite() if polite else contextlib.nullcontext()
        with manners, out.progress("capture", planned.size) as advance:
            captured = run_capture(planned, repository, held, advance, level=compression)
        seconds = time.monotonic() - start
    for problem in captured.problems:
        out.remark(f"warning: {problem.error.message}")
    _tell(out, planned, captured, seconds)
    if stats:
        show_stages(out, captured.stages)


def _show_plan(out: Output, planned: CapturePlan) -> None:
    out.say(f"Machine {planned.machine.name} ({planned.machine.id}):")
    rows = []
    for item in planned.volumes:
        filesystem = item.volume.filesystem
        rows.append(
            (
                f"  {item.volume.id}",
                item.disk.origin,
                filesystem.type if filesystem else "-",
                format_size(item.volume.length),
                format_size(item.size),
                item.extents.method,
            )
        )
    out.table(("  volume", "disk", "holds", ">size", ">to read", "known from"), rows)
    layers = planned.machine.layers
    for disk in planned.machine.disks:
        for place in (disk.id, *(volume.id for volume in disk.volumes)):
            if words := layers.describe(place):
                out.say(f"  {place}: {', '.join(words)}")
    for sentence in layers.lacking():
        out.remark(f"warning: {sentence}; what is not there would not come back")
    for item in planned.volumes:
        if item.extents.reason:
            out.remark(f"{item.volume.id} is read whole: {item.extents.reason}")


def _plan_document(planned: CapturePlan) -> dict[str, object]:
    return {
        "machine": codec.document(planned.machine),
        "forensic": planned.forensic,
        "read_bytes": planned.size,
        "volumes": [
            {
                "id": item.volume.id,
                "length": item.volume.length,
                "read_bytes": item.size,
                "method": item.extents.method,
                "reason": item.extents.reason,
            }
            for item in planned.volumes
        ],
    }


def _tell(out: Output, planned: CapturePlan, captured: Captured, seconds: float) -> None:
    summary = captured.summary
    out.document(
        {
            "image": captured.image,
            "machine": summary.machine_name,
            "read_bytes": planned.size,
            "used_bytes": summary.used_bytes,
            "new_bytes": summary.new_bytes,
            "new_chunks": captured.new_chunks,
            "stored_bytes": summary.stored_bytes,
            "seconds": round(seconds, 3),
            "stats": captured.stages.document(),
        }
    )
    out.say(
        f"Image {captured.image[:12]} of {summary.machine_name} in {format_duration(seconds)}: "
        f"{format_size(summary.used_bytes)} used, {format_size(summary.new_bytes)} new, "
        f"{format_size(summary.stored_bytes)} stored."
    )
