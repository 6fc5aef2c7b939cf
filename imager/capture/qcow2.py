"""qcow2 disk files: what they need to be read, and whether all of it is there.

Offsets are those of QEMU's docs/interop/qcow2.txt. Reading itself is left to QEMU.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imager import blockdev, process
from imager.errors import ProgramError, ProgramMissing, SourceError, SourceInUse, TruncatedSource
from imager.units import format_size

MAGIC: Final = b"QFI\xfb"
# magic, version, backing file offset and length, cluster bits, virtual size, encryption method,
# entries of the L1 table, its offset, refcount table offset and clusters, snapshots and their offset
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_INCOMPATIBLE_OFFSET: Final = 72
_CORRUPT: Final = 1 << 1
_EXTERNAL_DATA: Final = 1 << 2
_EXTENDED_L2: Final = 1 << 4
_OFFSET_MASK: Final = np.uint64(0x00FFFFFFFFFFFE00)
_COMPRESSED: Final = np.uint64(1 << 62)
_MAX_CHAIN: Final = 32
_LOCKED: Final = "lock"
_FLATTEN: Final = (
    "Make one file of it with `qemu-img convert -O qcow2 FILE FLAT`, and capture that."
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of a chain of disk files.

    Attributes:
        path: absolute, without links.
        driver: QEMU's name of its format, "qcow2" or "raw".
    """

    path: Path
    driver: str


def is_qcow2(fd: int) -> bool:
    """Whether an open file starts as a qcow2 file does."""
    return blockdev.size_of(fd) >= len(MAGIC) and blockdev.read_at(fd, 0, len(MAGIC)) == MAGIC


def read_chain(path: Path) -> tuple[Layer, ...]:
    """Return a qcow2 file and the files it is based on, top first, all of them checked.

    A backing file must say its format and lie in the folder of the file that names it (or below).
    The disk of a guest who writes a qcow2 header into its first sector could otherwise name any
    file of the host, and have it captured.

    Raises:
        SourceError: encrypted, damaged, or based on what can't be resolved.
        SourceInUse: a running program writes to it.
        TruncatedSource: a file is cut off.
        ProgramMissing: `qemu-img` is not installed.
    """
    layers: list[Layer] = []
    layer: Layer | None = Layer(path, "qcow2")
    while layer is not None:
        if len(layers) >= _MAX_CHAIN or layer in layers:
            raise SourceError(f"{path} is based on too long a chain of files", hint=_FLATTEN)
        layers.append(layer)
        if layer.driver != "qcow2":
            break
        _check_length(layer.path)
        _check_consistency(layer.path)
        layer = _backing(layer.path)
    return tuple(layers)


def _backing(path: Path) -> Layer | None:
    info = json.loads(_qemu_img("info", path))
    name = info.get("backing-filename")
    if name is None:
        return None
    driver = info.get("backing-filename-format")
    if driver not in {"raw", "qcow2"}:
        raise SourceError(
            f"{path} is based on {name}, and does not say that this is a raw or qcow2 file",
            hint=_FLATTEN,
        )
    backing = Path(path.parent, name)
    try:
        resolved = backing.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(
            f"{path} is based on {name}, which is not there",
            hint="Put the file it is based on beside it, then run this again.",
        ) from error
    if not resolved.is_file() or not resolved.is_relative_to(path.parent):
        raise SourceError(f"{path} is based on {name}, which is no file beside it", hint=_FLATTEN)
    return Layer(resolved, driver)


@dataclass(frozen=True, slots=True)
class _Header:
    cluster: int
    l1_entries: int
    l1_offset: int
    features: int


def _read_header(fd: int, path: Path) -> _Header:
    size = blockdev.size_of(fd)
    if size < _HEADER.size:
        raise TruncatedSource(f"{path} is cut off within its first {_HEADER.size} bytes")
    _, version, _, _, cluster_bits, _, encryption, l1_entries, l1_offset, *_ = _HEADER.unpack(
        blockdev.read_at(fd, 0, _HEADER.size)
    )
    if version not in {2, 3} or not 9 <= cluster_bits <= 21:
        raise SourceError(f"{path} is no qcow2 file of a known version", hint=_FLATTEN)
    features = 0
    if version == 3:
        features = int.from_bytes(blockdev.read_at(fd, _INCOMPATIBLE_OFFSET, 8), "big")
    if encryption:
        raise SourceError(
            f"{path} is encrypted",
            hint="Decrypt it with `qemu-img convert` first, or capture from inside the machine.",
        )
    if features & _EXTERNAL_DATA:
        raise SourceError(f"{path} keeps its data in another file", hint=_FLATTEN)
    if features & _CORRUPT:
        raise SourceError(
            f"{path} is marked as corrupt", hint="Repair a copy with `qemu-img check -r all`."
        )
    return _Header(1 << cluster_bits, l1_entries, l1_offset, features)


def _check_length(path: Path) -> None:
    """Refuse a file that ends before its last table or cluster: QEMU would read zeros there."""
    with blockdev.open_disk(path) as fd:
        size = blockdev.size_of(fd)
        for end in _ends(fd, _read_header(fd, path)):
            if end > size:
                raise TruncatedSource(
                    f"{path} is cut off: it holds data up to byte {end} at least, but ends at "
                    f"byte {size} ({format_size(size)})"
                )


def _ends(fd: int, header: _Header) -> Iterator[int]:
    """Yield the ends of the L1 table, of all L2 tables, and of the clusters these point to.

    The caller stops at the first one that lies beyond the end of the file.
    """
    yield header.l1_offset + 8 * header.l1_entries
    stride = 2 if header.features & _EXTENDED_L2 else 1
    l1 = _table(fd, header.l1_offset, header.l1_entries) & _OFFSET_MASK
    for offset in np.unique(l1[l1 != 0]):
        yield int(offset) + header.cluster
        entries = _table(fd, int(offset), header.cluster // 8)[::stride]
        # The end of a compressed cluster is known to 512 bytes only, and QEMU leaves the last
        # one short; cut off, it does not unpack and gives a read error, never wrong bytes.
        plain = entries[(entries & _COMPRESSED) == 0] & _OFFSET_MASK
        if plain.size and int(plain.max()):
            yield int(plain.max()) + header.cluster


def _table(fd: int, offset: int, entries: int) -> NDArray[np.uint64]:
    data = blockdev.read_at(fd, offset, 8 * entries)
    return np.frombuffer(data, dtype=">u8").astype(np.uint64)


def _check_consistency(path: Path) -> None:
    """Let QEMU follow all tables; leaked clusters (exit code 3) do no harm to a reader."""
    try:
        _qemu_img("check", path, accept=(0, 3))
    except ProgramMissing:
        raise
    except ProgramError as error:
        if _LOCKED in error.stderr:
            raise _in_use(path) from error
        raise SourceError(
            f"{path} is damaged: {error.stderr.strip() or 'its tables contradict each other'}",
            hint="`qemu-img check` shows what is wrong; repair a copy with `qemu-img check -r all`.",
        ) from error


def _qemu_img(verb: str, path: Path, *, accept: tuple[int, ...] = (0,)) -> str:
    # Format and files are all named, so that QEMU neither guesses nor opens what a file is based
    # on (which may be itself, and then without end).
    node = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(path)},
        "backing": None,
    }
    return process.run("qemu-img", verb, "--output=json", f"json:{json.dumps(node)}", accept=accept)


def _in_use(path: Path) -> SourceInUse:
    return SourceInUse(
        f"{path} is in use by another program, such as a running virtual machine",
        hint="Stop the machine first, or capture a copy of its disk that was made while it stood.",
    )
