"""Which image of a machine was made from here last, kept on this machine between runs.

It lies where the index cache does and can be lost at any time: the next capture then cuts what it
reads as the first one did. Nothing is believed because of it.
"""

import contextlib
import hashlib
import re
from typing import Final

from imager.repository.keyring import GroupKeys
from imager.repository.scratch import cache_folder, replace_file

_IMAGE: Final = re.compile(r"[0-9a-f]{64}")


class LastImage:
    """The note about one machine in one group of a repository; several processes may use it at once.

    Args:
        keys: of the group.
        machine: id of the machine.
    """

    def __init__(self, keys: GroupKeys, machine: str) -> None:
        digest = hashlib.sha256(machine.encode()).hexdigest()
        self._name = f"last-{keys.repository.hex()}-{keys.group.hex()}-{digest[:32]}"

    def load(self) -> str | None:
        """Return the id of an image, which may be gone or another machine's by now; None if unknown."""
        try:
            image = (cache_folder() / self._name).read_text()
        except (OSError, RuntimeError, ValueError):
            return None
        return image if _IMAGE.fullmatch(image) else None

    def keep(self, image: str) -> None:
        """Note an image, if this machine has a place for that."""
        with contextlib.suppress(OSError, RuntimeError):
            replace_file(cache_folder() / self._name, image.encode())
