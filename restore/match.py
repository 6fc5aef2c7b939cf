"""Which disk here takes which saved disk.

A saved disk is recognised by what stays with it: its WWN, then serial and model, then its size;
never by the kernel's name for it. What is told by a person with `--map` goes before everything.
This module decides on data alone and touches no disk; `restore.targets` collects the data.

The order of the rules, each for all saved disks before the next:

1. named: `--map SAVED=TARGET`
2. the same WWN
3. the same serial and model; then the same serial where one of the two models is unknown
4. the same size, of the disks that may be overwritten
5. the only one left that is large enough

Rules 2 and 3 find *the* disk: when it is mounted or may not be written, that is an error, and no
other disk is taken instead. Rules 4 and 5 find *a* disk: they pass over disks that are in use,
forbidden, removable (unless the saved one was) or of another sector size, and over the disk itself
that is left out; they stop at two equals.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from imager.blockdev import BlockDisk
from imager.errors import (
    AmbiguousTarget,
    ForbiddenTarget,
    NoTarget,
    RemetalError,
    TargetError,
    TargetInUse,
    TargetTooSmall,
    UsageError,
)
from imager.layout.disk import Disk, DiskIdentity
from imager.layout.machine import Machine
from imager.units import format_size
from restore.assignments import parse_assignments

_REMOVABLE_TRANSPORTS = frozenset({"usb", "mmc"})


class Basis(StrEnum):
    """Why a target was chosen, in words for the plan."""

    NAMED = "named with --map"
    WWN = "same WWN"
    SERIAL = "same serial and model"
    SERIAL_ONLY = "same serial, model not known"
    SIZE = "same size; its WWN and serial are not here"
    ONLY_ONE = "the only disk here that is large enough; its WWN and serial are not here"


@dataclass(frozen=True, slots=True)
class NewFile:
    """A raw file that does not exist yet and is made with the size of the saved disk."""

    path: Path


@dataclass(frozen=True, slots=True)
class Match:
    """A saved disk and the disk or file that takes it.

    Attributes:
        saved: the disk of the image.
        target: what is there now; for a file that is to be made, what it will be.
        basis: why this one.
        is_new: the target is a file that the restore makes.
    """

    saved: Disk
    target: BlockDisk
    basis: Basis
    is_new: bool = False


def too_small(saved: Disk, disk: BlockDisk) -> TargetTooSmall | None:
    """Return why a disk has no room for a saved disk as it was; None if it has."""
    missing = saved.identity.size - disk.identity.size
    if missing <= 0:
        return None
    name = describe(disk.path, disk.identity)
    return TargetTooSmall(f"{name} is {missing} bytes too small for {_describe_saved(saved)}")


def unlike(saved: Disk, disk: BlockDisk) -> TargetError | None:
    """Return why a disk can't take a saved disk as it was; None if it can."""
    if sector_on(saved, disk) == saved.identity.logical_sector:
        return too_small(saved, disk)
    return TargetError(
        f"{describe(disk.path, disk.identity)} has sectors of {disk.identity.logical_sector} bytes, "
        f"{saved.id} was saved from a disk with {saved.identity.logical_sector}",
        hint="Its partition table would mean other places there. Choose a disk with the "
        "same logical sector size; some drives can be switched with `nvme format`.",
    )


def sector_on(saved: Disk, disk: BlockDisk) -> int:
    """Return the bytes of a logical sector that a saved disk has on a target; a file takes any."""
    return (disk if disk.is_device else saved).identity.logical_sector


Room = Callable[[Disk, BlockDisk], RemetalError | None]
"""Takes a saved disk and a target; returns why it can't take that, or None."""


Advise = Callable[[Collection[str]], str]
"""Takes ids of saved disks that can't have a target; returns what a person may do about it."""


