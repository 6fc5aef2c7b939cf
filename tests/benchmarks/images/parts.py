"""The limit of the parts: what native code needs for the same chunks when nothing else is done.

`prepare` cuts the disk into the chunks that remetal makes of it, and seals them, before any clock runs. Then
each deed runs in a process of its own, on threads that share nothing, and measures only its work: no
interpreter's start, no look-ups, no maps, no packs, nothing stored by a capture, nothing synced.

    python -m tests.benchmarks.images.parts capture FOLDER IMAGE 1 2
"""

import argparse
import json
import mmap
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from imager import blockdev
from imager.capture.chunker import MOST_UNDECIDED, PieceKind
from imager.capture.pipeline import stages_of
from imager.capture.planner import VolumePlan, plan
from imager.capture.reader import ExtentReader, Reader
from imager.capture.source import open_sources
from imager.units import MIB
from tests.benchmarks.images.measure import Command, Measured

# Read at once; what is read is hashed and compressed while it is in the cache of the processor.
_SEGMENT: Final = MIB
_CUT_AT_ONCE: Final = 8 * MIB
_KEY: Final = bytes(range(32))
_NONCE: Final = bytes(12)
_TAG: Final = 16

CHUNK: Final = np.dtype(
    [
        ("offset", "<u8"),  # on the disk
        ("length", "<u4"),
        ("is_first", "?"),  # of its content
        ("at", "<u8"),  # its sealed bytes, in the store
        ("sealed", "<u4"),
    ]
)
Chunks = NDArray[np.void]
Work = Callable[[Chunks], None]


def prepare(image: Path, folder: Path, level: int) -> None:
    """Cut a disk as remetal does, and keep the list of chunks and the store of what they seal to."""
    folder.mkdir(parents=True)
    seen: dict[bytes, tuple[int, int]] = {}
    rows, end = [], 0
    compressor, aead = zstandard.ZstdCompressor(level=level), AESGCM(_KEY)
    with open_sources([image]) as sources, (folder / "store").open("wb") as store:
        for volume in plan(sources, "parts").volumes:
            with blockdev.open_disk(volume.path) as descriptor:
                for place, data in _chunks(descriptor, volume):
                    identity = blake3(data, key=_KEY).digest()
                    is_first = identity not in seen
                    if is_first:
                        sealed = aead.encrypt(_NONCE, compressor.compress(data), None)
                        store.write(sealed)
                        seen[identity] = (end, len(sealed))
                        end += len(sealed)
                    rows.append((place, len(data), is_first, *seen[identity]))
    chunks = np.array(rows, dtype=CHUNK)
    np.savez(folder / "chunks.npz", chunks=chunks, size=image.stat().st_size)


def _chunks(descriptor: int, planned: VolumePlan) -> Iterator[tuple[int, memoryview]]:
    """Yield the chunks of a volume, each with its place on the disk; gone when the next one comes."""
    begin = planned.volume.offset
    reader = Reader(descriptor, begin, _CUT_AT_ONCE)
    buffer = memoryview(bytearray(MOST_UNDECIDED + _CUT_AT_ONCE))
    for offset, length in planned.extents.ranges.tolist():
        extent = ExtentReader(reader, _KEY, stages_of(1))
        for number, part in enumerate(reader.parts(offset, length)):
            first, data, pieces = extent.cut(number, part, buffer)
            for piece in pieces:
                if piece.kind is PieceKind.DATA:
                    yield begin + first + piece.start, data[piece.start : piece.end]


