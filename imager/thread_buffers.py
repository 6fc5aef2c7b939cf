"""Buffers that each thread uses again and again: fresh memory costs more than most work on it."""

import threading

from imager.direct_io import page_buffer


class ThreadBuffers:
    """One buffer for each thread that asks; it begins at a page, as direct reads want it.

    Args:
        least: bytes that it has at least.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._local = threading.local()

    def of(self, size: int) -> memoryview:
        """Return so many bytes of this thread's buffer; the next call returns the same memory."""
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = page_buffer(max(size, self._least))
        return buffer[:size]