def no_advice(_: Collection[str]) -> str:
    """Return nothing."""
    return ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What `match` decides on.

    Attributes:
        disks: every disk of this machine.
        named: what the values of `--map` are, by the saved disk's id or serial.
        forbidden: devices and files that may not be written, each with the reason, such as
            "holds the repository".
        room: says whether a disk can take a saved one; by default as it was.
        advise: asked when there is no target for a disk.
    """

    disks: tuple[BlockDisk, ...]
    named: Mapping[str, BlockDisk | NewFile]
    forbidden: Mapping[Path, str]
    room: Room = unlike
    advise: Advise = no_advice


def match(
    machine: Machine,
    survey: Survey,
    left_out: Collection[str] = (),
) -> tuple[Match, ...]:
    """Return a target for every saved disk of the machine that is not left out, in its order.

    Args:
        machine: of the image.
        survey: what is here.
        left_out: ids of saved disks that get no target.

    Raises:
        UsageError: a `--map` names a disk that the image does not have, or one twice.
        AmbiguousTarget: two or more disks could be meant; all are named.
        NoTarget: no disk is left, or each is unfit for a different reason.
        TargetTooSmall, TargetInUse, ForbiddenTarget: the disk that is meant can't be used.
        TargetError: it is read-only, has another sector size, or is meant twice.
    """
    wanted = replace(
        machine, disks=tuple(disk for disk in machine.disks if disk.id not in left_out)
    )
    avoided = {
        disk.path: f"is {gone.id}, which is left out"
        for gone in machine.disks
        for disk in survey.disks
        if gone.id in left_out
        and any(same(gone.identity, disk.identity) for _, same in _IDENTITY_RULES)
    }
    found: dict[str, Match] = {}
    _match_named(wanted, survey, found)
    for rule in _IDENTITY_RULES:
        _match_identity(wanted, survey, found, *rule)
    _match_size(wanted, replace(survey, forbidden={**avoided, **survey.forbidden}), found)
    return tuple(found[disk.id] for disk in wanted.disks)


def resolve(machine: Machine, names: Iterable[str], mapping: Iterable[str]) -> frozenset[str]:
    """Return the ids of saved disks that are to be left out.

    Args:
        machine: of the image.
        names: their ids or serials.
        mapping: ids or serials of disks that `--map` names.

    Raises:
        UsageError: the image has no such disk, or it is to be mapped as well.
    """
    left_out = frozenset(saved_disk(machine, name).id for name in names)
    for name in mapping:
        if saved_disk(machine, name).id in left_out:
            raise UsageError(
                f"{name} is to be left out, and --map names it", hint="Give one of the two."
            )
    return left_out


def parse_map(values: Iterable[str]) -> dict[str, Path]:
    """Turn the values of `--map` into saved disk → target path.

    Raises:
        UsageError: not of the form SAVED=TARGET, or a saved disk twice.
    """
    named = parse_assignments("--map", values, form="SAVED=TARGET", example="disk0=/dev/sdb")
    return {saved: Path(target) for saved, target in named.items()}


def describe(path: Path, identity: DiskIdentity) -> str:
    """Name a disk so that a person standing before it can tell it from the others."""
    parts = [identity.model or "", f"serial {identity.serial}" if identity.serial else ""]
    parts.append(f"{format_size(identity.size)} ({identity.size} bytes)")
    return f"{path}: " + ", ".join(part for part in parts if part)


def _same_wwn(one: DiskIdentity, other: DiskIdentity) -> bool:
    return one.wwn is not None and one.wwn == other.wwn


def _same_serial_and_model(one: DiskIdentity, other: DiskIdentity) -> bool:
    return (
        one.serial is not None
        and one.serial == other.serial
        and one.model is not None
        and one.model == other.model
    )


def _same_serial(one: DiskIdentity, other: DiskIdentity) -> bool:
    if one.serial is None or one.serial != other.serial:
        return False
    return one.model is None or other.model is None


_IDENTITY_RULES: tuple[tuple[Basis, Callable[[DiskIdentity, DiskIdentity], bool]], ...] = (
    (Basis.WWN, _same_wwn),
    (Basis.SERIAL, _same_serial_and_model),
    (Basis.SERIAL_ONLY, _same_serial),
)


def _match_named(machine: Machine, survey: Survey, found: dict[str, Match]) -> None:
    for name, target in survey.named.items():
        saved = saved_disk(machine, name)
        if saved.id in found:
            raise UsageError(f"--map names {saved.id} twice, by its id and by its serial")
        if isinstance(target, NewFile):
            identity = DiskIdentity(saved.identity.size, saved.identity.logical_sector)
            disk = BlockDisk(
                path=target.path,
                identity=identity,
                usage=(),
                read_only=False,
                removable=False,
                is_device=False,
            )
            choice = Match(saved, disk, Basis.NAMED, is_new=True)
        else:
            choice = Match(saved, target, Basis.NAMED)
        _take(choice, survey, found)


def saved_disk(machine: Machine, name: str) -> Disk:
    """Return the saved disk with an id or else a serial.

    Raises:
        UsageError: there is none, or more than one.
    """
    by_id = [disk for disk in machine.disks if disk.id == name]
    disks = by_id or [disk for disk in machine.disks if disk.identity.serial == name]
    if len(disks) == 1:
        return disks[0]
    known = ", ".join(
        disk.id + (f" (serial {disk.identity.serial})" if disk.identity.serial else "")
        for disk in machine.disks
    )
    problem = "more than one disk with the serial" if disks else "no disk"
    raise UsageError(f"this image has {problem} {name}", hint=f"It has {known}.")


def _match_identity(
    machine: Machine,
    survey: Survey,
    found: dict[str, Match],
    basis: Basis,
    same: Callable[[DiskIdentity, DiskIdentity], bool],
) -> None:
    for saved in machine.disks:
        if saved.id in found:
            continue
        taken = _taken(found)
        fitting = [
            disk
            for disk in survey.disks
            if disk.path not in taken and same(saved.identity, disk.identity)
        ]
        if len(fitting) > 1:
            raise _ambiguous(saved, fitting, f"have the {basis.split(',')[0]} as")
        if fitting:
            _take(Match(saved, fitting[0], basis), survey, found)


def _match_size(machine: Machine, survey: Survey, found: dict[str, Match]) -> None:
    """Match what has no known identity here; only where there is exactly one way to do it."""
    for basis, rule in ((Basis.SIZE, _same_size), (Basis.ONLY_ONE, _any_size)):
        rest = [disk for disk in machine.disks if disk.id not in found]
        taken = _taken(found)
        free = [disk for disk in survey.disks if disk.path not in taken]
        choices = {
            saved.id: [
                disk for disk in free if _unfit(saved, disk, survey) is None and rule(saved, disk)
            ]
            for saved in rest
        }
        for saved in rest:
            fitting = choices[saved.id]
            if len(fitting) > 1:
                raise _ambiguous(saved, fitting, "are equally fit for")
            if not fitting:
                continue
            rivals = [other for other in rest if fitting[0] in choices[other.id]]
            if len(rivals) > 1:
                raise _rivals(rivals, fitting[0], survey)
            _take(Match(saved, fitting[0], basis), survey, found)
    missing = [disk for disk in machine.disks if disk.id not in found]
    if missing:
        error = _no_target(missing[0], survey, _taken(found))
        raise _with_advice(error, [disk.id for disk in missing], survey)


def _same_size(saved: Disk, disk: BlockDisk) -> bool:
    return saved.identity.size == disk.identity.size


def _any_size(_saved: Disk, _disk: BlockDisk) -> bool:
    return True  # one without room is unfit


def _taken(found: Mapping[str, Match]) -> frozenset[Path]:
    return frozenset(match.target.path for match in found.values())


def _rivals(rivals: Sequence[Disk], target: BlockDisk, survey: Survey) -> AmbiguousTarget:
    """Return why one disk is not taken, and which of the saved disks could be left out for it."""
    names = [rival.id for rival in rivals]
    error = AmbiguousTarget(
        f"{' and '.join(names)} could each go to {describe(target.path, target.identity)}"
    )
    for kept in names:
        others = [name for name in names if name != kept]
        if survey.advise(others):
            return _with_advice(error, others, survey)
    return error


E = TypeVar("E", bound=RemetalError)


def _with_advice(error: E, without: Sequence[str], survey: Survey) -> E:
    error.hint = f"{error.hint} {survey.advise(without)}".strip()
    return error


def _take(choice: Match, survey: Survey, found: dict[str, Match]) -> None:
    for other in found.values():
        if other.target.path == choice.target.path:
            raise TargetError(
                f"{choice.target.path} is meant for both {other.saved.id} and {choice.saved.id}",
                hint="Give each saved disk a disk of its own; nothing was written.",
            )
    problem = _forbidden(choice.target, survey) or _unusable(choice.saved, choice.target, survey)
    if isinstance(problem, TargetTooSmall):
        raise _with_advice(problem, [choice.saved.id], survey)
    if problem is not None:
        raise problem
    found[choice.saved.id] = choice


def _forbidden(disk: BlockDisk, survey: Survey) -> RemetalError | None:
    reason = survey.forbidden.get(disk.path)
    if reason is None:
        return None
    return ForbiddenTarget(f"{describe(disk.path, disk.identity)} {reason}")


def _unusable(saved: Disk, disk: BlockDisk, survey: Survey) -> RemetalError | None:
    """Return why a disk that is meant can't take a saved disk."""
    name = describe(disk.path, disk.identity)
    if disk.usage:
        return TargetInUse(f"{name} is in use: " + "; ".join(map(str, disk.usage)))
    if disk.read_only:
        return TargetError(
            f"{name} is read-only", hint="Release its write protection, or choose another disk."
        )
    return survey.room(saved, disk)


