"""How strongly chunks are compressed, and which are not.

A chunk that does not shrink is stored as it is. Such chunks come in rows (a film, an encrypted
file), so after one of them a sample of the next is tried first, which costs an eighth.
"""

import threading
from typing import Final

import zstandard

from imager.repository.chunk import Codec
from imager.units import KIB

# Those below 1 are no bargain: on two processors -5 compressed 1.4 times as fast, and stored 30 % more.
LEAST_LEVEL: Final = 1
MOST_LEVEL: Final = 19
# Beyond, a level costs twice the time for a percent.
_MOST_CHOSEN: Final = 12
# A frame must save this share of the plaintext, else opening it costs more than it is worth.
_WORTH: Final = 0.97
_SAMPLES: Final = 4
_SAMPLE: Final = 4 * KIB
_LEAST_SAMPLED: Final = 64 * KIB

Plain = bytes | bytearray | memoryview


class Compressor:
    """Compresses chunks; safe from any thread.

    Args:
        level: of zstd, 1 to 19; None for one that follows what is the bound (`follow`).
    """

    def __init__(self, level: int | None = None) -> None:
        self._is_fixed = level is not None
        self._level = LEAST_LEVEL if level is None else level
        self._local = threading.local()

    @property
    def level(self) -> int:
        """Level of zstd that the next chunk gets."""
        return self._level

    def follow(self, *, store_is_behind: bool) -> None:
        """Choose the next level, unless it is fixed; call it for each pack.

        Args:
            store_is_behind: whether packs wait for the store; then there is time to make the next
                ones smaller. Else the processors are the bound, and do less.
        """
        if not self._is_fixed:
            level = self._level + (1 if store_is_behind else -1)
            self._level = min(max(level, LEAST_LEVEL), _MOST_CHOSEN)

    def compress(self, plain: Plain) -> tuple[Plain, Codec]:
        """Return the body of a blob, and the codec it took."""
        local = self._local
        if getattr(local, "level", None) != self._level:
            local.level = self._level
            local.zstd = zstandard.ZstdCompressor(level=local.level, write_content_size=True)
            local.shrinks = True
        if local.shrinks or self._sample_shrinks(plain):
            frame: bytes = local.zstd.compress(plain)
            local.shrinks = len(frame) <= len(plain) * _WORTH
            if local.shrinks:
                return frame, Codec.ZSTD
        return plain, Codec.STORED

    def _sample_shrinks(self, plain: Plain) -> bool:
        size = len(plain)
        if size < _LEAST_SAMPLED:
            return True
        view, step = memoryview(plain), size // _SAMPLES
        sample = b"".join(
            view[start : start + _SAMPLE] for start in range(0, size - step + 1, step)
        )
        frame: bytes = self._local.zstd.compress(sample)
        return len(frame) <= len(sample) * _WORTH
