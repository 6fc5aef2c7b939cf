"""ext2, ext3 and ext4: free blocks as e2fsprogs read them, confirmed before they are believed.

`dumpe2fs` reads the block bitmaps (and verifies their checksums, where there are any). Its word
counts only if

- the superblock knows no feature that changes the meaning of a bitmap, is clean, and no journal
  waits to be replayed;
- it describes every block group, and complains about nothing;
- in each group the free blocks add up to the count in the group's descriptor, all together to the
  count in the superblock;
- none of the filesystem's own tables lies in a block that is said to be free.
"""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from imager import blockdev, process
from imager.extents.extents import Extents, UncertainMapError, complement, is_apart

_SUPERBLOCK_OFFSET: Final = 1024
_SUPERBLOCK_SIZE: Final = 1024
_MAGIC: Final = 0xEF53

_CLEAN: Final = 1
_NEEDS_RECOVERY: Final = 0x4
_MULTI_MOUNT: Final = 0x100
_64BIT: Final = 0x80
_BIGALLOC: Final = 0x200
_ORPHANS_PRESENT: Final = 0x10000
# Features with which a bitmap means what it says. dir_prealloc, imagic_inodes, has_journal,
# ext_attr, resize_inode, dir_index, sparse_super2, fast_commit, stable_inodes, orphan_file
_COMPATIBLE: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x200 | 0x400 | 0x800 | 0x1000
# filetype, meta_bg, extents, 64bit, flex_bg, ea_inode, metadata_csum_seed, large_dir,
# inline_data, encrypt, casefold
_INCOMPATIBLE: Final = (
    0x2 | 0x10 | 0x40 | _64BIT | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
)
# sparse_super, large_file, btree_dir, huge_file, uninit_bg, dir_nlink, extra_isize, quota,
# metadata_csum, read-only, project, shared_blocks, verity
_READ_ONLY: Final = (
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x4000 | 0x8000
)

_GROUP: Final = re.compile(r"Group (\d+): \(Blocks (\d+)-(\d+)\)(.*)")
_COUNTS: Final = re.compile(r"  (\d+) free blocks, ")
_FREE: Final = "  Free blocks: "
_TABLES: Final = re.compile(
    r"(?:superblock|Group descriptors?|Reserved GDT blocks|Block bitmap|Inode bitmap|Inode table)"
    r" at (\d+)(?:-(\d+))?"
)
_WRONG_CHECKSUM: Final = "EXPECTED"


@dataclass(frozen=True, slots=True)
class _Superblock:
    blocks: int
    free: int
    first: int
    block_size: int
    blocks_per_group: int

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first) // self.blocks_per_group)


def read(fd: int, offset: int, length: int) -> Extents:
    """Return all blocks that are not free, and what lies behind the filesystem.

    Raises:
        UncertainMapError: the map can't be relied on.
        ProgramMissing: `dumpe2fs` is not installed.
    """
    superblock = _superblock(fd, offset, length)
    starts, ends = _free_blocks(fd, offset, superblock)
    size = superblock.block_size
    ranges = complement(starts * size, ends * size, length)
    return Extents(ranges, "ext block bitmap", None, size)


def _superblock(fd: int, offset: int, length: int) -> _Superblock:
    if length < _SUPERBLOCK_OFFSET + _SUPERBLOCK_SIZE:
        raise UncertainMapError("the volume is too small for an ext filesystem")
    data = blockdev.read_at(fd, offset + _SUPERBLOCK_OFFSET, _SUPERBLOCK_SIZE)
    (
        _inodes, blocks, _reserved, free, _free_inodes, first, shift, _cluster_shift,
        blocks_per_group,
    ) = struct.unpack_from("<9I", data)  # fmt: skip
    magic, state = struct.unpack_from("<HH", data, 56)
    compatible, incompatible, read_only = struct.unpack_from("<3I", data, 92)
    if magic != _MAGIC or shift > 6 or not blocks_per_group:
        raise UncertainMapError("the ext superblock makes no sense")
    _check_state(state, compatible, incompatible, read_only)
    if incompatible & _64BIT:
        blocks |= struct.unpack_from("<I", data, 336)[0] << 32
        free |= struct.unpack_from("<I", data, 344)[0] << 32
    found = _Superblock(blocks, free, first, 1024 << shift, blocks_per_group)
    if not first < blocks or first > 1 or blocks * found.block_size > length:
        raise UncertainMapError("the filesystem is larger than the volume it lies in")
    return found


def _check_state(state: int, compatible: int, incompatible: int, read_only: int) -> None:
    """Refuse a state or a feature with which a bitmap may not mean what it says."""
    if incompatible & _NEEDS_RECOVERY:
        raise UncertainMapError("the journal waits to be replayed (it was not unmounted cleanly)")
    if read_only & _ORPHANS_PRESENT:
        raise UncertainMapError(
            "deleted files wait to be cleaned up (it was not unmounted cleanly)"
        )
    if incompatible & _MULTI_MOUNT:
        raise UncertainMapError("another machine may have it mounted (multi-mount protection)")
    if state != _CLEAN:
        raise UncertainMapError("the filesystem is not marked as clean")
    if read_only & _BIGALLOC:
        raise UncertainMapError("it allocates clusters of blocks (bigalloc)")
    unknown = (
        compatible & ~_COMPATIBLE,
        incompatible & ~_INCOMPATIBLE,
        read_only & ~_READ_ONLY,
    )
    if any(unknown):
        raise UncertainMapError(
            "it has features that are not known here: " + " ".join(f"{bits:#x}" for bits in unknown)
        )


