"""Choices for a rescue medium: an optional TOML file, read strictly.

    title = "Rescue of the north hospital"
    keyboard = "de"
    serial = "ttyS1,57600"             # "none" for a machine without one
    menu-seconds = 3
    kernel-parameters = ["nomodeset"]
    recovery-key = "recovery.key"      # beside this file; stays under its passphrase
    repositories = ["ssh://backup@10.0.0.5/srv/images"]
    host-keys = ["10.0.0.5 ssh-ed25519 AAAA..."]    # or the name of a file, such as "known_hosts"
    ssh-key = "rescue_ed25519"         # these two are sealed under a passphrase, which is asked for
    store-credentials = "store.credentials"
    authorities = "ca.pem"             # certificates that vouch for TLS stores of your own
    debian-sources = ["deb http://mirror.example/debian bookworm main"]

    [network]                          # left out: DHCP on every card that has a link
    interface = "eno1"                 # or the hardware address
    address = "10.0.0.9/24"            # one, or several in a list; IPv6 too
    gateway = "10.0.0.1"
    dns = "10.0.0.1"

On the medium, `/etc/remetal/medium.json` tells the restorer what it needs of this: `title`,
`version`, `built`, `medium` (the id of this very medium), `repositories`, `network`, and for
`recovery_key`, `known_hosts`, `store_keys` and `authorities` a path on the medium, or null.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from imager.errors import ConfigError, RemetalError
from imager.network_settings import NetworkSettings
from imager.repository.keyring import LockedRecoveryKey

_SERIAL: Final = re.compile(r"none|ttyS(?P<unit>\d{1,2})(,(?P<speed>\d{4,6})\w{0,3})?")
_PARAMETER: Final = re.compile(r"[A-Za-z0-9_.,:=/@%+-]{1,200}")
_PLACE: Final = re.compile(r"[^\s\x00-\x1f\x7f]+( +[^\s\x00-\x1f\x7f]+)*")
_KEYBOARD: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_SOURCE: Final = re.compile(r"deb (\[[^\]]*\] )?\S+ \S+( \S+)+")
_LONGEST_TITLE: Final = 60  # characters; a boot menu is 80 wide
_LONGEST_WAIT: Final = 3600


class MediumConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """What one rescue medium is like; every field may be left out.

    Attributes:
        title: shown in the boot menu and on the rescue shell.
        keyboard: a name that `loadkeys` knows; empty for the kernel's own (US).
        serial: console beside the screen, as the kernel's `console=` takes it, or "none".
        menu_seconds: how long the boot menu waits before it starts.
        kernel_parameters: further parameters of the kernel.
        recovery_key: a recovery key, under its passphrase, to be put on the medium.
        repositories: where images are; offered to the person at the rescued machine.
        host_keys: whom to trust over SSH: a file as known_hosts, or lines of it. A host that is
            not in it is shown to the person there, who may confirm it.
        ssh_key: a private key of OpenSSH, for ssh:// and sftp://; best one that only reads.
        store_credentials: keys of an S3 store, as the AWS tools keep them.
        authorities: certificates to trust for TLS stores, in PEM; by default the usual ones.
        network: how the rescued machine gets its address; used when a repository needs it.
        debian_sources: lines of apt's sources.list to build from; empty for Debian's own mirrors.

    Raises:
        ConfigError: a value makes no sense.
    """

    title: str = "Bring this machine back with remetal"
    keyboard: str = ""
    serial: str = "ttyS0,115200"
    menu_seconds: int = 3
    kernel_parameters: tuple[str, ...] = ()
    recovery_key: Path | None = None
    repositories: tuple[str, ...] = ()
    host_keys: str | tuple[str, ...] = ()
    ssh_key: Path | None = None
    store_credentials: Path | None = None
    authorities: Path | None = None
    network: NetworkSettings = NetworkSettings()
    debian_sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.title.isprintable() or not 0 < len(self.title) <= _LONGEST_TITLE:
            raise ConfigError(f"`title` must be one line of at most {_LONGEST_TITLE} characters")
        if not 0 <= self.menu_seconds <= _LONGEST_WAIT:
            raise ConfigError(f"`menu-seconds` must be from 0 to {_LONGEST_WAIT}")
        _each("keyboard", [self.keyboard] if self.keyboard else [], _KEYBOARD, "de-latin1")
        _each("serial", [self.serial], _SERIAL, "ttyS0,115200", 'or "none"')
        _each("kernel-parameters", self.kernel_parameters, _PARAMETER, "nomodeset")
        _each("repositories", self.repositories, _PLACE, "ssh://backup@10.0.0.5/srv/images")
        _each(
            "debian-sources", self.debian_sources, _SOURCE, "deb http://HOST/debian bookworm main"
        )

    @property
    def has_store_keys(self) -> bool:
        """Whether something is to be put on the medium that opens stores."""
        return self.ssh_key is not None or self.store_credentials is not None

    @property
    def is_private(self) -> bool:
        """Whether something is to be put on the medium that is not for everybody, if sealed."""
        return self.recovery_key is not None or self.has_store_keys

    @property
    def serial_port(self) -> tuple[int, int] | None:
        """Number and speed of the serial console, for the boot loader; None without one."""
        found = _SERIAL.fullmatch(self.serial)
        if found is None or found["unit"] is None:
            return None
        return (int(found["unit"]), int(found["speed"] or 9600))


def _each(
    field: str, values: Iterable[str], form: re.Pattern[str], example: str, other: str = ""
) -> None:
    """Refuse values that are not of the field's form."""
    for value in values:
        if not form.fullmatch(value):
            raise ConfigError(
                f"`{field}` can't be or hold {value!r}",
                hint=f'Such as "{example}" {other}'.rstrip(),
            )


