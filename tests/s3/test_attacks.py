"""Whatever a captured machine holds, and even the keys of the bucket's owner: nothing is lost.

Every attempt goes to the real engine, whatever this code would do, and is then looked for in the
engine's own log, by the number that the engine gave the request.
"""

import datetime as dt
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from imager.errors import RecoveryKeyNeeded
from imager.repository.backend.s3 import S3Backend
from imager.units import MIB
from tests.s3.conftest import ENGINES
from tests.s3.machine import Site
from tests.stores.ceph import Ceph
from tests.stores.engine import Engine, Identity, shared, wait_for
from tests.stores.seaweedfs import SeaweedFS

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

SOON = dt.timedelta(seconds=5)
ALL = {"Prefix": ""}
LIFE = {
    "Rules": [
        {
            "ID": "age-out",
            "Status": "Enabled",
            "Filter": ALL,
            "Expiration": {"Days": 1},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        }
    ]
}


@dataclass
class Attacker:
    """Somebody with keys, who does to one object what can be done.

    Attributes:
        engine: the store.
        who: whose keys they are.
        bucket: where.
        key: of the object.
        version: the id of its first version.
        asked: the engine's numbers of all requests so far.
        refused: how many of these it refused.
    """

    engine: Engine
    who: Identity
    bucket: str
    key: str
    version: str
    asked: list[str] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self.client: S3Client = self.engine.client(self.who)
        self.client.meta.events.register("after-call.s3", self._note)

    def _note(self, parsed: dict[str, Any], **_: Any) -> None:
        self.asked.append(parsed["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"])

    def try_to(self, deed: Callable[["Attacker"], object]) -> None:
        """Do it, whatever the store says."""
        try:
            deed(self)
        except ClientError:
            self.refused += 1

    @property
    def it(self) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key}

    @property
    def first(self) -> dict[str, str]:
        return self.it | {"VersionId": self.version}

    def keep(self, mode: str, until: dt.datetime) -> None:
        self.client.put_object_retention(
            **self.first,  # type: ignore[arg-type]
            Retention={"Mode": mode, "RetainUntilDate": until},  # type: ignore[typeddict-item]
            BypassGovernanceRetention=True,
        )

    def multipart(self) -> None:
        upload = self.client.create_multipart_upload(**self.it)["UploadId"]  # type: ignore[arg-type]
        part = self.client.upload_part(**self.it, UploadId=upload, PartNumber=1, Body=b"false")  # type: ignore[arg-type]
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        self.client.complete_multipart_upload(**self.it, UploadId=upload, MultipartUpload=parts)  # type: ignore[arg-type]

    def send(self, method: str, path: str, headers: dict[str, str]) -> None:
        """Ask for what the library has no name for."""
        url = f"{self.engine.endpoint}/{self.bucket}/{path}"
        request = AWSRequest(method, url, data=b"", headers=headers)
        keys = Credentials(self.who.key, self.who.secret)
        S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
        signed = request.prepare()
        raw = urllib.request.Request(url, headers=dict(signed.headers), method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(raw) as answer:  # noqa: S310
                self.asked.append(answer.headers["x-amz-request-id"])
        except urllib.error.HTTPError as error:
            self.asked.append(error.headers["x-amz-request-id"])
            self.refused += 1


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


Deed = Callable[[Attacker], object]
# What may not even be tried with success: the bucket, its rules, and what lies in it.
DEEDS: dict[str, Deed] = {
    "remove": lambda a: a.client.delete_object(**a.it),  # type: ignore[arg-type]
    "remove the version": lambda a: a.client.delete_object(**a.first),  # type: ignore[arg-type]
    "remove it past governance": lambda a: a.client.delete_object(
        **a.first,  # type: ignore[arg-type]
        BypassGovernanceRetention=True,
    ),
    "remove many": lambda a: a.client.delete_objects(
        Bucket=a.bucket,
        Delete={"Objects": [{"Key": a.key}, {"Key": a.key, "VersionId": a.version}]},
        BypassGovernanceRetention=True,
    ),
    "overwrite": lambda a: a.client.put_object(**a.it, Body=b"false"),  # type: ignore[arg-type]
    "truncate": lambda a: a.client.put_object(**a.it, Body=b""),  # type: ignore[arg-type]
    "overwrite in parts": lambda a: a.multipart(),
    "overwrite by a copy": lambda a: a.client.copy_object(
        **a.it,  # type: ignore[arg-type]
        CopySource=f"{a.bucket}/{a.key}",
        MetadataDirective="REPLACE",
        Metadata={"x": "y"},
    ),
    "rename": lambda a: a.send(
        "PUT", "repo/moved?renameObject", {"x-amz-rename-source": f"/{a.bucket}/{a.key}"}
    ),
    "shorten the lock": lambda a: a.keep("COMPLIANCE", now() + SOON),
    "soften the lock": lambda a: a.keep("GOVERNANCE", now() + dt.timedelta(days=90)),
    "lift the lock": lambda a: a.client.put_object_retention(
        **a.first,  # type: ignore[arg-type]
        Retention={},
        BypassGovernanceRetention=True,
    ),
    "lift a hold": lambda a: a.client.put_object_legal_hold(
        **a.first,  # type: ignore[arg-type]
        LegalHold={"Status": "OFF"},
    ),
    "take it from the owner": lambda a: a.client.put_object_acl(
        **a.first,  # type: ignore[arg-type]
        AccessControlPolicy={"Owner": {"ID": a.who.name}, "Grants": []},
    ),
    "keep no versions": lambda a: a.client.put_bucket_versioning(
        Bucket=a.bucket, VersioningConfiguration={"Status": "Suspended"}
    ),
    "age out": lambda a: a.client.put_bucket_lifecycle_configuration(
        Bucket=a.bucket,
        LifecycleConfiguration=LIFE,  # type: ignore[arg-type]
    ),
    "lock nothing new": lambda a: a.client.put_object_lock_configuration(
        Bucket=a.bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"}
    ),
    "change the policy": lambda a: a.client.put_bucket_policy(
        Bucket=a.bucket,
        Policy=json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": "*",
                        "Action": ["s3:*"],
                        "Resource": [f"arn:aws:s3:::{a.bucket}/*"],
                    }
                ],
            }
        ),
    ),
    "remove the bucket": lambda a: a.client.delete_bucket(Bucket=a.bucket),
}
# What a machine must be able to do anyway; the first version is still the one that counts.
ADDS = {"overwrite", "truncate", "overwrite in parts", "overwrite by a copy", "rename"}


