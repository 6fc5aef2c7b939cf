"""Packs what the kernel unpacks into memory as its root.

The kernel takes several archives one behind the other, each compressed for itself: the base comes
from the cache, and a small layer with remetal and the medium's configuration goes on top of it.
"""

import os
import stat
import tarfile
import time
from pathlib import Path
from typing import Final

import zstandard

from bootmedia.cpio import CpioWriter

LEVEL: Final = 12  # above, minutes are spent for a few MiB

# The kernel's decompressor refuses windows above 8 MiB.
_WINDOW_LOG: Final = 23


def _compressor() -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=_WINDOW_LOG, threads=os.cpu_count() or 1, write_checksum=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def compress(data: bytes) -> bytes:
    """Return an archive compressed as the kernel takes it."""
    return _compressor().compress(data)


def build_time() -> int:
    """Return the time put on everything on the medium, in seconds since 1970.

    SOURCE_DATE_EPOCH fixes it, so that the same sources give the same bytes.
    """
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    return int(fixed) if fixed else int(time.time())


def pack_tar(archive: tarfile.TarFile, output: Path, drop: tuple[str, ...]) -> int:
    """Turn a root in a tar into a compressed initramfs.

    Args:
        archive: the tar, uncompressed; entries start with "./".
        output: the file to write.
        drop: files left out and folders whose content is left out, relative to the root.

    Returns:
        Bytes of all files together.
    """
    total = 0
    members = sorted(archive.getmembers(), key=lambda member: member.name)
    with output.open("wb") as file, _compressor().stream_writer(file, closefd=False) as stream:
        writer = CpioWriter(stream, build_time())
        for member in members:
            name = member.name.removeprefix("./").rstrip("/")
            if name in {"", "."} or any(name.startswith(f"{path}/") for path in drop):
                continue
            if name in drop and not member.isdir():
                continue
            if member.isreg():
                content = archive.extractfile(member)
                data = content.read() if content else b""
                total += len(data)
            elif member.islnk():
                # A hard link becomes a symbolic one: the programs look at their own name.
                data = ("/" + member.linkname.removeprefix("./")).encode()
            else:
                data = member.linkname.encode()
            writer.add(
                name,
                _mode(member),
                data,
                owner=member.uid,
                group=member.gid,
                device=(member.devmajor, member.devminor),
            )
        writer.close()
    return total


def _mode(member: tarfile.TarInfo) -> int:
    if member.isdir():
        return stat.S_IFDIR | member.mode
    if member.issym() or member.islnk():
        return stat.S_IFLNK | 0o777
    if member.ischr():
        return stat.S_IFCHR | member.mode
    if member.isblk():
        return stat.S_IFBLK | member.mode
    if member.isfifo():
        return stat.S_IFIFO | member.mode
    return stat.S_IFREG | member.mode
