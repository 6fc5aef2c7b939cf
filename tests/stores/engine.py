"""What the object stores of the tests have in common: daemons on loopback, two identities, buckets."""

import atexit
import contextlib
import json
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import boto3
from botocore.config import Config

from imager.repository.backend.place import Access, Place

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PATIENCE: Final = 120.0
# What the keys on a captured machine have to allow, and no more; README.md says so too.
ON_BUCKET: Final = (
    "s3:GetBucketObjectLockConfiguration",
    "s3:GetBucketVersioning",
    "s3:ListBucket",
    "s3:ListBucketVersions",
)
ON_OBJECTS: Final = ("s3:GetObject", "s3:GetObjectVersion", "s3:PutObject")
LOCK_DAYS: Final = 30


@dataclass(frozen=True)
class Identity:
    """Who speaks to a store.

    Attributes:
        name: as the engine knows it.
        key: access key.
        secret: what belongs to it.
    """

    name: str
    key: str = field(default_factory=lambda: secrets.token_hex(10).upper())
    secret: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)

    def write(self, path: Path) -> Path:
        """Write it as the AWS tools keep it."""
        path.touch(mode=0o600)
        path.write_text(
            f"[default]\naws_access_key_id = {self.key}\naws_secret_access_key = {self.secret}\n"
        )
        return path


def capture_policy(bucket: str, principal: str | None = None) -> str:
    """Return the policy that allows a captured machine what it needs.

    Args:
        bucket: name, or `*`.
        principal: who it is about; None for a policy that is attached to somebody.
    """
    who = {} if principal is None else {"Principal": {"AWS": [principal]}}
    statements = [
        who | {"Effect": "Allow", "Action": list(actions), "Resource": [f"arn:aws:s3:::{what}"]}
        for actions, what in ((ON_BUCKET, bucket), (ON_OBJECTS, f"{bucket}/*"))
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def wait_for(what: str, is_so: Callable[[], bool], daemon: "Daemon | None" = None) -> None:
    """Return as soon as something is so.

    Raises:
        TimeoutError: it did not come to be.
        ChildProcessError: the daemon that it waits for has ended.
    """
    end = time.monotonic() + PATIENCE
    while not is_so():
        if daemon is not None and daemon.has_ended:
            raise ChildProcessError(f"{what}: {daemon.name} ended; see {daemon.log}")
        if time.monotonic() > end:
            raise TimeoutError(f"{what} within {PATIENCE:.0f} s")
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether somebody takes connections at a port of loopback."""
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Daemon:
    """A program that runs in the foreground as a child of this process.

    Args:
        name: for its log.
        argv: what to run.
        log: where its output goes.
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, again after `kill`."""
        with self.log.open("ab") as log:
            # In a group of its own: Ctrl-C at the keyboard is for whoever started the store.
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._process is None or self._process.poll() is not None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal and wait for its end."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()


class Engine(ABC):
    """An object store that runs, as `tests.stores.store.Store` and more.

    Args:
        folder: where it keeps everything.

    Attributes:
        owner: makes buckets and does the upkeep.
        capture: what a captured machine holds.
        port: of its S3 gateway.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = Identity("owner")
        self.capture = Identity("capture")
        self.port = free_ports(1)[0]
        self._daemons: list[Daemon] = []

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def gateway(self) -> Daemon:
        """The program that speaks S3."""

    @abstractmethod
    def allow_capture(self, bucket: str) -> None:
        """Let the capture identity do what it must in a bucket, and no more."""

    @property
    @abstractmethod
    def log_path(self) -> Path:
        """The file in which the gateway writes down who asked for what."""

    @abstractmethod
    def wait(self) -> None:
        """Return when it answers, after `gateway` was killed and started again."""

    def client(self, identity: Identity) -> "S3Client":
        """Return a client of this store as anybody could make one."""
        return boto3.Session().client(
            "s3",
            aws_access_key_id=identity.key,
            aws_secret_access_key=identity.secret,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                max_pool_connections=32,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def new_bucket(
        self, *, locked: bool = True, mode: str | None = "COMPLIANCE", days: int = LOCK_DAYS
    ) -> str:
        """Make a bucket: with versions and object lock, or a plain one.

        With a mode, what is put there is locked for some days.
        """
        bucket = f"b{secrets.token_hex(8)}"
        client = self.client(self.owner)
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locked)
        if locked and mode is not None:
            rule = {"DefaultRetention": {"Mode": mode, "Days": days}}
            client.put_object_lock_configuration(
                Bucket=bucket,
                ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},  # type: ignore[typeddict-item]
            )
        self.allow_capture(bucket)
        return bucket

    def place(self, bucket: str, identity: Identity, options: str = "") -> Place:
        """Return a bucket as a place of repositories, for one of the identities."""
        credentials = self.folder / f"{identity.name}.credentials"
        if not credentials.exists():
            identity.write(credentials)
        location = f"s3://{bucket}/repo?endpoint={self.endpoint}&region=us-east-1{options}"
        return Place(location, Access(credentials=credentials))

    def start(self, name: str, *argv: str) -> Daemon:
        """Start a program that ends with this store."""
        daemon = Daemon(name, argv, self.folder / f"{name}.log")
        self._daemons.append(daemon)
        return daemon

    @property
    def pids(self) -> list[int]:
        """The processes of all that runs."""
        return [daemon.pid for daemon in self._daemons]

    def close(self) -> None:
        """End everything."""
        while self._daemons:
            self._daemons.pop().kill()


@dataclass(frozen=True)
class Buckets:
    """A store as the conformance suite sees it: each place is a bucket of its own.

    Attributes:
        engine: where they are.
        locked: whether they have versions, and locks that somebody has to order.
    """

    engine: Engine
    locked: bool

    def new_place(self) -> Place:
        """Return an empty bucket as its owner sees it."""
        return self.engine.place(
            self.engine.new_bucket(locked=self.locked, mode=None), self.engine.owner
        )


_shared: dict[type[Engine], Engine] = {}


def shared(kind: type[Engine], folder: Path) -> Engine:
    """Return the engine of a kind that all tests of this process share; it ends with the process."""
    if kind not in _shared:
        _shared[kind] = kind(folder)
        atexit.register(_shared[kind].close)
    return _shared[kind]


def buckets(
    kind: type[Engine], *, locked: bool
) -> Callable[[Path], contextlib.AbstractContextManager[Buckets]]:
    """Return what makes a store of one sort of bucket."""
    return lambda folder: contextlib.nullcontext(Buckets(shared(kind, folder), locked))