def _free_blocks(
    fd: int, offset: int, superblock: _Superblock
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first block of every free range and the block after its last one."""
    # By descriptor: a "?" in the path would be taken for the start of options.
    name = f"/proc/self/fd/{fd}?offset={offset}"
    with tempfile.TemporaryFile() as complaints:
        program = process.start(
            "dumpe2fs", name, stdout=subprocess.PIPE, stderr=complaints, pass_fds=(fd,)
        )
        with program:
            assert program.stdout is not None  # noqa: S101 - asked for above
            try:
                report = _read_report(program.stdout, superblock)
            except UncertainMapError:
                program.kill()
                raise
        complaints.seek(0)
        # One line tells its version; whatever else it says is a doubt.
        text = complaints.read().decode(errors="replace").strip().splitlines()[1:]
    if program.returncode or text:
        words = text[0] if text else f"exit code {program.returncode}"
        raise UncertainMapError(f"dumpe2fs is not content with it: {words}")
    return report.confirmed(superblock)


class _Report:
    """What dumpe2fs says about the groups."""

    def __init__(self) -> None:
        self.groups = 0
        self.free_starts: list[NDArray[np.int64]] = []
        self.free_ends: list[NDArray[np.int64]] = []
        self.table_starts: list[int] = []
        self.table_ends: list[int] = []

    def add_group(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64], stated: int | None
    ) -> None:
        """Take the free blocks of the next group; its descriptor states how many there are."""
        if int((ends - starts).sum()) != stated:
            raise UncertainMapError(f"block bitmap and descriptor of group {self.groups} disagree")
        self.free_starts.append(starts)
        self.free_ends.append(ends)
        self.groups += 1

    def add_tables(self, line: str, superblock: _Superblock) -> None:
        """Take the places of the filesystem's own tables that a line names."""
        for found in _TABLES.finditer(line):
            first, last = int(found[1]), int(found[2] or found[1])
            if not first <= last < superblock.blocks:
                raise UncertainMapError(f"group {self.groups} has a table that lies nowhere")
            self.table_starts.append(first)
            self.table_ends.append(last + 1)

    def confirmed(self, superblock: _Superblock) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the free ranges if everything adds up.

        Raises:
            UncertainMapError: it does not.
        """
        if self.groups != superblock.groups:
            raise UncertainMapError("dumpe2fs does not describe every block group")
        starts = np.concatenate(self.free_starts)
        ends = np.concatenate(self.free_ends)
        if int((ends - starts).sum()) != superblock.free:
            raise UncertainMapError("block bitmaps and superblock disagree about the free blocks")
        table_starts = np.array(self.table_starts, dtype=np.int64)
        table_ends = np.array(self.table_ends, dtype=np.int64)
        if not is_apart(table_starts, table_ends, starts, ends):
            raise UncertainMapError("the block bitmaps say that the filesystem's tables are free")
        return starts, ends


def _read_report(lines: IO[bytes], superblock: _Superblock) -> _Report:
    """Read dumpe2fs' groups as they come: the output of a large filesystem is large."""
    report = _Report()
    group: tuple[int, int] | None = None
    stated: int | None = None
    for raw in lines:
        line = raw.decode(errors="replace")
        if match := _GROUP.match(line):
            if group is not None:
                raise UncertainMapError("dumpe2fs does not list the free blocks of every group")
            group = _group_bounds(match, report.groups, superblock)
            stated = None
        elif group is None:
            continue
        elif match := _COUNTS.match(line):
            stated = int(match[1])
        elif line.startswith(_FREE):
            report.add_group(*_parse_ranges(line[len(_FREE) :], group), stated)
            group = None
        else:
            report.add_tables(line, superblock)
    if group is not None or not report.groups:
        raise UncertainMapError("dumpe2fs does not list the free blocks of every group")
    return report


def _group_bounds(match: re.Match[str], number: int, superblock: _Superblock) -> tuple[int, int]:
    first = superblock.first + number * superblock.blocks_per_group
    end = min(first + superblock.blocks_per_group, superblock.blocks)
    if (int(match[1]), int(match[2]), int(match[3]) + 1) != (number, first, end):
        raise UncertainMapError("dumpe2fs and the superblock disagree about the block groups")
    if _WRONG_CHECKSUM in match[4]:
        raise UncertainMapError(f"the descriptor of group {number} has a wrong checksum")
    return first, end


def _parse_ranges(text: str, group: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    words: Iterable[list[str]] = (word.split("-") for word in text.strip().split(", ") if word)
    try:
        pairs = [(int(word[0]), int(word[-1]) + 1) for word in words]
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError) as error:
        raise UncertainMapError("dumpe2fs writes free blocks in an unknown form") from error
    starts, ends = table[:, 0], table[:, 1]
    bounded = np.concatenate([[group[0]], table.reshape(-1), [group[1]]])
    if np.any(np.diff(bounded) < 0):
        raise UncertainMapError("a block bitmap reaches beyond its group")
    return starts, ends
