"""Runs a plan, step by step, and says what each took. Decides nothing.

What holds when it stops in the middle, by an error, a stop request or a power cut: the old table
is gone and the new one is not there, unless all content was written and (if asked for) verified.
So a half-restored disk never starts and never looks finished. What is there can be gone on with
(`restore.journal`). A file that the restore made is removed again, unless it holds enough to go on
with: a part of the content that is noted, in a file that took all that was written. Where only
differences are written, all are found before the first write; if there are none, nothing is
written at all.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from imager.errors import RemetalError, TargetError, VerificationFailed
from imager.stages import Stages
from restore import journal
from restore.announcements import announcement, question
from restore.boot_steps import (
    EnsureFallbackLoader,
    LogToEsp,
    MapCards,
    MapDisks,
    RepairInitramfs,
    SetBootEntries,
)
from restore.bootrepair import disks, efi, fallback, network, repair
from restore.bootrepair.esp import write_log
from restore.comparison import (
    Differences,
    clear_outside,
    compare_volume,
    reading_stages,
    verify_volume,
)
from restore.device import OpenTarget, make_file
from restore.fit_steps import (
    CorrectBootSector,
    GrowFilesystem,
    RemakeFat,
    RemakeSwap,
    RemakeXfs,
    ShrinkFilesystem,
    WriteGroup,
    WriteTable,
)
from restore.journal import Journal
from restore.plan import Plan
from restore.recreate import fat, filesystem, xfs
from restore.recreate.boot_sector import correct_boot_sector
from restore.recreate.lvm import write_group
from restore.recreate.mdraid import keep_members, relocate_superblock
from restore.recreate.partition_table import check_table, relocate_backup_gpt, write_table
from restore.runs import Image, Runs
from restore.steps import (
    BeginJournal,
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
    VerifyVolume,
    WipeSignatures,
    WriteVolume,
)
from restore.target import Target, TargetKind
from restore.transfer import FROM_THE_START, Advance, Course, write_volumes, writing_stages
from restore.udev import settle


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
Announce = Callable[[str], None]
Measure = Callable[[str, Stages], None]
"""Takes what a pass over the content was, and what its stages took."""

_GO_ON: Final = "What is written so far stays: the same restore, started again, goes on from there."

# After these the restored filesystems are touched by other programs, which lock the disk themselves.
_BOOT_STEPS = (MapDisks, MapCards, RepairInitramfs, EnsureFallbackLoader, SetBootEntries, LogToEsp)


def _silent(_: str) -> None:
    """Say nothing."""


def execute(
    plan: Plan,
    image: Image,
    *,
    advance: Advance,
    record: Record,
    measure: Measure,
    log: Callable[[], str],
    announce: Announce = _silent,
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
        announce: told what begins that may take long and moves no bytes that are counted.

    Raises:
        WriteFailed, VerificationFailed: with target and place.
        TargetInUse, TargetError: a target changed since the plan was made.
        TargetTooSmall, TargetError: a filesystem's own program will not shrink it that far. It is
            asked before anything is written.
        ObjectDamaged, ObjectMissing: the repository can't give what the image names.
    """
    disk_steps = [step for step in plan.steps if not isinstance(step, _BOOT_STEPS)]
    boot_steps = [step for step in plan.steps if isinstance(step, _BOOT_STEPS)]
    _check_possible(disk_steps, image, record, announce)
    made: list[Target] = []
    run: _Run | None = None
    try:
        with ExitStack() as stack:
            opened: dict[Target, OpenTarget] = {}
            for target in plan.targets:
                if target.kind is TargetKind.NEW_FILE:
                    make_file(target)
                    made.append(target)
                opened[target] = stack.enter_context(OpenTarget(target))
            run = _Run(image, opened, advance, record, measure, announce)
            for _, group in groupby(disk_steps, _same_pass):
                run.group(tuple(group))
    except BaseException as error:
        goes_on = run is not None and run.can_go_on and not isinstance(error, TargetError)
        if goes_on and isinstance(error, RemetalError):
            error.hint = f"{error.hint or ''} {_GO_ON}".strip()
        for target in made:
            if not goes_on:
                with suppress(OSError):
                    target.path.unlink()
        raise
    settle()
    for step in boot_steps:
        started = time.monotonic()
        for text in announcement(step):
            announce(text)
        notes, subject = _run_boot_step(step, log)
        record(Outcome(step.name, subject, time.monotonic() - started, notes=notes))


def _check_possible(
    steps: Sequence[Step], image: Image, record: Record, announce: Announce
) -> None:
    """Find out, before anything is written, whether filesystems can become what they shall."""
    for step in steps:
        started = time.monotonic()
        for text in question(step):
            announce(text)
        match step:
            case ShrinkFilesystem():
                filesystem.check_shrinkable(step, image)
                record(Outcome("check-shrink", step.subject, time.monotonic() - started))
            case RemakeFat():
                fat.check_remakable(step, image)
                record(Outcome("check-remake", step.subject, time.monotonic() - started))
            case RemakeXfs():
                xfs.check_remakable(step, image)
                record(Outcome("check-remake", step.subject, time.monotonic() - started))
            case _:
                pass


