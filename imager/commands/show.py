"""`remetal show`: an image's machine as a tree."""

from pathlib import Path

import click
import msgspec
from rich.markup import escape
from rich.tree import Tree

from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import load_recovery_key, recovery_options
from imager.console import Output, verb
from imager.layout import codec
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.layers import Layers
from imager.layout.machine import Machine
from imager.layout.partition_table import Partition
from imager.repository.backend.place import Place
from imager.repository.image import ExtentsNote
from imager.repository.repository import Repository
from imager.repository.retrieval import OpenImage, open_image
from imager.units import format_size

_ROLES = {
    VolumeRole.BOOT_AREA: "boot area",
    VolumeRole.GAP: "between or behind partitions",
    VolumeRole.WHOLE_DISK: "whole disk",
    VolumeRole.PARTITION: "partition",
}


@click.command(short_help="Show the machine in IMAGE: disks, tables, filesystems.")
@repository_argument()
@click.argument("image")
@recovery_options
@verb
def show(
    out: Output,
    repo: Place,
    image: str,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Show the machine in IMAGE: firmware, cards, disks, tables, layers, filesystems, how each was read.

    IMAGE is `latest`, a machine's name (its newest image), or the beginning of an image's id.

    \b
    Example:
      remetal show /srv/images latest
    """
    repository = Repository.open(repo)
    unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
    opened = open_image(
        repository,
        image,
        unlocked,
        lambda problem: out.remark(f"warning: {problem.error.message}"),
    )
    out.document(
        {
            "image": opened.image.id,
            "signed_by": opened.image.certificate.name,
            "tool": opened.manifest.tool,
            "summary": msgspec.to_builtins(opened.summary),
            "machine": codec.document(opened.machine),
            "extents": msgspec.to_builtins(opened.manifest.extents),
        }
    )
    out.tree(_machine(opened))


def _machine(opened: OpenImage) -> Tree:
    machine = opened.machine
    summary = opened.summary
    tree = Tree(f"[bold]{escape(machine.name)}[/bold]  {machine.id}")
    tree.add(
        f"image {opened.image.id[:12]}, {summary.started} to {summary.finished}, "
        f"source {summary.source}, signed by {escape(opened.image.certificate.name)}"
    )
    _firmware(tree, machine)
    for card in machine.cards:
        tree.add(escape(f"network card {card.title}: {card.describe()}"))
    used = {volume.id: volume.used for volume in summary.volumes}
    for sentence in machine.layers.lacking():
        tree.add(escape(f"{sentence}: it is not in this image"))
    for disk in machine.disks:
        _disk(tree, disk, machine.layers, used, opened.manifest.extents)
    return tree


def _firmware(tree: Tree, machine: Machine) -> None:
    firmware = machine.firmware
    secure = {True: ", Secure Boot", False: ", no Secure Boot", None: ""}[firmware.secure_boot]
    branch = tree.add(f"firmware {firmware.kind.value.upper()}{secure}, {machine.architecture}")
    for entry in firmware.boot_entries:
        branch.add(escape(f"{entry.label}: {entry.loader} on partition {entry.partition_uuid}"))


def _disk(
    tree: Tree, disk: Disk, layers: Layers, used: dict[str, int], notes: dict[str, ExtentsNote]
) -> None:
    identity = disk.identity
    known = [
        f"{name} {value}"
        for name, value in (
            ("model", identity.model),
            ("serial", identity.serial),
            ("WWN", identity.wwn),
            ("bus", identity.transport),
        )
        if value
    ]
    table = f"{disk.table.kind.value.upper()} {disk.table.id}" if disk.table else "no table"
    branch = tree.add(
        escape(
            f"{disk.id}  {format_size(identity.size)}, {table}, "
            f"{identity.logical_sector}-byte sectors, {', '.join([*known, 'was ' + disk.origin])}"
        )
    )
    for words in layers.describe(disk.id):
        branch.add(escape(words))
    partitions = {part.number: part for part in disk.table.partitions} if disk.table else {}
    for volume in disk.volumes:
        partition = partitions.get(volume.partition) if volume.partition is not None else None
        leaf = branch.add(escape(_volume(volume, partition, used[volume.id])))
        for words in layers.describe(volume.id):
            leaf.add(escape(words))
        note = notes.get(volume.id)
        if note is not None:
            reason = f", because {note.reason}" if note.reason else ""
            leaf.add(escape(f"read: {note.method}{reason}"))


def _volume(volume: Volume, partition: Partition | None, used: int) -> str:
    words = [volume.id, _ROLES[volume.role]]
    if volume.filesystem:
        words.append(volume.filesystem.type)
        words += [f'"{volume.filesystem.label}"'] if volume.filesystem.label else []
        words += [volume.filesystem.uuid] if volume.filesystem.uuid else []
    if partition is not None and partition.name:
        words.append(f"({partition.name})")
    return (
        f"{' '.join(words)}  {format_size(volume.length)} at {format_size(volume.offset)}, "
        f"{format_size(used)} used"
    )
