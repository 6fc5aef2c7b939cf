"""OpenSSH's own sshd on loopback: `remetal serve` behind a forced command, and plain SFTP."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from imager.repository.backend.place import Access, Place
from tests.stores.store import Store

REMETAL = Path(sys.executable).with_name("remetal")
SSHD = Path("/usr/sbin/sshd")


class Sshd:
    """An sshd of our own, with keys of its own; the login scripts of the user are not run.

    Attributes:
        folder: where its files lie.
        port: on loopback.
        log: what it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None
        make_key(folder / "host")
        public = (folder / "host.pub").read_text().split()
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n")
        self._authorized = folder / "authorized_keys"
        self._authorized.touch(mode=0o600)
        (folder / "sshd_config").write_text(
            f"""
            Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {folder / "host"}
            AuthorizedKeysFile {self._authorized}
            PidFile {folder / "sshd.pid"}
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin yes
            StrictModes no
            LogLevel VERBOSE
            # Else bash would read ~/.bashrc, and whatever that does on this machine.
            SetEnv SHLVL=2
            Subsystem sftp internal-sftp
            """
        )

    def start(self) -> None:
        """Start it, and wait until it listens."""
        Path("/run/sshd").mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        """Kill it, and every session of it."""
        if self._process is not None:
            for pid in [*_descendants(self._process.pid), self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """Of the process that listens, while it runs."""
        assert self._process is not None
        return self._process.pid

    def new_key(self, name: str) -> Path:
        """Make a key and return its private file."""
        path = self.folder / name
        make_key(path)
        return path

    def authorize(self, line: str) -> None:
        """Let a key in."""
        with self._authorized.open("a") as file:
            file.write(line.rstrip("\n") + "\n")

    def serve(self, key: Path, repository: Path, *options: str) -> None:
        """Give a key its forced command, as the command itself writes it."""
        line = subprocess.run(
            [
                REMETAL,
                "serve",
                repository,
                *options,
                "--log",
                self.folder / "serve.log",
                "--state",
                self.folder / "state",
                "--authorize",
                f"{key}.pub",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        self.authorize(line)

    def access(self, key: Path) -> Access:
        """Return what reaches this sshd with a key."""
        return Access(ssh_key=key, known_hosts=self.known_hosts)

    def place(self, scheme: str, key: Path, repository: Path) -> Place:
        """Return a place there."""
        return Place(f"{scheme}://root@127.0.0.1:{self.port}{repository}", self.access(key))

    @property
    def served(self) -> str:
        """What `remetal serve` has written down."""
        path = self.folder / "serve.log"
        return path.read_text() if path.exists() else ""


def _descendants(pid: int) -> list[int]:
    """Return the processes below one: sessions leave the group of their sshd."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    found = [int(child) for child in children]
    return [*found, *(other for child in found for other in _descendants(child))]


def make_key(path: Path, passphrase: str = "") -> None:
    """Make a key pair, by default without a passphrase."""
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when somebody listens there.

    Raises:
        AssertionError: the process ended instead.
    """
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, "the server has ended"
        else:
            return


class _Ssh:
    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd

    def new_place(self) -> Place:
        folder = Path(mkdtemp(dir=self._sshd.folder))
        key = self._sshd.new_key(f"key-{folder.name}")
        self._sshd.serve(key, folder / "store", "--may-delete")
        return self._sshd.place("ssh", key, folder / "store")


class _Sftp:
    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd
        self._key = sshd.new_key("key")
        public = Path(f"{self._key}.pub").read_text()
        sshd.authorize(f'restrict,command="internal-sftp" {public}')

    def new_place(self) -> Place:
        return self._sshd.place("sftp", self._key, Path(mkdtemp(dir=self._sshd.folder)) / "store")


@contextmanager
def running(folder: Path) -> Iterator[Sshd]:
    """Yield an sshd that runs."""
    assert shutil.which("ssh-keygen")
    sshd = Sshd(folder)
    sshd.start()
    try:
        yield sshd
    finally:
        sshd.stop()


@contextmanager
def ssh(folder: Path) -> Iterator[Store]:
    """Yield places behind `remetal serve`; their key may delete, so that the suite can."""
    with running(folder) as sshd:
        yield _Ssh(sshd)


@contextmanager
def sftp(folder: Path) -> Iterator[Store]:
    """Yield places that are reached over plain SFTP."""
    with running(folder) as sshd:
        yield _Sftp(sshd)
