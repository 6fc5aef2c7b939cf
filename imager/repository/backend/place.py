"""Where a repository is, and with what a store there is reached."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# Read where no option says otherwise; the options of the commands have the same names.
SSH_KEY: Final = "REMETAL_SSH_KEY"
KNOWN_HOSTS: Final = "REMETAL_KNOWN_HOSTS"
STORE_CREDENTIALS: Final = "REMETAL_STORE_CREDENTIALS"
AUTHORITIES: Final = "REMETAL_AUTHORITIES"


@dataclass(frozen=True, slots=True)
class HostKey:
    """What a host shows at the first contact.

    Attributes:
        host: name and port as known_hosts writes them: `backup` or `[backup]:2222`.
        algorithm: such as `ssh-ed25519`.
        fingerprint: as `ssh-keygen -l` prints it: `SHA256:...`.
    """

    host: str
    algorithm: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Access:
    """With what stores are reached. Holds paths of secrets, and never a secret.

    Attributes:
        ssh_key: the private key shown over SSH; by default what `ssh` itself would show.
        known_hosts: the host keys that are trusted; by default those of the user and the system.
        credentials: a file with the access key and secret of an S3 store; by default the
            environment and the files that the AWS tools use.
        authorities: certificates that vouch for a TLS store, in PEM; by default the system's.
        confirm: is asked whether a host that is seen for the first time is the right one; by default
            nobody can say so, and it is refused.
        upload: bytes per second that are sent to the store at most; None for no limit.
        download: likewise what comes from it.
        ssh_passphrase: returns the passphrase of a private key; by default keys under one are refused.
    """

    ssh_key: Path | None = None
    known_hosts: Path | None = None
    credentials: Path | None = None
    authorities: Path | None = None
    confirm: Callable[[HostKey], bool] | None = field(default=None, repr=False)
    ssh_passphrase: Callable[[Path], str] | None = field(default=None, repr=False)
    upload: int | None = None
    download: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Access":
        """Return what the variables say that are named above."""

        def path(name: str) -> Path | None:
            return Path(environment[name]) if environment.get(name) else None

        return cls(path(SSH_KEY), path(KNOWN_HOSTS), path(STORE_CREDENTIALS), path(AUTHORITIES))


@dataclass(frozen=True, slots=True)
class Place:
    """A location and the way to reach it.

    Attributes:
        location: a directory, or what a scheme such as `ssh://` names.
        access: with what.
    """

    location: str
    access: Access = field(default_factory=Access.from_environment)

    def __str__(self) -> str:
        return self.location
