"""The file that `mirror:FILE` names: which sites there are, and how many must have an object."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from imager.errors import ConfigError
from imager.repository.backend.place import Access, Place

_EXAMPLE: Final = (
    "Write it like this:\n"
    '  copies = 1\n  [[site]]\n  name = "cellar"\n  location = "/srv/images"\n'
    '  [[site]]\n  name = "other-town"\n  location = "ssh://backup@10.0.0.5/srv/images"'
)


class _Site(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    name: str
    location: str
    ssh_key: str | None = None
    known_hosts: str | None = None
    store_credentials: str | None = None
    authorities: str | None = None


class _File(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    site: list[_Site]
    copies: int = 1


def read_mirror_file(path: Path, access: Access) -> tuple[dict[str, Place], int]:
    """Return the places of the sites by name, in the order of the file, and the number of copies.

    Args:
        path: of a TOML file; paths in it are relative to its folder.
        access: what the file does not say of a site.

    Raises:
        ConfigError: it can't be read, or makes no sense.
    """
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", hint=_EXAMPLE) from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}", hint=_EXAMPLE) from error
    names = [site.name for site in found.site]
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"{path} must name two sites or more, each once", hint=_EXAMPLE)
    if not 1 <= found.copies <= len(names):
        raise ConfigError(
            f"{path}: copies = {found.copies} makes no sense with {len(names)} sites",
            hint=f"Give a number from 1 to {len(names)}.",
        )
    folder = path.absolute().parent
    places = {site.name: _place(site, folder, access) for site in found.site}
    if len({place.location for place in places.values()}) < len(places):
        raise ConfigError(f"{path} names one location for two sites", hint=_EXAMPLE)
    return places, found.copies


def _place(site: _Site, folder: Path, access: Access) -> Place:
    def file(given: str | None, other: Path | None) -> Path | None:
        return other if given is None else folder / Path(given).expanduser()

    if site.location.startswith("mirror:"):
        raise ConfigError(f"site {site.name} is a mirror itself", hint="Name its sites instead.")
    is_folder = "://" not in site.location
    return Place(
        str(folder / Path(site.location).expanduser()) if is_folder else site.location,
        replace(
            access,
            ssh_key=file(site.ssh_key, access.ssh_key),
            known_hosts=file(site.known_hosts, access.known_hosts),
            credentials=file(site.store_credentials, access.credentials),
            authorities=file(site.authorities, access.authorities),
        ),
    )
