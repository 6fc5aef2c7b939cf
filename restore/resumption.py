"""Whether a restore resumes one that was interrupted, and what a person is told about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from restore import journal
from restore.journal import Found
from restore.runs import Image
from restore.steps import BeginJournal, Phase, Resume, Subject, WriteVolume
from restore.target import Target
from restore.windows import measure


class Way(Enum):
    """How content is written, as far as a journal is concerned."""

    RESUME = auto()  # where an interrupted restore stood, if there is one
    ANEW = auto()  # from the start
    COMPARE = auto()  # all is compared: a journal would say nothing more


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of journals.

    Attributes:
        step: goes on with a journal, or begins one; None where there is none.
        notes: what a person must know.
    """

    step: Resume | BeginJournal | None
    notes: tuple[str, ...]


def decide(
    image: Image,
    subject: Subject,
    writes: Sequence[WriteVolume],
    targets: Sequence[Target],
    found: Mapping[str, Found],
    way: Way,
) -> Decision:
    """Return whether to resume.

    Args:
        image: its maps are read.
        subject: what is restored.
        writes: everything that the plan writes.
        targets: onto what, in the machine's order.
        found: the journals, by saved disk.
        way: what was asked for.
    """
    resume = _resume(image, subject, writes, targets, found)
    if resume is not None and way is Way.RESUME:
        note = (
            "What is there already is not written again. If anybody else wrote to these disks "
            "since, begin from the start: --anew, or the word anew on the rescue medium."
        )
        return Decision(resume, (note,))
    begin = None
    restored = {target.disk for target in targets}
    heads = [journal.head_of(disk) for disk in image.machine.disks if disk.id in restored]
    if way is not Way.COMPARE and all(heads):
        begin = BeginJournal(tuple(targets), subject, journal.START, journal.END)
    return Decision(begin, tuple(_left_behind(targets, found, resume, way)))


def _resume(
    image: Image,
    subject: Subject,
    writes: Sequence[WriteVolume],
    targets: Sequence[Target],
    found: Mapping[str, Found],
) -> Resume | None:
    journals = journal.fitting(subject, targets, found)
    if not journals:
        return None
    content = [write for write in writes if write.phase is Phase.CONTENT]
    done = min(each.note.done for each in journals)
    windows, there = measure(image, content, done)
    if done > windows:
        return None
    return Resume(
        targets=tuple(targets),
        subject=subject,
        restore=journals[0].note.restore,
        begun=journals[0].note.begun,
        stopped=min(each.note.noted for each in journals),
        sequences=tuple(each.sequence for each in journals),
        done=done,
        windows=windows,
        there=there,
    )


def _left_behind(
    targets: Sequence[Target], found: Mapping[str, Found], resume: Resume | None, way: Way
) -> Iterator[str]:
    """Say of each target what interrupted restore it holds, and why that one does not go on."""
    for target in targets:
        if target.disk not in found:
            continue
        note = found[target.disk].note
        if way is Way.COMPARE:
            what = "All of it is compared (--delta), whatever that one has written."
        elif resume is not None:
            what = "This begins from the start, as was asked for (--anew)."
        elif not found[target.disk].is_alone:
            what = (
                "Something else was written over its beginning since: this begins from the start."
            )
        else:
            what = (
                "This begins from the start: it is another image, or not all of its disks are "
                "here, in their places."
            )
        yield (
            f"{target.path} holds a restore of {note.machine}, image {note.image[:12]}, that began "
            f"{note.begun} and was not finished. {what}"
        )
