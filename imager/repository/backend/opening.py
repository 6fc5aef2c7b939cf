"""Which backend serves a location."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from imager.errors import UsageError
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.limited import Limited, Line
from imager.repository.backend.place import Place
from imager.repository.backend.protocol import Backend

MIRROR: Final = "mirror:"
# The object by which the sites of a mirror know that they hold the same repository.
_ROOT: Final = "config"
# What is put after everything that it names.
_PROOF: Final = "indexes/"


def _s3(place: Place) -> Backend:
    from imager.repository.backend.s3 import S3Backend  # noqa: PLC0415

    return S3Backend(place)


def _ssh(place: Place) -> Backend:
    from imager.repository.backend.ssh_store import SshStore  # noqa: PLC0415

    return SshStore(place)


def _sftp(place: Place) -> Backend:
    from imager.repository.backend.sftp_store import SftpStore  # noqa: PLC0415

    return SftpStore(place)


def _mirror(place: Place) -> Backend:
    from imager.repository.backend.mirror import Mirror  # noqa: PLC0415
    from imager.repository.backend.mirror_file import read_mirror_file  # noqa: PLC0415
    from imager.repository.backend.mirror_notes import Notes  # noqa: PLC0415

    path = Path(place.location.removeprefix(MIRROR)).expanduser()
    places, copies = read_mirror_file(path, place.access)
    sites = {name: open_backend(site) for name, site in places.items()}
    return Mirror(place.location, sites, copies, _ROOT, _PROOF, Notes(path))


# By scheme; each imports its own library only when it is asked for.
_OPENERS: Final[Mapping[str, Callable[[Place], Backend]]] = {
    "s3": _s3,
    "sftp": _sftp,
    "ssh": _ssh,
}


def open_backend(place: Place | str) -> Backend:
    """Return the backend for a place: a directory, or what a scheme such as `s3://` names.

    Args:
        place: a mere location is reached as the environment says.

    Raises:
        UsageError: no backend of this version serves such a location.
        LinkError: the store there can't be reached.
    """
    if isinstance(place, str):
        place = Place(place)
    # Sites of a mirror share no line, so each of them is limited for itself.
    if place.location.startswith(MIRROR):
        return _mirror(place)
    access = place.access
    if access.upload is None and access.download is None:
        return _open(place)
    return Limited(_open(place), _line(access.upload), _line(access.download))


def _line(rate: int | None) -> Line | None:
    return None if rate is None else Line(rate)


def _open(place: Place) -> Backend:
    scheme, separator, _ = place.location.partition("://")
    if not separator:
        return DirectoryBackend(Path(place.location))
    opener = _OPENERS.get(scheme)
    if opener is None:
        known = "".join(f", {name}://" for name in sorted(_OPENERS))
        raise UsageError(
            f"repositories at {scheme}:// can't be reached by this version",
            hint=f"Give a directory{known}, {MIRROR}FILE.",
        )
    return opener(place)
