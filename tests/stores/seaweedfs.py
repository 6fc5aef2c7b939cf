"""SeaweedFS: one process with master, volume server, filer and S3 gateway."""

import json
import sys
from pathlib import Path

from tests.stores.engine import Daemon, Engine, free_ports, listens, wait_for

_WEED = Path(sys.executable).parent / "weed"


class SeaweedFS(Engine):
    """A SeaweedFS that runs below a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "data").mkdir()
        self._identities: dict[str, list[str]] = {}
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
            "-volume.max=200",
            "-filer=true",
            f"-filer.localSocket={folder}/filer.sock",
            "-s3",
            f"-s3.config={config}",
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
        """Let the capture identity write, read and list there."""

    @property
    def log_path(self) -> Path:
        """Its log."""
        return self._weed.log

    def _answers(self) -> bool:
        return listens(self.port)

    def _config(self) -> dict[str, object]:
        return {
            "identities": [
                {
                    "name": each.name,
                    "credentials": [{"accessKey": each.key, "secretKey": each.secret}],
                    "actions": actions,
                }
                for each, actions in (
                    (self.owner, ["Admin"]),
                    (self.capture, ["Read", "Write", "List"]),
                )
            ]
        }
