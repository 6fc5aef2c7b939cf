"""What is said of steps that may take long and move no bytes that are counted."""

from collections.abc import Iterator

from restore.boot_steps import RepairInitramfs
from restore.fit_steps import GrowFilesystem, RemakeFat, RemakeXfs, ShrinkFilesystem
from restore.steps import Step


def question(step: Step) -> Iterator[str]:
    """Yield what is said before it is found out whether a step can be done, if that is."""
    match step:
        case ShrinkFilesystem() | RemakeXfs():
            yield f"{step.subject}: can it become so small? Nothing is written yet ..."
        case RemakeFat():
            yield f"{step.subject}: have its files room? Nothing is written yet ..."
        case _:
            pass


def announcement(step: Step) -> Iterator[str]:
    """Yield what is said when a step begins; nothing of those that are short, or count bytes."""
    match step:
        case ShrinkFilesystem():
            yield f"{step.subject}: its {step.filesystem} is made smaller ..."
        case GrowFilesystem():
            yield f"{step.subject}: its {step.filesystem} is made larger ..."
        case RemakeFat():
            yield f"{step.subject}: its FAT is made anew, and its files are copied ..."
        case RemakeXfs():
            yield f"{step.subject}: its XFS is made anew, and its files are copied ..."
        case RepairInitramfs():
            yield (
                "The restored system: does it find these disks? If not, its initramfs is rebuilt ..."
            )
        case _:
            pass
