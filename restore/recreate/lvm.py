"""Volume groups of LVM that are laid out anew: their metadata.

It is written without LVM's own programs: they would have to be told which of the attached disks they
may see, and the restored one has no partition yet. What they would write besides, such as a backup of
the metadata, would be of this system.
"""

from imager.direct_io import page_buffer
from imager.errors import ObjectDamaged, VerificationFailed
from imager.probe.lvm_label import with_text
from imager.probe.structure import StructureError
from restore.device import OpenTarget
from restore.fit_steps import WriteGroup
from restore.runs import Image
from restore.saved_volume import SavedVolume


def write_group(step: WriteGroup, image: Image, opened: OpenTarget) -> None:
    """Write the beginning of a physical volume, and read it back.

    Raises:
        ObjectDamaged, ObjectMissing: the repository can't give the saved one.
        WriteFailed: the target refused.
        VerificationFailed: it does not hold what was written.
    """
    saved = bytes(SavedVolume(image, step.volume).read(0, step.head))
    try:
        head = with_text(saved, step.length, step.text)
    except StructureError as error:
        raise ObjectDamaged(f"the group of {step.volume} can't be written: {error}") from error
    opened.write(step.offset, head)
    opened.flush()
    opened.forget()
    there = page_buffer(step.head)
    opened.read_into(step.offset, there)
    if there != head:
        raise VerificationFailed(
            f"{step.target.path} does not hold the metadata of VG {step.group} that was written to "
            f"byte {step.offset}"
        )
