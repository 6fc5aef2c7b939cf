"""SeaweedFS: one process with master, volume server, filer and S3 gateway."""

import json
import socketserver
import sys
import threading
from pathlib import Path

from tests.stores.engine import (
    Daemon,
    Engine,
    Identity,
    capture_policy,
    free_ports,
    listens,
    wait_for,
)

_WEED = Path(sys.executable).parent / "weed"


class SeaweedFS(Engine):
    """A SeaweedFS that runs below a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "data").mkdir()
        self._audit = _Audit(folder / "audit.log")
        audit = folder / "audit.json"
        audit.write_text(json.dumps(self._audit.configuration))
        config = folder / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps(self._config()))
        names = ("master", "volume", "filer", "s3")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports["s3"], grpc = self.port, dict(zip(names, free_ports(len(names)), strict=True))
        self._weed = self.start(
            "weed",
            str(_WEED),
            "-logtostderr=true",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={folder}/data",
            "-master.volumeSizeLimitMB=512",
            "-master.telemetry=false",
            # Each bucket takes seven of them.
            "-volume.max=10000",
            "-filer=true",
            f"-filer.localSocket={folder}/filer.sock",
            "-s3",
            f"-s3.config={config}",
            f"-s3.auditLogConfig={audit}",
            f"-s3.localSocket={folder}/s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{name}.port={port}" for name, port in ports.items()),
            *(f"-{name}.port.grpc={port}" for name, port in grpc.items()),
        )
        self.filer_port = ports["filer"]
        self.wait()

    def wait(self) -> None:
        """Return when it takes objects."""
        wait_for("SeaweedFS answers", self._answers, self._weed)

    @property
    def gateway(self) -> Daemon:
        """All of it."""
        return self._weed

    def allow_capture(self, bucket: str) -> None:
        """Do nothing: its policy allows the same in every bucket."""

    @property
    def log_path(self) -> Path:
        """What it tells its collector of audit logs, one JSON document a line."""
        return self._audit.path

    def close(self) -> None:
        """End everything."""
        super().close()
        self._audit.stop()

    def _answers(self) -> bool:
        return listens(self.port)

    def _config(self) -> dict[str, object]:
        def identity(each: Identity, **rights: list[str]) -> dict[str, object]:
            keys = [{"accessKey": each.key, "secretKey": each.secret}]
            return {"name": each.name, "credentials": keys, **rights}

        # Its own actions are too coarse: `Write` removes, and sets life cycles.
        return {
            "identities": [
                identity(self.owner, actions=["Admin"]),
                identity(self.capture, policyNames=["capture"]),
            ],
            "policies": [{"name": "capture", "content": capture_policy("*")}],
        }


class _Audit:
    """Takes the audit log, which SeaweedFS gives to a Fluentd only, and writes it to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

        class Take(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                text, decoder = "", json.JSONDecoder()
                while data := self.request.recv(1 << 16):
                    text += data.decode()
                    while text:
                        try:
                            (_, _, record, *_), end = decoder.raw_decode(text)
                        except ValueError:
                            break
                        text = text[end:].lstrip()
                        with path.open("a") as log:
                            log.write(json.dumps(record) + "\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Take)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def configuration(self) -> dict[str, object]:
        """What SeaweedFS has to know to find it."""
        host, port = self._server.server_address[:2]
        return {"fluent_host": host, "fluent_port": port, "marshal_as_json": True}

    def stop(self) -> None:
        """Take nothing more."""
        self._server.shutdown()
        self._server.server_close()
