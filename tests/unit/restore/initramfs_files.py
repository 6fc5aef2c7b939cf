"""Initramfs files as distributions make them."""

import bz2
import gzip
import io
import lzma
from collections.abc import Sequence

import zstandard

from bootmedia.cpio import CpioWriter

PACKERS = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    # without the size of the content, as a pipe through zstd writes it
    "zstd stream": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}


def archive(names: Sequence[str], size: int = 5) -> bytes:
    """An archive with these files, as the kernel takes it."""
    made = io.BytesIO()
    writer = CpioWriter(made, 0)
    writer.folder("kernel")
    for name in names:
        writer.file(name, b"x" * size)
    writer.close()
    return made.getvalue()