@pytest.fixture(scope="session", params=list(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return shared(ENGINES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture
def bucket(engine: Engine) -> str:
    return engine.new_bucket(mode="COMPLIANCE")


@pytest.fixture
def site(engine: Engine, bucket: str, tmp_path: Path) -> Site:
    owner, machine = (engine.place(bucket, each) for each in (engine.owner, engine.capture))
    return Site.make(tmp_path, owner, machine)


def versions(engine: Engine, bucket: str) -> Iterator[tuple[str, str]]:
    """Yield the key of each object and the id of its first version, as the store has them."""
    first = {}
    for version in engine.client(engine.owner).list_object_versions(Bucket=bucket)["Versions"]:
        first[version["Key"]] = version["VersionId"]
    yield from first.items()


def assert_in_log(engine: Engine, asked: list[str]) -> None:
    """Find each request in the log of the engine, which may be a moment behind."""
    missing: set[str] = set()

    def is_there() -> bool:
        log = engine.log_path.read_text("utf-8", "replace")
        missing.clear()
        missing.update(number for number in asked if number not in log)
        return not missing

    wait_for(f"{len(asked)} requests are in the log", is_there)


@pytest.mark.parametrize("who", ["capture", "owner"])
def test_nothing_that_is_tried_makes_a_byte_unreadable(
    engine: Engine, bucket: str, site: Site, who: str
) -> None:
    content = site.new_disk(3 * MIB)
    image = site.capture()
    objects = dict(versions(engine, bucket))
    before = {name: S3Backend(site.owner).get(name) for name in names(objects)}
    asked: list[str] = []
    for key, version in objects.items():
        attacker = Attacker(engine, getattr(engine, who), bucket, key, version)
        for deed in DEEDS.values():
            attacker.try_to(deed)
        assert len(attacker.asked) >= len(DEEDS)
        asked += attacker.asked
    assert dict(versions(engine, bucket)).items() >= objects.items()
    backend = S3Backend(site.owner)
    assert {name: backend.get(name) for name in before} == before
    assert_in_log(engine, asked)
    # Whoever owns the bucket may have changed who can read there; nobody can have removed anything.
    engine.allow_capture(bucket)
    assert site.restored(image) == content
    told = site.tell("check", "--ciphertext")
    assert told["findings"] == []
    # On Ceph the try to rename makes an object of its own.
    assert set(told["tampered"]) - {"moved"} == before.keys()
    assert "somebody tried" in site.run("check")
    assert image[:12] in site.run("images")
    assert image[:12] in site.run("images", place=site.machine)
    site.new_disk(MIB)
    assert site.capture()


def names(objects: dict[str, str]) -> list[str]:
    return [key.removeprefix("repo/") for key in objects]


def test_a_machine_is_refused_all_but_adding(engine: Engine, bucket: str) -> None:
    backend = S3Backend(engine.place(bucket, engine.owner))
    backend.put_new("packs/ab/1", [b"true"])
    ((key, version),) = versions(engine, bucket)
    for name, deed in DEEDS.items():
        attacker = Attacker(engine, engine.capture, bucket, key, version)
        attacker.try_to(deed)
        # SeaweedFS answers for each object of many.
        if name not in ADDS and not (name == "remove many" and isinstance(engine, SeaweedFS)):
            assert attacker.refused == len(attacker.asked) == 1, name
    assert backend.get("packs/ab/1") == b"true"
    assert (backend.locked_until("packs/ab/1") or 0) > backend.now() + 29 * 24 * 3600


def test_a_machine_reads_no_image(site: Site) -> None:
    """It can read all that is stored; what images hold is sealed to the recovery keys."""
    content = site.new_disk(MIB)
    image = site.capture()
    stored = b"".join(
        S3Backend(site.machine).get(entry.name) for entry in S3Backend(site.machine).list("")
    )
    assert content[:64] not in stored
    (site.folder / "keys/recovery.key").rename(site.folder / "in-a-safe")
    site.run(
        "restore",
        image,
        "--map",
        "disk0=stolen",
        "--yes",
        place=site.machine,
        code=RecoveryKeyNeeded.exit_code,
    )
    assert not (site.folder / "stolen").exists()


def test_the_filer_of_seaweedfs_has_to_be_fenced(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    """What `SECURITY.md` says: its locks hold at the S3 port, and nowhere else."""
    bucket = seaweedfs.new_bucket(mode="COMPLIANCE")
    backend = S3Backend(seaweedfs.place(bucket, seaweedfs.owner))
    backend.put_new("packs/ab/1", [b"true"])
    url = f"http://127.0.0.1:{seaweedfs.filer_port}/buckets/{bucket}/repo?recursive=true"
    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE")) as answer:
        assert answer.status < 300
    assert list(backend.list("")) == []


def test_a_life_cycle_removes_nothing_that_is_locked(ceph: Ceph) -> None:
    """By its owner's keys; a day is a few seconds in this Ceph."""
    client, key = ceph.client(ceph.owner), "repo/packs/ab/1"
    backends = {}
    for mode in ("COMPLIANCE", None):
        bucket = ceph.new_bucket(mode=mode)
        backends[mode] = S3Backend(ceph.place(bucket, ceph.owner))
        backends[mode].put_new("packs/ab/1", [b"true"])
        client.put_object(Bucket=bucket, Key=key, Body=b"false")
        client.put_bucket_lifecycle_configuration(
            Bucket=bucket,
            LifecycleConfiguration=LIFE,  # type: ignore[arg-type]
        )
    locked, free = backends.values()
    wait_for("what is not locked has aged out", lambda: not list(free.list("")))
    # Both are looked at in one round, in the order of names; in the next one at the latest.
    wait_for("the other one is hidden", lambda: next(iter(locked.list(""))).newer > 1)
    ceph.run("radosgw-admin", "-n", "client.gateway", "lc", "process")
    assert locked.get("packs/ab/1") == b"true"
    assert [entry.size for entry in locked.list("")] == [4]
