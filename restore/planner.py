"""Machine + matched disks + maps of the image → `Plan`. Decides everything, writes nothing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from imager.errors import ObjectDamaged, TargetError
from imager.layout.disk import Disk, Volume, VolumeRole
from imager.layout.layers import Layers
from imager.layout.machine import Machine
from imager.layout.mdraid import MEMBER_TYPE
from imager.layout.partition_table import TableKind
from imager.units import MIB
from restore import foreign, marks, resumption
from restore.boot_planner import plan_boot
from restore.circumstances import Surroundings, Wishes
from restore.fit import Fitted
from restore.fit_planner import FittedDisk, Fitter, check_wishes, with_places
from restore.group_planner import Piece, logical_places
from restore.match import Match, describe
from restore.plan import Plan
from restore.resumption import Way
from restore.runs import EDGE, Image, each_part
from restore.steps import (
    CheckTable,
    ClearOutside,
    CompareVolume,
    DiscardDisk,
    EmptyFile,
    InvalidateEnds,
    KeepMembers,
    MakeFile,
    Phase,
    RelocateBackupGpt,
    RelocateMdSuperblock,
    RereadTable,
    Resume,
    Step,
    Subject,
    VerifyVolume,
    WipeSignatures,
    WriteVolume,
)
from restore.target import Target, TargetKind
from restore.without import NOTHING, Without, members_on

# Primary tables, their backups, and the labels of a filesystem or RAID member without a table.
_TABLE_REACH: Final = MIB

_SHOWN: Final = 12  # digits of an image's id

_PHASES: Final = {
    VolumeRole.PARTITION: Phase.CONTENT,
    VolumeRole.WHOLE_DISK: Phase.CONTENT,
    VolumeRole.GAP: Phase.TABLES,
    VolumeRole.BOOT_AREA: Phase.BOOT,
}
_ROLE_WORDS: Final = {
    VolumeRole.PARTITION: "no known filesystem",
    VolumeRole.WHOLE_DISK: "disk without a table",
    VolumeRole.GAP: "between partitions",
    VolumeRole.BOOT_AREA: "table and boot code",
}


def make_plan(
    image: Image,
    matches: Sequence[Match],
    *,
    subject: Subject,
    wishes: Wishes,
    fitter: Fitter,
    surroundings: Surroundings,
    without: Without = NOTHING,
) -> Plan:
    """Return the plan that turns the matched disks into the machine of the image.

    Args:
        image: the opened image; its maps are read, and of disks that are fitted a few chunks.
        matches: a target for every disk of the machine that is not left out.
        subject: what the image is.
        wishes: what was asked for.
        fitter: of this image and these wishes.
        surroundings: what this system can do.
        without: which disks are left out, and what that means.

    Raises:
        ObjectDamaged: the layout contradicts itself.
        TargetError: a disk can't be fitted, or the backup GPT can't be moved on this target.
        TargetTooSmall: the data does not fit.
        UsageError: what shall grow is not in the image, or a network card that is named not there.
    """
    saved = image.machine
    for match in matches:
        _check_layout(match.saved)
    fitted = _fit(image, matches, wishes, fitter)
    disks = [fits.disk for fits in fitted]
    machine = with_places(saved, disks)
    strange = _foreign(saved, surroundings, subject)
    targets = {
        match.saved.id: replace(
            _target(match, saved.layers, strange.get(match.saved.id, ())),
            logical_sector=fits.disk.identity.logical_sector,
            places=(*fits.places, *logical_places(fits)),
        )
        for match, fits in zip(matches, fitted, strict=True)
    }
    otherwise = [
        FittedDisk(image, match.saved, fits, targets[match.saved.id], wishes.verify_written)
        for match, fits in zip(matches, fitted, strict=True)
        if fits.disk != match.saved
    ]
    pieces = {each.saved.id: each.pieces for each in otherwise}
    writes: list[WriteVolume] = []
    steps: list[Step] = []
    for disk in disks:
        target = targets[disk.id]
        compares = wishes.delta and target.kind is not TargetKind.NEW_FILE
        in_pieces = pieces.get(disk.id, _in_one)
        mine = [
            write
            for volume in disk.volumes
            for write in _write(image, target, volume, in_pieces(volume.id), compares)
        ]
        steps.extend(_compare(disk, target, mine) if compares else _clean(target, surroundings))
        writes.extend(mine)
    decision = resumption.decide(
        image, subject, writes, tuple(targets.values()), surroundings.journals, _way(wishes)
    )
    if isinstance(decision.step, Resume):
        steps = [decision.step]  # what was erased or emptied before stays as it is
    elif decision.step is not None:
        steps.append(decision.step)
    for phase in Phase:
        group = [write for write in writes if write.phase is phase]
        steps.extend(group)
        if wishes.verify_written:
            steps.extend(
                VerifyVolume(
                    write.target,
                    write.volume,
                    write.phase,
                    write.offset,
                    write.length,
                    write.written,
                    write.source,
                )
                for write in group
            )
        if phase is Phase.CONTENT:
            steps.extend(step for each in otherwise for step in each.after_content())
    new_tables = {each.saved.id: each.table_step() for each in otherwise}
    for disk in disks:
        new_table = new_tables.get(disk.id)
        if new_table is not None:
            steps.append(new_table)
        steps.extend(
            _finish_table(
                disk, targets[disk.id], machine.layers, without, is_new=new_table is not None
            )
        )
    steps.extend(step for each in otherwise for step in each.after_table())
    boot_steps, notes, cards = plan_boot(machine, targets, wishes, surroundings)
    return Plan(
        machine=machine.name,
        machine_id=machine.id,
        image=subject.image[:_SHOWN],
        taken=subject.taken,
        targets=tuple(targets.values()),
        steps=(*steps, *boot_steps),
        notes=(
            *_without_notes(without),
            *decision.notes,
            *_delta_notes(targets.values(), wishes),
            *(note for each in otherwise for note in each.notes()),
            *surroundings.twins,
            *(f"{sentence}: it is not in this image." for sentence in machine.layers.lacking()),
            *notes,
        ),
        left_out=tuple(disk.id for disk in without.disks),
        cards=cards,
    )


def _fit(image: Image, matches: Sequence[Match], wishes: Wishes, fitter: Fitter) -> list[Fitted]:
    """Return how each saved disk comes on its target."""
    check_wishes(image.machine, wishes)
    fitted = [fitter.fitted(match.saved, match.target) for match in matches]
    if wishes.delta and any(
        fits.disk != match.saved for match, fits in zip(matches, fitted, strict=True)
    ):
        raise TargetError(
            "--delta compares with the saved disk, byte by byte, and this one is fitted",
            hint="Restore without --delta; nothing was written.",
        )
    return fitted


def _way(wishes: Wishes) -> Way:
    if wishes.delta:
        return Way.COMPARE
    return Way.ANEW if wishes.anew else Way.RESUME


def _foreign(
    machine: Machine, surroundings: Surroundings, subject: Subject
) -> dict[str, tuple[str, ...]]:
    """Return what makes targets foreign, by saved disk."""
    own = frozenset(marks.marks_of(machine.disks, machine.layers))
    return {
        disk: foreign.foreign_content(
            carried, own, surroundings.journals.get(disk), subject.repository
        )
        for disk, carried in surroundings.carried.items()
    }


def _target(match: Match, layers: Layers, strange: tuple[str, ...]) -> Target:
    disk, saved = match.target, match.saved
    if match.is_new:
        kind = TargetKind.NEW_FILE
    else:
        kind = TargetKind.DEVICE if disk.is_device else TargetKind.FILE
    return Target(
        disk=saved.id,
        path=disk.path,
        kind=kind,
        size=disk.identity.size,
        saved_size=saved.identity.size,
        logical_sector=saved.identity.logical_sector,
        model=disk.identity.model,
        serial=disk.identity.serial,
        saved=f"{saved.id}, saved from {describe(Path(saved.origin), saved.identity)}",
        basis=match.basis,
        wwn=disk.identity.wwn,
        layers=tuple(
            f"{place}: {', '.join(words)}"
            for place in (saved.id, *(volume.id for volume in saved.volumes))
            if (words := layers.describe(place))
        ),
        foreign=strange,
    )


def _check_layout(disk: Disk) -> None:
    """Refuse volumes outside of the disk or over each other: they would write where they may not."""
    for volume in disk.volumes:
        if volume.length <= 0 or volume.offset < 0 or volume.end > disk.identity.size:
            raise ObjectDamaged(
                f"the layout of this image is wrong: {volume.id} is outside of its disk"
            )
    for before, after in pairwise(disk.volumes):
        if after.offset < before.end:
            raise ObjectDamaged(
                f"the layout of this image is wrong: {after.id} overlaps {before.id}"
            )


def _in_one(_volume: str) -> None:
    return None


def _write(
    image: Image,
    target: Target,
    volume: Volume,
    pieces: Iterable[Piece] | None,
    only_differences: bool,
) -> Iterator[WriteVolume]:
    """Yield the steps that write a volume as it comes on the target, in one piece if it has none."""
    saved = next(each for _, each in image.machine.volumes() if each.id == volume.id)
    if pieces is None:
        content = volume.filesystem.title if volume.filesystem else _ROLE_WORDS[volume.role]
        pieces = (Piece(content, 0, volume.offset, volume.length),)
    for piece in pieces:
        data, zeros, cleared, skipped = 0, 0, 0, 0
        for runs in each_part(image, saved, piece.length, piece.source):
            data += runs.data
            zeros += int(runs.zeros[:, 1].sum())
            cleared += int(runs.cleared[:, 1].sum())
            skipped += runs.skipped
        yield WriteVolume(
            target=target,
            volume=volume.id,
            phase=_PHASES[volume.role],
            role=volume.role,
            content=piece.content,
            offset=piece.offset,
            length=piece.length,
            data=data,
            zeros=zeros,
            cleared=cleared,
            only_differences=only_differences,
            is_shortened=piece.source + piece.length < saved.length,
            source=piece.source,
            skipped=skipped,
        )


def _compare(disk: Disk, target: Target, writes: Sequence[WriteVolume]) -> Iterator[Step]:
    """Find out what differs before anything is written, and take the table away if anything does.

    What could be taken for the new machine's, where no volume has a say, is cleared as `_clean` would.
    """
    head = min(_TABLE_REACH, target.size)
    tail = min(_TABLE_REACH, target.size - head)
    for write in writes:
        yield CompareVolume(
            target,
            write.volume,
            write.offset,
            write.length,
            write.written,
            (head, target.size - tail),
        )
    outside = tuple(_outside(disk, target))
    if outside:
        yield ClearOutside(target, outside)
    yield InvalidateEnds(target, head, tail)


def _outside(disk: Disk, target: Target) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what is near the ends of a target and in no volume."""
    edges = ((0, min(EDGE, target.size)), (max(EDGE, target.size - EDGE), target.size))
    for low, high in edges:
        start = low
        for volume in disk.volumes:
            if start < min(volume.offset, high):
                yield start, min(volume.offset, high) - start
            start = max(start, volume.end)
        if start < high:
            yield start, high - start


