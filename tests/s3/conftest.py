"""The engines, started once and shared with the conformance suite."""

import datetime as dt
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from imager.repository.backend.place import Place
from imager.repository.backend.s3 import S3Backend
from tests.s3.proxy import Proxy
from tests.stores.ceph import Ceph
from tests.stores.engine import Engine, shared
from tests.stores.seaweedfs import SeaweedFS

ENGINES: dict[str, type[Engine]] = {"seaweedfs": SeaweedFS, "ceph": Ceph}


@pytest.fixture(scope="session", params=list(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return shared(ENGINES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The lighter of both, where the other side of the link does not matter."""
    return shared(SeaweedFS, tmp_path_factory.mktemp("seaweedfs"))


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return shared(Ceph, tmp_path_factory.mktemp("ceph"))


@pytest.fixture
def place(engine: Engine) -> Place:
    """A bucket with versions, and locks that somebody has to order, as its owner sees it."""
    return engine.place(engine.new_bucket(mode=None), engine.owner)


@pytest.fixture
def backend(place: Place) -> S3Backend:
    return S3Backend(place)


@pytest.fixture
def proxy(engine: Engine) -> Iterator[Proxy]:
    """Something on the way to the engine that can misbehave."""
    with Proxy(engine.port) as proxy:
        yield proxy


@pytest.fixture
def tls(engine: Engine, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A port at which the engine is spoken to with TLS, and the certificate that vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    authority, private = tmp_path / "authority.pem", tmp_path / "private.pem"
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, private)
    with Proxy(engine.port, context) as proxy:
        yield proxy.port, authority