class Parts:
    """The deeds, on one disk.

    Args:
        folder: what `prepare` made.
        image: the disk to read, or the file to write.
        level: of zstd.
    """

    def __init__(self, folder: Path, image: Path, level: int) -> None:
        with np.load(folder / "chunks.npz") as made:
            self._chunks: Chunks = made["chunks"]
            self._size = int(made["size"])
        self._folder = folder
        self._image = image
        self._level = level

    def capture(self) -> tuple[Sequence[Chunks], Work]:
        """Read, hash, compress, seal."""
        descriptor = os.open(self._image, os.O_RDONLY)

        def work(chunks: Chunks) -> None:
            compressor, aead = zstandard.ZstdCompressor(level=self._level), AESGCM(_KEY)
            sealed = memoryview(bytearray(2 * MIB))
            for view, is_first in _pieces(descriptor, chunks):
                blake3(view, key=_KEY).digest()
                if is_first:
                    frame = compressor.compress(view)
                    aead.encrypt_into(_NONCE, frame, None, sealed[: len(frame) + _TAG])

        return _batches(self._chunks), work

    def read(self) -> tuple[Sequence[Chunks], Work]:
        """Read, hash."""
        descriptor = os.open(self._image, os.O_RDONLY)

        def work(chunks: Chunks) -> None:
            for view, _ in _pieces(descriptor, chunks):
                blake3(view, key=_KEY).digest()

        return _batches(self._chunks), work

    def restore(self) -> tuple[Sequence[Chunks], Work]:
        """Open, decompress, hash, write; the sealed bytes lie in memory."""
        target = os.open(self._image, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.truncate(target, self._size)
        with (self._folder / "store").open("rb") as file:
            store = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        order = np.argsort(self._chunks["at"], kind="stable")

        def work(chunks: Chunks) -> None:
            decompressor, aead = zstandard.ZstdDecompressor(), AESGCM(_KEY)
            opened = memoryview(bytearray(2 * MIB))
            plain, last = b"", -1
            for offset, _, _, at, sealed in chunks.tolist():
                if at != last:
                    room = opened[: sealed - _TAG]
                    aead.decrypt_into(_NONCE, store[at : at + sealed], None, room)
                    plain, last = decompressor.decompress(room), at
                    blake3(plain, key=_KEY).digest()
                os.pwrite(target, plain, offset)

        return np.array_split(self._chunks[order], max(1, len(self._chunks) // 64)), work


def _batches(chunks: Chunks) -> Sequence[Chunks]:
    """Return runs of chunks that lie side by side, about a segment of bytes each."""
    ends = chunks["offset"] + chunks["length"]
    is_break = chunks["offset"][1:] != ends[:-1]
    is_break |= np.diff(chunks["offset"] // _SEGMENT) > 0
    return np.split(chunks, np.flatnonzero(is_break) + 1)


_BUFFERS: Final[list[memoryview]] = []


def _pieces(descriptor: int, chunks: Chunks) -> Iterator[tuple[memoryview, bool]]:
    """Read chunks that lie side by side and yield each with whether it is the first of its content."""
    first = int(chunks[0]["offset"])
    length = int(chunks[-1]["offset"]) + int(chunks[-1]["length"]) - first
    buffer = _BUFFERS.pop() if _BUFFERS else memoryview(mmap.mmap(-1, 4 * MIB))
    got = os.preadv(descriptor, [buffer[:length]], first)
    if got != length:
        raise ValueError(f"{got} bytes instead of {length} at {first}")
    position = 0
    for size, is_first in zip(chunks["length"].tolist(), chunks["is_first"].tolist(), strict=True):
        yield buffer[position : position + size], is_first
        position += size
    _BUFFERS.append(buffer)


def command(deed: str, folder: Path, image: Path, level: int, threads: int) -> Command:
    """Return what runs a deed by itself."""
    words = (deed, str(folder), str(image), str(level), str(threads))
    return Command(((sys.executable, "-m", __name__, *words),))


def took(done: Measured) -> tuple[float, float]:
    """Return the seconds and the cpu seconds that a deed itself has measured."""
    found = json.loads(done.output)
    return found["seconds"], found["cpu"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("deed", choices=("capture", "read", "restore"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("level", type=int)
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    parts = Parts(options.folder, options.image, options.level)
    batches, work = getattr(parts, options.deed)()
    with ThreadPoolExecutor(options.threads) as pool:
        list(pool.map(bool, range(options.threads)))
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        for _ in pool.map(work, batches):
            pass
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sys.stdout.write(json.dumps({"seconds": seconds, "cpu": cpu}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
