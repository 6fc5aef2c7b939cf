"""Which backend serves a location."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from imager.errors import UsageError
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Backend

# By scheme; each imports its own library only when it is asked for.
_OPENERS: Final[Mapping[str, Callable[[str], Backend]]] = {}


def open_backend(location: str) -> Backend:
    """Return the backend for a location: a directory, or what a scheme such as `s3://` names.

    Raises:
        UsageError: no backend of this version serves such a location.
    """
    scheme, separator, _ = location.partition("://")
    if not separator:
        return DirectoryBackend(Path(location))
    opener = _OPENERS.get(scheme)
    if opener is None:
        known = "".join(f", {name}://" for name in sorted(_OPENERS))
        raise UsageError(
            f"repositories at {scheme}:// can't be reached by this version",
            hint=f"Give a directory{known}.",
        )
    return opener(location)
