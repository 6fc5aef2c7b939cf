"""Which host keys are trusted: known_hosts files, read as OpenSSH reads them (sshd(8), "SSH_KNOWN_HOSTS").

Of `@cert-authority` lines nothing is believed, since certificates of hosts are not asked for.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import paramiko

from imager.errors import UntrustedHost
from imager.repository.backend.place import Access, HostKey

_SYSTEM: Final = Path("/etc/ssh/ssh_known_hosts")
_REVOKED: Final = "@revoked"
_HASHED: Final = "|1|"


@dataclass(frozen=True, slots=True)
class _Line:
    """One line that speaks of the host.

    Attributes:
        is_revoked: whether it says that the key must not be trusted.
        kind: of the key.
        key: in base64.
    """

    is_revoked: bool
    kind: str
    key: str


class HostKeys:
    """What is known of one host.

    Args:
        host: its name as known_hosts has it: `backup`, or `[backup]:2222`.
        access: which files there are, and who may be asked at the first contact.

    Raises:
        OSError: a file can't be read.
    """

    def __init__(self, host: str, access: Access) -> None:
        self._host = host
        self._confirm = access.confirm
        own = Path("~/.ssh/known_hosts").expanduser()
        self._file = access.known_hosts or own
        files = [access.known_hosts] if access.known_hosts else [own, _SYSTEM]
        lines = [line for path in files if path.is_file() for line in _lines(path, host)]
        self._known = [line for line in lines if not line.is_revoked]
        self._revoked = [line for line in lines if line.is_revoked]

    def preferred(self, types: Sequence[str]) -> tuple[str, ...]:
        """Return the types of keys to ask for: those that are known of this host first."""
        known = {line.kind for line in self._known}
        ours = [kind for kind in types if _family(kind) in known]
        return (*ours, *(kind for kind in types if kind not in ours))

    def written(self) -> tuple[str, ...]:
        """Return the trusted keys of the host as known_hosts writes them behind its name."""
        revoked = {line.key for line in self._revoked}
        return tuple(f"{line.kind} {line.key}" for line in self._known if line.key not in revoked)

    def check(self, key: paramiko.PKey) -> None:
        """Make sure that a host is the one it must be.

        Raises:
            UntrustedHost: it is not, or nobody knows.
        """
        shown = HostKey(self._host, key.get_name(), key.fingerprint)
        encoded = key.get_base64()
        if any(line.key == encoded for line in self._revoked):
            raise UntrustedHost(
                f"{shown.host} shows a host key that was revoked: {shown.algorithm} "
                f"{shown.fingerprint}",
                hint=f"Whoever answers may have stolen it. {self._file} says that it is revoked.",
            )
        if any(line.key == encoded for line in self._known):
            return
        if self._known:
            raise UntrustedHost(
                f"{shown.host} shows another host key than before: {shown.algorithm} "
                f"{shown.fingerprint}",
                hint="Somebody may be listening in. If the host was set up anew, remove the old key: "
                f"ssh-keygen -R '{shown.host}' -f {self._file}",
            )
        line = f"{shown.host} {key.get_name()} {encoded}"
        if self._confirm is None or not self._confirm(shown):
            raise UntrustedHost(
                f"nobody vouches for {shown.host}, which shows {shown.algorithm} {shown.fingerprint}",
                hint=f"If that is its key, add a line to {self._file}: {line}",
            )
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._file.open("a+b") as file:
            # Editors may have left the last line open.
            file.seek(max(0, file.seek(0, 2) - 1))
            is_open = file.read(1) not in {b"", b"\n"}
            file.write(("\n" * is_open + line + "\n").encode())


def _lines(path: Path, host: str) -> Iterator[_Line]:
    for text in path.read_text("utf-8", "replace").splitlines():
        words = text.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if len(words) >= 3 and marker in {"", _REVOKED} and _is_named(host, words[0]):
            yield _Line(marker == _REVOKED, words[1], words[2])


def _is_named(host: str, patterns: str) -> bool:
    """Whether a list of patterns holds a host: names, `*`, `?`, `!` and hashed names."""
    found = False
    for pattern in patterns.lower().split(",") if _HASHED not in patterns else [patterns]:
        if pattern.startswith(_HASHED):
            found |= _is_hash_of(host, pattern)
            continue
        parts = re.split(r"([*?])", pattern.removeprefix("!"))
        form = "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in parts)
        if re.fullmatch(form, host.lower()):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _is_hash_of(host: str, pattern: str) -> bool:
    try:
        return bool(paramiko.HostKeys.hash_host(host, pattern) == pattern)
    except (ValueError, IndexError, AssertionError):
        return False


def _family(kind: str) -> str:
    """Return the name that known_hosts gives to keys of a signature algorithm."""
    return "ssh-rsa" if kind.startswith("rsa-sha2-") else kind