def _delta_notes(targets: Iterable[Target], wishes: Wishes) -> Iterator[str]:
    if not wishes.delta:
        return
    yield (
        "Only what differs is written (--delta). What free space of these disks holds now, deleted "
        "files among it, stays there; without --delta it is discarded where the disk can do that."
    )
    new = [str(target.path) for target in targets if target.kind is TargetKind.NEW_FILE]
    if new:
        yield f"Written whole, since there is nothing to compare yet: {', '.join(new)}."


def _clean(target: Target, surroundings: Surroundings) -> Iterator[Step]:
    """Make sure that nothing of the old content can be taken for the new machine's.

    A file becomes one hole. On a device both ends are zeroed (tables, RAID and LVM labels of the
    whole disk), free space near the ends of each volume is zeroed with the volume, and what lies
    between is unreachable through any table; it is discarded where the device can do that.
    """
    if target.kind is TargetKind.NEW_FILE:
        yield MakeFile(target)
        return
    if target.kind is TargetKind.FILE:
        yield EmptyFile(target)
        return
    head = min(EDGE, target.size)
    tail = min(EDGE, target.size - head)
    yield WipeSignatures(target, head, tail)
    middle = target.size - head - tail
    if middle and target.path in surroundings.discards:
        yield DiscardDisk(target, head, middle)


