"""What the filesystem below a test can."""

import os
from pathlib import Path


def takes_direct(folder: Path) -> bool:
    """Whether the filesystem of a folder can write past the page cache: older tmpfs can't."""
    try:
        os.close(os.open(folder / "try", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True
