"""Reads the extents of a volume and cuts them; the source is only ever read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imager import blockdev
from imager.capture.chunker import Chunker, Piece
from imager.units import MIB

SEGMENT: Final = 4 * MIB


@dataclass(frozen=True, slots=True)
class Batch:
    """Decided pieces and the buffer they lie in.

    Attributes:
        offset: where the buffer begins, in bytes relative to the volume.
        data: the buffer; it is never written again.
        pieces: in order, without gaps, from the buffer's first byte.
    """

    offset: int
    data: memoryview
    pieces: list[Piece]


def read_extent(
    descriptor: int, base: int, offset: int, length: int, cut_key: bytes
) -> Iterator[Batch]:
    """Yield one extent as batches of chunks and zero runs.

    Args:
        descriptor: of the disk, open for reading.
        base: first byte of the volume on the disk.
        offset: first byte of the extent in the volume.
        length: bytes of the extent.
        cut_key: of the group.

    Raises:
        TruncatedSource: the disk ends within the extent.
        UnreadableSource: the disk gives a read error.
    """
    chunker = Chunker(cut_key)
    rest = memoryview(b"")
    end = offset + length
    while offset < end:
        fresh = min(SEGMENT, end - offset - len(rest))
        buffer = memoryview(bytearray(len(rest) + fresh))
        buffer[: len(rest)] = rest
        blockdev.read_into(descriptor, base + offset + len(rest), buffer[len(rest) :])
        pieces, covered = chunker.cut(buffer, final=offset + len(buffer) == end)
        if pieces:
            yield Batch(offset, buffer[:covered], pieces)
        rest = buffer[covered:]
        offset += covered