def _without_notes(without: Without) -> Iterator[str]:
    for disk in without.disks:
        origin = describe(Path(disk.origin), disk.identity)
        yield f"Left out: {disk.id}, saved from {origin}. It is not restored."
    yield from without.changes


def _finish_table(
    disk: Disk, target: Target, layers: Layers, without: Without, *, is_new: bool
) -> Iterator[Step]:
    # A table within a mirror of md ends with the array, which does not grow with the disk.
    is_own = layers.array_of(disk.id) is None and not is_new
    if is_own and disk.table is not None and disk.table.kind is TableKind.GPT:
        larger = target.size > target.saved_size
        if larger and target.kind is not TargetKind.DEVICE and target.logical_sector != 512:
            raise TargetError(
                f"{target.path} is larger than {disk.id}, which has sectors of "
                f"{target.logical_sector} bytes: in a file its backup GPT can't be moved to the end",
                hint="Name a file that does not exist yet, or one of exactly "
                f"{target.saved_size} bytes; nothing was written.",
            )
        if larger:
            yield RelocateBackupGpt(target)
    yield from _finish_member(disk, target, layers)
    yield from _keep_members(disk, target, without)
    if target.kind is TargetKind.DEVICE:
        yield RereadTable(target)
    if disk.table is not None:
        yield CheckTable(target, disk.table)


def _keep_members(disk: Disk, target: Target, without: Without) -> Iterator[Step]:
    """Let arrays that lose members start with those that are left, as if the others had failed."""
    for reduced, member, offset, length in members_on(disk, target.size, without):
        array = reduced.array
        yield KeepMembers(
            target=target,
            place=member.place,
            array=array.title,
            uuid=array.uuid,
            version=array.version,
            number=member.number,
            offset=offset,
            length=length,
            kept=tuple(each.number for each in reduced.members),
            active=reduced.active,
            disks=array.disks,
            events=reduced.events,
        )


def _finish_member(disk: Disk, target: Target, layers: Layers) -> Iterator[Step]:
    """Deal with what arrays look for at the end of a whole disk, if the new one ends elsewhere."""
    if target.size == target.saved_size:
        return
    whole = [volume for volume in disk.volumes if volume.role is VolumeRole.WHOLE_DISK]
    array = layers.array_at_end(disk)
    if array is not None:
        yield RelocateMdSuperblock(target, array.title, array.version)
    kinds = (volume.filesystem.type for volume in whole if volume.filesystem is not None)
    for kind in kinds:
        if kind.endswith("_raid_member") and kind != MEMBER_TYPE:
            raise TargetError(
                f"{disk.id} belongs to a RAID of its controller or firmware ({kind}), which is "
                f"looked for at the end of the disk; {target.path} is larger",
                hint=f"Take a disk of exactly {target.saved_size} bytes; nothing was written.",
            )
