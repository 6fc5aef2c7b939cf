"""Real stores for the tests: one module each, all behind `tests.stores.store.Store`."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from tests.stores.ceph import Ceph
from tests.stores.directory import directory
from tests.stores.engine import buckets
from tests.stores.mirror import mirror
from tests.stores.seaweedfs import SeaweedFS
from tests.stores.ssh import sftp, ssh
from tests.stores.store import Store

# By name; each is given a folder of its own, runs until its context ends, and listens on loopback only.
STORES: Final[Mapping[str, Callable[[Path], AbstractContextManager[Store]]]] = {
    "directory": directory,
    "seaweedfs": buckets(SeaweedFS, locked=True),
    "seaweedfs-plain": buckets(SeaweedFS, locked=False),
    "ceph": buckets(Ceph, locked=True),
    "ceph-plain": buckets(Ceph, locked=False),
    "ssh": ssh,
    "sftp": sftp,
    "mirror": mirror,
}