def _unfit(saved: Disk, disk: BlockDisk, survey: Survey) -> RemetalError | None:
    """Return why a disk is not taken for a saved disk unless it is named."""
    if _is_removable(disk) and saved.identity.transport not in _REMOVABLE_TRANSPORTS:
        return ForbiddenTarget(
            f"{describe(disk.path, disk.identity)} is removable, and the saved disk was not",
            hint=f"If it is really meant: --map {saved.id}={disk.path}",
        )
    return _forbidden(disk, survey) or _unusable(saved, disk, survey)


def _is_removable(disk: BlockDisk) -> bool:
    return disk.removable or disk.identity.transport in _REMOVABLE_TRANSPORTS


def _describe_saved(saved: Disk) -> str:
    identity = saved.identity
    parts = [identity.model or "", f"serial {identity.serial}" if identity.serial else ""]
    parts.append(f"{format_size(identity.size)} ({identity.size} bytes)")
    return f"{saved.id} [{', '.join(part for part in parts if part)}]"


def _ambiguous(saved: Disk, disks: Sequence[BlockDisk], what: str) -> AmbiguousTarget:
    names = "; ".join(describe(disk.path, disk.identity) for disk in disks)
    return AmbiguousTarget(f"{len(disks)} disks {what} {_describe_saved(saved)}: {names}")


def _no_target(saved: Disk, survey: Survey, taken: frozenset[Path]) -> RemetalError:
    reasons = [
        problem
        for disk in survey.disks
        if disk.path not in taken and (problem := _unfit(saved, disk, survey)) is not None
    ]
    if len(reasons) == 1:
        return reasons[0]
    text = f"no disk here can take {_describe_saved(saved)}"
    if reasons:
        text += ": " + "; ".join(reason.message for reason in reasons)
    for reason in reasons:
        if isinstance(reason, TargetError) and reason.would_fit:
            error = type(reason)(text, hint=reason.hint)
            error.would_fit = True
            return error
    return NoTarget(text)
