"""What is said of steps that may take long and move no bytes that are counted."""

from restore.boot_steps import RepairInitramfs
from restore.fit_steps import GrowFilesystem, RemakeFat, RemakeXfs, ShrinkFilesystem
from restore.steps import Step


def question(step: Step) -> str | None:
    """Return what is said before it is found out whether a step can be done; None where it is not."""
    match step:
        case ShrinkFilesystem() | RemakeXfs():
            return f"{step.subject}: can it become so small? Nothing is written yet ..."
        case RemakeFat():
            return f"{step.volume}: have its files room? Nothing is written yet ..."
        case _:
            return None


def announcement(step: Step) -> str | None:
    """Return what is said when a step begins; None for those that are short, or count bytes."""
    match step:
        case ShrinkFilesystem():
            return f"{step.subject}: its {step.filesystem} is made smaller ..."
        case GrowFilesystem():
            return f"{step.subject}: its {step.filesystem} is made larger ..."
        case RemakeFat():
            return f"{step.volume}: its FAT is made anew, and its files are copied ..."
        case RemakeXfs():
            return f"{step.subject}: its XFS is made anew, and its files are copied ..."
        case RepairInitramfs():
            return "The restored system: does it find these disks? If not, its initramfs is rebuilt ..."
        case _:
            return None
