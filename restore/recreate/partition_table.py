"""What is left to do for a partition table when its bytes are on the target.

They come with the boot areas and gaps, exactly as they were. What remains is the backup GPT of a
larger disk, the whole table of a disk that was fitted, and to look whether everybody now sees what
is meant to be there.
"""

from pathlib import Path

from imager import process
from imager.blockdev import open_disk
from imager.errors import RemetalError, VerificationFailed
from imager.layout.partition_table import PartitionTable, TableKind
from imager.probe.partition_table import read_table
from restore.device import OpenTarget
from restore.fit_steps import WriteTable

# Of a backup GPT: 128 entries of 128 bytes, and the header in one sector.
_ENTRIES_SIZE = 128 * 128

# Of an MBR: boot code, a disk signature, and then the four partitions.
_ENTRIES = 446


def relocate_backup_gpt(opened: OpenTarget) -> None:
    """Move the backup GPT to the end of a disk that is larger than the saved one.

    sfdisk writes the header and entries there, and corrects the last usable sector and the
    protective MBR (sgdisk -e would round the last usable sector down to its own alignment). It
    leaves the old backup behind, which is then overwritten with zeros.

    Raises:
        ProgramError: sfdisk finds no table it can work on.
        WriteFailed: the target refused.
    """
    target = opened.target
    # Not "--lock": this process holds the lock. The kernel is told in a step of its own.
    process.run(
        "sfdisk",
        "--no-reread",
        "--no-tell-kernel",
        "--relocate",
        "gpt-bak-std",
        target.path,
    )
    end_of_new = target.size - _ENTRIES_SIZE - target.logical_sector
    start = target.saved_size - _ENTRIES_SIZE - target.logical_sector
    opened.overwrite_with_zeros(start, min(target.saved_size, end_of_new) - start)
    opened.flush()


def write_table(opened: OpenTarget, step: WriteTable) -> None:
    """Write a table whose partitions have other places than the saved ones, or other sectors.

    The boot area is on the target, with the saved table. sfdisk leaves the boot code in its first
    sector alone. Whether the protective partition of a GPT is marked active, without which some
    firmware does not start, is put back.

    Raises:
        ProgramError: sfdisk does not take the table.
        WriteFailed, VerificationFailed: the target refused.
    """
    target = opened.target
    opened.flush()
    before = _first_sector(opened)
    if step.old is not None:
        opened.overwrite_with_zeros(step.old.offset, step.old.length)
        opened.flush()
    process.run(
        "sfdisk",
        "--no-reread",
        "--no-tell-kernel",
        "--wipe", "never",
        "--wipe-partitions", "never",
        target.path,
        stdin=_script(step, target.logical_sector).encode(),
    )  # fmt: skip
    if step.table.kind is TableKind.GPT:
        after = bytearray(_first_sector(opened))
        after[_ENTRIES] = before[_ENTRIES]
        opened.write(0, bytes(after))
        opened.flush()


def _first_sector(opened: OpenTarget) -> bytes:
    opened.forget()
    return opened.sector(0)


def _script(step: WriteTable, sector: int) -> str:
    """Return a table as sfdisk reads it."""
    is_gpt = step.table.kind is TableKind.GPT
    lines = [
        "label: gpt" if is_gpt else "label: dos",
        f"label-id: {step.table.id}" if is_gpt else f"label-id: 0x{step.table.id}",
        "unit: sectors",
    ]
    if step.first_usable is not None:
        lines.append(f"first-lba: {step.first_usable}")
    if step.entries is not None:
        lines.append(f"table-length: {step.entries}")
    lines.append("")
    for part in step.table.partitions:
        fields = [
            f"start={part.offset // sector}",
            f"size={part.length // sector}",
            f"type={part.type}",
        ]
        if part.uuid is not None:
            fields.append(f"uuid={part.uuid}")
        if part.name:
            fields.append(f'name="{part.name}"')
        if part.attributes:
            fields.append(f'attrs="{part.attributes}"')
        if part.bootable:
            fields.append("bootable")
        lines.append(f"{part.number} : {', '.join(fields)}")
    return "\n".join(lines) + "\n"


def check_table(opened: OpenTarget, expected: PartitionTable) -> None:
    """Read the table from the target and compare it with the saved layout.

    Raises:
        VerificationFailed: it is another one, or can't be read.
    """
    target = opened.target
    opened.forget()
    try:
        found = _read(target.path, target.size, target.logical_sector, expected)
    except RemetalError as error:
        raise VerificationFailed(
            f"the partition table of {target.path} can't be read back: {error.message}"
        ) from error
    if found != expected:
        raise VerificationFailed(
            f"the partition table of {target.path} ({target.disk}) is not what it must be: "
            + _difference(expected, found)
        )


def _read(path: Path, size: int, sector: int, expected: PartitionTable) -> PartitionTable | None:
    signature = "dos" if expected.kind is TableKind.MBR else "gpt"
    with open_disk(path) as fd:
        found = read_table(path, fd, size, sector, signature=signature)
    return None if found is None else found.table


def _difference(expected: PartitionTable, found: PartitionTable | None) -> str:
    if found is None:
        return "there is none"
    if (expected.kind, expected.id) != (found.kind, found.id):
        return f"{found.kind} {found.id} instead of {expected.kind} {expected.id}"
    numbers = sorted({part.number for part in {*expected.partitions} ^ {*found.partitions}})
    return "partitions differ: " + ", ".join(map(str, numbers))
