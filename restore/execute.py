"""Runs a plan, step by step, and says what each took. Decides nothing.

What holds when it stops in the middle, by an error, a stop request or a power cut: the old table
is gone and the new one is not there, unless all content was written and (if asked for) verified.
So a half-restored disk never starts and never looks finished. A file that the restore made is
removed again.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from imager.stages import Stages
from restore.bootrepair import efi, fallback
from restore.bootrepair.esp import write_log
from restore.comparison import reading_stages, verify_volume
from restore.device import OpenTarget, make_file
from restore.plan import Plan
from restore.recreate.partition_table import check_table, relocate_backup_gpt, settle
from restore.runs import Image
from restore.steps import (
    CheckTable,
    DiscardDisk,
    EmptyFile,
    EnsureFallbackLoader,
    LogToEsp,
    MakeFile,
    Phase,
    RelocateBackupGpt,
    RereadTable,
    SetBootEntries,
    Step,
    Target,
    TargetKind,
    VerifyVolume,
    WipeSignatures,
    WriteVolume,
)
from restore.transfer import Advance, write_volumes, writing_stages


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step.

    Attributes:
        step: its kind.
        subject: the volume or else the target; "firmware" for boot entries.
        seconds: how long it took. Volumes that are written together share the time by their bytes.
        bytes: written or compared; zero for steps that move no content.
        notes: what a person must know: what was found, what could not be done.
    """

    step: str
    subject: str
    seconds: float
    bytes: int = 0
    notes: tuple[str, ...] = ()


Record = Callable[[Outcome], None]
Measure = Callable[[str, Stages], None]
"""Takes what a pass over the content was, and what its stages took."""

# After these the restored filesystems are touched by other programs, which lock the disk themselves.
_BOOT_STEPS = (EnsureFallbackLoader, SetBootEntries, LogToEsp)


def execute(
    plan: Plan,
    image: Image,
    *,
    advance: Advance,
    record: Record,
    measure: Measure,
    log: Callable[[], str],
) -> None:
    """Do what the plan says.

    Args:
        plan: made by `restore.planner` for this image.
        image: the opened image.
        advance: called with bytes written or compared; they add up to `plan.written` and
            `plan.verified`. Called from this thread only.
        record: called with the outcome of each step when it is done.
        measure: called when a pass over the content is done; those over tables and boot areas, a
            few MiB, don't count.
        log: returns the finished log, for a plan that leaves it on the restored machine as its
            last step.

    Raises:
        WriteFailed, VerificationFailed: with target and place.
        TargetInUse, TargetError: a target changed since the plan was made.
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
    """
    disk_steps = [step for step in plan.steps if not isinstance(step, _BOOT_STEPS)]
    boot_steps = [step for step in plan.steps if isinstance(step, _BOOT_STEPS)]
    made: list[Target] = []
    try:
        with ExitStack() as stack:
            opened: dict[Target, OpenTarget] = {}
            for target in plan.targets:
                if target.kind is TargetKind.NEW_FILE:
                    make_file(target)
                    made.append(target)
                opened[target] = stack.enter_context(OpenTarget(target))
            for _, group in groupby(disk_steps, _same_pass):
                _run_group(tuple(group), image, opened, advance, record, measure)
    except BaseException:
        for target in made:
            with suppress(OSError):
                target.path.unlink()
        raise
    settle()
    for step in boot_steps:
        started = time.monotonic()
        notes, subject = _run_boot_step(step, log)
        record(Outcome(step.name, subject, time.monotonic() - started, notes=notes))


def _same_pass(step: Step) -> tuple[Any, ...]:
    """Return a key that is equal for consecutive steps that are one pass over the disks."""
    if isinstance(step, WriteVolume | VerifyVolume):
        return (type(step), step.phase)
    return (step,)


def _run_group(
    group: Sequence[Step],
    image: Image,
    opened: dict[Target, OpenTarget],
    advance: Advance,
    record: Record,
    measure: Measure,
) -> None:
    writes = [step for step in group if isinstance(step, WriteVolume)]
    verifications = [step for step in group if isinstance(step, VerifyVolume)]
    if writes:
        stages = writing_stages(image)
        started = time.monotonic()
        write_volumes(writes, image, opened, advance, stages)
        each = (time.monotonic() - started) / max(sum(step.written for step in writes), 1)
        for write in writes:
            record(Outcome(write.name, write.volume, each * write.written, write.written))
        _measured("write", writes[0].phase, stages, measure)
    elif verifications:
        stages = reading_stages()
        for step in verifications:
            started = time.monotonic()
            verify_volume(step, image, opened[step.target], advance, stages)
            seconds = time.monotonic() - started
            record(Outcome(step.name, step.volume, seconds, step.written))
        _measured("read back", verifications[0].phase, stages, measure)
    else:
        _run_disk_steps(group, opened, record)


def _measured(name: str, phase: Phase, stages: Stages, measure: Measure) -> None:
    stages.end()
    if phase is Phase.CONTENT:
        measure(name, stages)


def _run_disk_steps(
    group: Sequence[Step], opened: dict[Target, OpenTarget], record: Record
) -> None:
    for step in group:
        started = time.monotonic()
        subject, count, notes = _run_disk_step(step, opened)
        record(Outcome(step.name, subject, time.monotonic() - started, count, notes))


def _run_disk_step(
    step: Step, opened: dict[Target, OpenTarget]
) -> tuple[str, int, tuple[str, ...]]:
    """Do one step; return what it was done to, the bytes it wrote, and notes."""
    match step:
        case MakeFile(target):
            pass  # it was made when all targets were opened, before the first write to any
        case EmptyFile(target):
            opened[target].empty()
        case WipeSignatures(target, head, tail):
            opened[target].zero(0, head)
            opened[target].zero(target.size - tail, tail)
            opened[target].flush()
            # The kernel drops the old partitions, so that nothing probes them while they change.
            opened[target].reread_table()
            return str(target.path), head + tail, ()
        case DiscardDisk(target, offset, length):
            return str(target.path), 0, opened[target].discard(offset, length)
        case RelocateBackupGpt(target):
            relocate_backup_gpt(opened[target])
        case RereadTable(target):
            return str(target.path), 0, opened[target].reread_table()
        case CheckTable(target, table):
            check_table(opened[target], table)
    return str(target.path), 0, ()


def _run_boot_step(
    step: EnsureFallbackLoader | SetBootEntries | LogToEsp, log: Callable[[], str]
) -> tuple[tuple[str, ...], str]:
    match step:
        case EnsureFallbackLoader():
            return fallback.ensure(step), str(step.esp.target.path)
        case SetBootEntries():
            return efi.set_boot_entries(step), "firmware"
        case LogToEsp():
            return write_log(step.esp, log()), str(step.esp.target.path)