def _same_pass(step: Step) -> tuple[Any, ...]:
    """Return a key that is equal for consecutive steps that are one pass over the disks."""
    if isinstance(step, WriteVolume | VerifyVolume):
        return (type(step), step.phase)
    if isinstance(step, CompareVolume):
        return (CompareVolume,)
    return (step,)


class _Run:
    """What the steps of one restore share.

    Args:
        image: the opened image.
        opened: all targets.
        advance: as `execute` says; so are the next two.
        record: takes outcomes.
        measure: takes what stages took.
        announce: takes what begins.
    """

    def __init__(
        self,
        image: Image,
        opened: dict[Target, OpenTarget],
        advance: Advance,
        record: Record,
        measure: Measure,
        announce: Announce,
    ) -> None:
        self._announce = announce
        self._image = image
        self._opened = opened
        self._advance = advance
        self._record = record
        self._measure = measure
        self._differences: dict[str, Differences] = {}
        # Targets that held anything else than they shall.
        self._changing: set[Target] = set()
        self._journal: Journal | None = None
        self._resumes = False

    @property
    def can_go_on(self) -> bool:
        """Whether so much is noted that another restore can take it up."""
        return self._journal is not None and self._journal.done > 0

    def group(self, group: Sequence[Step]) -> None:
        """Do steps that are one pass."""
        writes = [step for step in group if isinstance(step, WriteVolume)]
        verifications = [step for step in group if isinstance(step, VerifyVolume)]
        comparisons = [step for step in group if isinstance(step, CompareVolume)]
        if writes:
            self._write(writes)
        elif verifications:
            self._verify(verifications)
        elif comparisons:
            self._compare(comparisons)
        else:
            for step in group:
                started = time.monotonic()
                for text in announcement(step):
                    self._announce(text)
                subject, count, notes = self._disk_step(step)
                self._record(Outcome(step.name, subject, time.monotonic() - started, count, notes))

    def _compare(self, steps: Sequence[CompareVolume]) -> None:
        stages = reading_stages()
        for step in steps:
            started = time.monotonic()
            found = compare_volume(
                step, self._image, self._opened[step.target], self._advance, stages
            )
            self._differences[step.volume] = found
            if found.any:
                self._changing.add(step.target)
            seconds = time.monotonic() - started
            self._record(Outcome(step.name, step.volume, seconds, step.compared))
        self._finish_pass("compare", stages)

    def _write(self, steps: Sequence[WriteVolume]) -> None:
        course = self._course(steps[0].phase)
        stages = writing_stages(self._image, resumes=course.resumes)
        started = time.monotonic()
        written = write_volumes(
            steps, self._image, self._opened, self._advance, stages, self._wanted, course
        )
        each = (time.monotonic() - started) / max(sum(written), 1)
        for step, size in zip(steps, written, strict=True):
            self._record(Outcome(step.name, step.volume, each * size, size))
        if steps[0].phase is Phase.CONTENT:
            self._finish_pass("write", stages)

    def _course(self, phase: Phase) -> Course:
        if phase is Phase.BOOT:
            self._leave_journal()
        if self._journal is None or phase is not Phase.CONTENT:
            return FROM_THE_START
        return Course(self._journal.done, self._resumes, self._journal.note, self._leave_journal)

    def _leave_journal(self) -> None:
        """What comes next is written over it."""
        self._journal = None

    def _wanted(self, step: WriteVolume, runs: Runs) -> Runs:
        if not step.only_differences:
            return runs
        with_ends = step.target in self._changing
        return self._differences[step.volume].all_of(runs, with_ends=with_ends)

    def _verify(self, steps: Sequence[VerifyVolume]) -> None:
        stages = reading_stages()
        for step in steps:
            started = time.monotonic()
            try:
                verify_volume(step, self._image, self._opened[step.target], self._advance, stages)
            except VerificationFailed:
                if self._journal is not None:
                    self._journal.erase()
                raise
            seconds = time.monotonic() - started
            self._record(Outcome(step.name, step.volume, seconds, step.written))
        if steps[0].phase is Phase.CONTENT:
            self._finish_pass("read back", stages)

    def _finish_pass(self, name: str, stages: Stages) -> None:
        stages.end()
        self._measure(name, stages)

    def _journal_step(self, step: BeginJournal | Resume) -> tuple[str, int, tuple[str, ...]]:
        if isinstance(step, Resume):
            self._journal, self._resumes = Journal.resume(step, self._opened), True
        else:
            self._journal = Journal.begin(step, self._opened)
        return ", ".join(str(target.path) for target in step.targets), 0, ()

    def _disk_step(self, step: Step) -> tuple[str, int, tuple[str, ...]]:
        """Do one step; return what it was done to, the bytes it erased, and notes."""
        notes: tuple[str, ...] = ()
        count = 0
        match step:
            case BeginJournal() | Resume():
                return self._journal_step(step)
            case MakeFile(target):
                pass  # it was made when all targets were opened, before the first write to any
            case EmptyFile(target):
                self._opened[target].empty()
            case WipeSignatures(target) | InvalidateEnds(target) | ClearOutside(target):
                count, notes = self._erase(step)
            case DiscardDisk(target, offset, length):
                notes = self._opened[target].discard(offset, length)
            case RelocateMdSuperblock(target) | KeepMembers(target):
                _change_superblock(self._opened[target], step)
            case (
                ShrinkFilesystem()
                | RemakeSwap()
                | RemakeFat()
                | RemakeXfs()
                | CorrectBootSector()
                | GrowFilesystem()
                | WriteGroup()
            ):
                return self._fitting_step(step)
            case (
                WriteTable(target)
                | RelocateBackupGpt(target)
                | RereadTable(target)
                | CheckTable(target)
            ):
                notes = self._table_step(step)
        return str(target.path), count, notes

    def _table_step(
        self,
        step: WriteTable | RelocateBackupGpt | RereadTable | CheckTable,
    ) -> tuple[str, ...]:
        """Deal with what says how a disk is cut; return notes."""
        opened = self._opened[step.target]
        match step:
            case WriteTable():
                write_table(opened, step)
            case RelocateBackupGpt():
                relocate_backup_gpt(opened)
            case RereadTable():
                return opened.reread_table()
            case CheckTable(table=table):
                check_table(opened, table)
        return ()

    def _fitting_step(
        self,
        step: ShrinkFilesystem
        | RemakeSwap
        | RemakeFat
        | RemakeXfs
        | CorrectBootSector
        | GrowFilesystem
        | WriteGroup,
    ) -> tuple[str, int, tuple[str, ...]]:
        """Fit what was written to its place; return what `_disk_step` does."""
        match step:
            case WriteGroup():
                if step.offset == 0:
                    self._leave_journal()
                write_group(step, self._image, self._opened[step.target])
                return step.volume, step.head, ()
            case GrowFilesystem():
                return step.subject, 0, filesystem.grow(step, self._opened[step.target])
            case CorrectBootSector():
                return step.volume, 0, self._change_content(step)
            case _:
                return step.subject, 0, self._change_content(step)

    def _change_content(
        self, step: ShrinkFilesystem | RemakeSwap | RemakeFat | RemakeXfs | CorrectBootSector
    ) -> tuple[str, ...]:
        """Change what was written; from then on no note of it holds."""
        if self._journal is not None:
            self._journal.erase()
            self._leave_journal()
        opened = self._opened[step.target]
        match step:
            case ShrinkFilesystem():
                return filesystem.shrink(step, self._image, opened)
            case RemakeSwap():
                return filesystem.remake_swap(step, opened)
            case RemakeFat():
                return fat.remake(step, self._image, opened)
            case RemakeXfs():
                return xfs.remake(step, self._image, opened, self._announce)
            case CorrectBootSector():
                return correct_boot_sector(step, opened)

    def _erase(
        self, step: WipeSignatures | InvalidateEnds | ClearOutside
    ) -> tuple[int, tuple[str, ...]]:
        """Return bytes erased, and notes."""
        opened = self._opened[step.target]
        if isinstance(step, ClearOutside):
            return clear_outside(opened, step.ranges), ()
        if isinstance(step, InvalidateEnds) and step.target not in self._changing:
            return 0, ("nothing differs from the image; the table stays",)
        # Of what a power cut leaves of these zeros, notes must not be all: they speak of the rest.
        journal.erase(opened)
        opened.zero(0, step.head)
        opened.zero(step.target.size - step.tail, step.tail)
        opened.flush()
        # The kernel drops the old partitions, so that nothing probes them while they change.
        opened.reread_table()
        return step.head + step.tail, ()


def _change_superblock(opened: OpenTarget, step: RelocateMdSuperblock | KeepMembers) -> None:
    if isinstance(step, KeepMembers):
        keep_members(opened, step)
    else:
        relocate_superblock(opened, step.version)


def _run_boot_step(
    step: MapDisks | MapCards | RepairInitramfs | EnsureFallbackLoader | SetBootEntries | LogToEsp,
    log: Callable[[], str],
) -> tuple[tuple[str, ...], str]:
    match step:
        case MapDisks():
            return disks.map_disks(step), "restored system"
        case MapCards():
            return network.map_cards(step), "restored system"
        case RepairInitramfs():
            return repair.repair(step), "restored system"
        case EnsureFallbackLoader():
            return fallback.ensure(step), str(step.esp.target.path)
        case SetBootEntries():
            return efi.set_boot_entries(step), "firmware"
        case LogToEsp():
            return write_log(step.esp, log()), str(step.esp.target.path)
