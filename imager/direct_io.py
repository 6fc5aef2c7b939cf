"""What reading and writing past the page cache takes: memory that begins at a page, and a way back."""

import errno
import mmap
from typing import Final

CANNOT_DIRECT: Final = {errno.EINVAL, errno.EOPNOTSUPP}
"""What filesystems and devices say that can't, or want larger units."""


def page_buffer(size: int) -> memoryview:
    """Return zeros that begin at a page, and that no other process shares.

    By default mmap shares: after a fork, parent and child would write into each other's buffer.
    """
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
