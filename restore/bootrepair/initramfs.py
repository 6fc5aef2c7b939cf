"""The files in an initramfs, as the kernel would unpack it.

An initramfs is one cpio archive after the other ("new ASCII"), each compressed for itself or not:
microcode and, of late, kernel modules come uncompressed before the rest.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import zstandard

_MAGICS: Final = (b"070701", b"070702")
_HEADER: Final = 110  # bytes: the magic, and 13 fields of eight hexadecimal digits
_SIZE: Final = slice(54, 62)
_NAME_SIZE: Final = slice(94, 102)
_LONGEST_NAME: Final = 64 * 1024
_LARGEST: Final = 1024 * 1024  # bytes of a file whose content is given
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 4
_TELLING: Final = 6  # bytes that tell what an archive or a compressed stream is
_PIECE: Final = 256 * 1024
# What dracut may put all files but a few into, as a filesystem of its own.
_NESTED: Final = ("squashfs-root.img", "squash-root.img", "erofs-root.img")


class UnknownContent(Exception):
    """It is no initramfs, or one that only the tools of its own system can look into."""


class _Decoder(Protocol):
    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def unused_data(self) -> bytes:
        """What came behind its end."""

    def decompress(self, data: bytes, /) -> bytes:
        """Return what a piece of a stream unpacks to."""


_DECODERS: Final[tuple[tuple[bytes, Callable[[], _Decoder]], ...]] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj()),
    (b"\xfd7zXZ\0", lzma.LZMADecompressor),
    (b"\x5d\0\0", lzma.LZMADecompressor),
    (b"BZh", bz2.BZ2Decompressor),
)


def file_names(path: Path) -> Iterator[str]:
    """Yield the name of each file in an initramfs, in its order.

    Raises:
        UnknownContent: something in it can't be read here, such as LZ4.
        OSError: the file can't be read.
    """
    return (name for name, _ in contents(path, lambda _: False))


def contents(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield the name of each file in an initramfs, in its order, with the content of some.

    Args:
        path: the initramfs.
        wanted: by its name, whether the content of a file is; of others and of very large ones it is
            empty.

    Raises:
        UnknownContent: something in it can't be read here, such as LZ4.
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        try:
            yield from _all_files(_Stream(lambda: file.read(_PIECE)), wanted)
        except (zlib.error, zstandard.ZstdError, lzma.LZMAError, EOFError, ValueError) as error:
            raise UnknownContent(f"{path.name} is damaged: {error}") from error


class _Stream:
    """Bytes that come in pieces.

    Args:
        pull: returns the next piece; nothing at the end.
    """

    def __init__(self, pull: Callable[[], bytes]) -> None:
        self._pull = pull
        self._ready = b""
        self._at = 0

    def piece(self) -> bytes:
        """Take whatever comes next; nothing at the end."""
        ready = self._ready[self._at :]
        self._ready, self._at = b"", 0
        return ready or self._pull()

    def put_back(self, data: bytes) -> None:
        """Let this come next again."""
        self._ready, self._at = data + self._ready[self._at :], 0

    def take(self, count: int) -> bytes:
        """Take exactly so many bytes.

        Raises:
            EOFError: there are not so many.
        """
        while len(self._ready) - self._at < count:
            more = self._pull()
            if not more:
                raise EOFError("it ends too early")
            self._ready, self._at = self._ready[self._at :] + more, 0
        self._at += count
        return self._ready[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Pass over so many bytes.

        Raises:
            EOFError: there are not so many.
        """
        while count:
            piece = self.piece()
            if not piece:
                raise EOFError("it ends too early")
            self.put_back(piece[count:])
            count -= min(count, len(piece))

    def head(self) -> bytes:
        """Pass over zeros, and return the bytes that tell what follows; they still come."""
        while True:
            head = self._ready[self._at :].lstrip(b"\0")
            more = self._pull() if len(head) < _TELLING else b""
            self._ready, self._at = head + more, 0
            if not more:
                return head[:_TELLING]


def _all_files(stream: _Stream, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    while head := stream.head():
        if head.startswith(_MAGICS):
            yield from _files(stream, wanted)
        else:
            yield from _all_files(_unpacked(stream, head), wanted)


def _unpacked(stream: _Stream, head: bytes) -> _Stream:
    """Return what a compressed stream holds; when all of it is taken, the outer one stands behind."""
    known = [(magic, make) for magic, make in _DECODERS if head.startswith(magic)]
    if not known:
        raise UnknownContent(f"it holds something that begins with {head.hex(' ')}")
    ((magic, make),) = known
    decoder = make()

    def pull() -> bytes:
        nonlocal decoder
        data = b""
        while not data:
            if decoder.eof:
                # Packers that run in parallel write one stream after the other.
                if not stream.head().startswith(magic):
                    return b""
                decoder = make()
            piece = stream.piece()
            if not piece:
                raise EOFError("it ends too early")
            data = decoder.decompress(piece)
            if decoder.eof:
                stream.put_back(decoder.unused_data)
        return data

    return _Stream(pull)


def _files(stream: _Stream, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of one archive, up to its end."""
    while True:
        header = stream.take(_HEADER)
        if not header.startswith(_MAGICS):
            raise ValueError("no entry of an archive begins where one must")
        size, name_size = int(header[_SIZE], 16), int(header[_NAME_SIZE], 16)
        if not 0 < name_size <= _LONGEST_NAME:
            raise ValueError(f"a name of {name_size} bytes")
        name = stream.take(name_size).rstrip(b"\0").decode(errors="replace")
        stream.skip(-(_HEADER + name_size) % _ALIGNMENT)
        if name == _TRAILER:
            return
        if Path(name).name in _NESTED:
            raise UnknownContent(f"it holds {name}")
        data = stream.take(size) if size <= _LARGEST and wanted(name) else b""
        stream.skip(size - len(data) + -size % _ALIGNMENT)
        yield name, data