def read_config(path: Path) -> MediumConfig:
    """Read a configuration file; relative paths in it are relative to its folder.

    Raises:
        ConfigError: it can't be read, holds something unknown, or a value makes no sense.
    """
    try:
        document = tomllib.loads(path.read_text())
        config = msgspec.convert(document, MediumConfig, dec_hook=_decode)
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}", hint="") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}", hint=_hint(document)) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
    folder = path.parent
    beside: dict[str, Any] = {
        name: folder / value
        for name in ("recovery_key", "ssh_key", "store_credentials", "authorities")
        if (value := getattr(config, name)) is not None
    }
    if isinstance(config.host_keys, str):
        beside["host_keys"] = str(folder / config.host_keys)
    return msgspec.structs.replace(config, **beside)


def _decode(wanted: type, value: object) -> Path:
    """Turn a text into the one type that TOML lacks and a field has."""
    if wanted is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("Expected a path")


def _hint(document: dict[str, object]) -> str:
    """Return the known name of a field that is most like the one that is not known."""
    network = document.get("network")
    for given, form in (
        (document, MediumConfig),
        (network if isinstance(network, dict) else {}, NetworkSettings),
    ):
        known = [field.encode_name for field in msgspec.structs.fields(form)]
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                return f"Did you mean `{close[0]}`?" if close else f"Known are: {', '.join(known)}."
    return ""


def recovery_key_content(config: MediumConfig) -> bytes | None:
    """Return the file of the recovery key, once it is sure that it is one under a passphrase.

    Raises:
        ConfigError: it is something else; nothing but a locked key may go onto a medium.
    """
    if config.recovery_key is None:
        return None
    try:
        LockedRecoveryKey.read(config.recovery_key)
        return config.recovery_key.read_bytes()
    except (RemetalError, OSError) as error:
        raise ConfigError(
            f"`recovery-key` is no recovery key under a passphrase: {error}",
            hint="Give the file that `remetal init` made; nothing else belongs on a medium.",
        ) from error


def default_cache() -> Path:
    """Return where slow inputs are kept: $REMETAL_CACHE, or remetal's place in the user's cache."""
    own = os.environ.get("REMETAL_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "remetal"
