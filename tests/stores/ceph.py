"""Ceph: one monitor, one or more OSDs and the object gateway."""

import contextlib
import json
import subprocess
import uuid
from pathlib import Path
from typing import Final

from tests.stores.engine import Daemon, Engine, capture_policy, free_ports, listens, wait_for

# The disk of an OSD is a sparse file.
_DISK: Final = 20 << 30
_DAY: Final = 4  # seconds that a day of a life cycle takes
_CAPS: Final = {
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "client.gateway": {"mon": "allow rw", "osd": "allow rwx"},
    "mon.": {"mon": "allow *"},
}
_OSD_CAPS: Final = {"mon": "allow profile osd", "osd": "allow *"}


class Ceph(Engine):
    """A Ceph that runs below a folder.

    Args:
        folder: where it keeps everything.
        osds: how many; with more than one, each object lies on two of them.
    """

    def __init__(self, folder: Path, osds: int = 1) -> None:
        super().__init__(folder)
        self._id = str(uuid.uuid4())
        self._v2, self._v1 = free_ports(2)
        self._keyring, self._conf = folder / "keyring", folder / "ceph.conf"
        for each in ("mon", "rgw"):
            (folder / each).mkdir()
        self._conf.write_text(self._configuration(osds))
        self._make_keys(osds)
        self._start_monitor()
        self.osds = [self._start_osd(number) for number in range(osds)]
        wait_for("all OSDs are up", lambda: self.ups() == osds, self.osds[-1])
        self._gateway = self.start("radosgw", "radosgw", "-f", "-n", "client.gateway", *self._c())
        wait_for("radosgw answers", self._answers, self._gateway)
        for each in (self.owner, self.capture):
            self.run(
                "radosgw-admin", "-n", "client.gateway", "user", "create", f"--uid={each.name}",
                f"--display-name={each.name}", f"--access-key={each.key}", f"--secret-key={each.secret}",
            )  # fmt: skip

    @property
    def gateway(self) -> Daemon:
        """The radosgw."""
        return self._gateway

    def wait(self) -> None:
        """Return when the gateway answers."""
        wait_for("radosgw answers", self._answers, self._gateway)

    def allow_capture(self, bucket: str) -> None:
        """Let the capture identity add, read and list there."""
        policy = json.loads(capture_policy(bucket, f"arn:aws:iam:::user/{self.capture.name}"))
        # An object belongs to whoever put it; the bucket's owner has no right to it without this.
        policy["Statement"].append(
            {
                "Effect": "Allow",
                "Principal": {"AWS": [f"arn:aws:iam:::user/{self.owner.name}"]},
                "Action": ["s3:*"],
                "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
            }
        )
        self.client(self.owner).put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))

    @property
    def log_path(self) -> Path:
        """The log of the gateway's operations, one JSON document a line."""
        return self.folder / "ops.log"

    def run(self, *argv: str) -> str:
        """Run one of Ceph's programs and return what it printed."""
        done = subprocess.run(
            [*argv, *self._c()], capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            raise ChildProcessError(f"{argv}: {done.stderr}")
        return done.stdout

    def _c(self) -> list[str]:
        return ["-c", str(self._conf)]

    def _answers(self) -> bool:
        return listens(self.port)

    def ups(self) -> int:
        """Return how many OSDs the monitor takes for up."""
        with contextlib.suppress(ChildProcessError):
            return int(json.loads(self.run("ceph", "osd", "stat", "-f", "json"))["num_up_osds"])
        return 0

    def _make_keys(self, osds: int) -> None:
        caps = _CAPS | {f"osd.{number}": _OSD_CAPS for number in range(osds)}
        for number, (name, allowed) in enumerate(caps.items()):
            argv = ["ceph-authtool", str(self._keyring), "--gen-key", "-n", name]
            argv += [] if number else ["-C"]
            for service, cap in allowed.items():
                argv += ["--cap", service, cap]
            subprocess.run(argv, check=True, capture_output=True)

    def _start_monitor(self) -> None:
        at = f"[v2:127.0.0.1:{self._v2}/0,v1:127.0.0.1:{self._v1}/0]"
        map_ = f"{self.folder}/monmap"
        self.run("monmaptool", "--create", "--fsid", self._id, "--addv", "a", at, map_)
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_, "--keyring", str(self._keyring))
        monitor = self.start("mon", "ceph-mon", "-f", "-i", "a", *self._c())
        wait_for("the monitor answers", lambda: listens(self._v2), monitor)

    def _start_osd(self, number: int) -> Daemon:
        (self.folder / f"osd/{number}").mkdir(parents=True)
        name = str(uuid.uuid4())
        self.run("ceph", "osd", "new", name, str(number))
        self.run("ceph-osd", "-i", str(number), "--mkfs", "--osd-uuid", name)
        return self.start(f"osd{number}", "ceph-osd", "-f", "-i", str(number), *self._c())

    def _configuration(self, osds: int) -> str:
        folder = self.folder
        # AF_UNIX paths are short, so those sockets lie elsewhere; `$pid` keeps two programs apart.
        return f"""\
[global]
fsid = {self._id}
mon host = [v2:127.0.0.1:{self._v2}/0,v1:127.0.0.1:{self._v1}/0]
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth allow insecure global id reclaim = false
keyring = {self._keyring}
run dir = {folder}
admin socket = {"" if len(str(folder)) > 60 else f"{folder}/$name.$pid.asok"}
pid file =
log file =
log to stderr = true
mon cluster log file = {folder}/cluster.log
mon data = {folder}/mon
osd data = {folder}/osd/$id
rgw data = {folder}/rgw
osd objectstore = bluestore
bluestore block size = {_DISK}
bluestore cache autotune = false
bluestore cache size = 134217728
osd pool default size = {min(osds, 2)}
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
crush location = host=h root=default
mon allow pool size one = true
mon max pg per osd = 2000
mon osd min down reporters = 1
osd heartbeat interval = 2
osd heartbeat grace = 6
rgw frontends = beast endpoint=127.0.0.1:{self.port} tcp_nodelay=1
rgw thread pool size = 64
rgw enable ops log = true
rgw ops log rados = false
rgw ops log file path = {folder}/ops.log
rgw log nonexistent bucket = true
rgw lc debug interval = {_DAY}
"""
