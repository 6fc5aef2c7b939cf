"""The client of an S3 store: with which keys, over which connections, with what it must answer.

A client is made for each process when it is first needed, and shared by all threads of it. Keys
are held by boto3 alone: they are in no location, no message and no representation of these objects.
"""

import logging
import os
import stat
import threading
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.credentials import Credentials, SharedCredentialProvider
from botocore.exceptions import BotoCoreError, PartialCredentialsError
from botocore.parsers import ResponseParserError

from imager.errors import ConfigError
from imager.repository.backend.place import Access
from imager.repository.backend.s3_location import Location

if TYPE_CHECKING:
    from pathlib import Path

    from types_boto3_s3 import S3Client

CONNECT_SECONDS: Final = 10
READ_SECONDS: Final = 30
_CONNECTIONS: Final = 32
_DEFAULT_REGION: Final = "us-east-1"  # what stores that have no regions take

# It shows a traceback for headers that were cut; `Caller` tells of these in a sentence.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


class Clients:
    """Makes the client of a store when it is needed.

    Args:
        location: the store.
        access: with what it is reached.
        read_seconds: after how long without a byte a link counts as hanging.
    """

    def __init__(self, location: Location, access: Access, read_seconds: float) -> None:
        self._location = location
        self._access = access
        self._read_seconds = read_seconds
        self._lock = threading.Lock()
        self._process = -1
        self._client: S3Client | None = None

    def get(self) -> "S3Client":
        """Return the client of this process.

        Raises:
            ConfigError: the file with the keys can't be used, or the AWS configuration is wrong.
            UsageError: the AWS configuration names an endpoint without TLS.
        """
        with self._lock:
            # Connections can't be shared with a parent.
            if self._client is None or self._process != os.getpid():
                self._client = self._make()
                self._process = os.getpid()
            return self._client

    def forget(self) -> None:
        """Let the next `get` read the keys anew: they may have been renewed meanwhile."""
        with self._lock:
            self._client = None

    def _make(self) -> "S3Client":
        path = self._access.credentials
        keys = None if path is None else read_keys(path)
        try:
            session = boto3.Session(
                aws_access_key_id=keys.access_key if keys else None,
                aws_secret_access_key=keys.secret_key if keys else None,
                aws_session_token=keys.token if keys else None,
                region_name=self._location.region,
            )
            client = session.client(
                "s3",
                region_name=session.region_name or _DEFAULT_REGION,
                endpoint_url=self._location.endpoint,
                verify=str(self._access.authorities) if self._access.authorities else None,
                config=self._config(),
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"the AWS configuration of this machine: {error}") from error
        self._location.check_endpoint(client.meta.endpoint_url)
        client.meta.events.register("before-parse.s3", _refuse_what_is_cut)
        return client

    def _config(self) -> Config:
        return Config(
            # Who retries must know whether a put that failed was done all the same: `Caller` does.
            retries={"total_max_attempts": 1},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=self._read_seconds,
            max_pool_connections=_CONNECTIONS,
            tcp_keepalive=True,
            # Newer kinds of checksums are not known to every store; Content-MD5 and the signed
            # SHA-256 of the body are.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": True, "addressing_style": self._style()},
        )

    def _style(self) -> Literal["auto", "path"]:
        """Return where the bucket is named: only AWS gives every bucket a host name of its own."""
        host = urlsplit(self._location.endpoint or "").hostname
        return "auto" if host is None or host.endswith(".amazonaws.com") else "path"


def read_keys(path: "Path") -> Credentials:
    """Read a file as the AWS tools keep it, that nobody else may read.

    Raises:
        ConfigError: others may read it, or it holds no keys.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{path} holds the keys of a store, and others can read or change it",
            hint=f"`chmod 600 {path}`; if others were on this machine meanwhile, exchange the keys.",
        )
    profile = os.environ.get("AWS_PROFILE", "default")
    try:
        keys = SharedCredentialProvider(str(path), profile).load()
    except (BotoCoreError, PartialCredentialsError) as error:
        raise ConfigError(f"{path} is no file with keys: {type(error).__name__}") from error
    if keys is None:
        raise ConfigError(
            f"{path} holds no keys for the profile {profile!r}",
            hint=f"It has a line [{profile}], then aws_access_key_id = ..., aws_secret_access_key = "
            "... and, for keys that expire, aws_session_token = ...",
        )
    return keys


def _refuse_what_is_cut(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Let no answer that was cut pass for one that says nothing.

    The HTTP library takes headers that end early for all headers, and the AWS library takes a body
    that is not there for a document without content: a listing would be empty, and a bucket that
    keeps versions would look like one that never did.
    """
    shape = operation_model.output_shape
    if response_dict["status_code"] >= 300 or shape is None:
        return
    if operation_model.has_streaming_output:
        if "content-length" not in response_dict["headers"]:
            raise ResponseParserError("an object without its length")
        return
    in_body = [
        member
        for member in shape.members.values()
        if member.serialization.get("location") not in {"header", "headers", "statusCode"}
    ]
    if in_body and not response_dict["body"]:
        raise ResponseParserError("an answer without its document")
