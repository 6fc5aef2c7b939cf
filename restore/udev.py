"""udev, which looks at each device that comes or changes."""

from contextlib import suppress

from imager import process
from imager.errors import ProgramMissing


def settle() -> None:
    """Wait until udev has looked at what changed; without udev there is nothing to wait for."""
    with suppress(ProgramMissing):
        process.run("udevadm", "settle", "--timeout=30", accept=(0, 1))
