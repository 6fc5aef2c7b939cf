"""Which sites of a mirror are behind, noted on this machine until a sync has caught up."""

import contextlib
import hashlib
import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_LOG: Final = logging.getLogger("remetal")


class Notes:
    """The notes of one mirror; a file that can't be written to is no error, the log has it too.

    Args:
        mirror: its file, by which it is known.
        folder: where notes are kept; by default below $XDG_STATE_HOME.
    """

    def __init__(self, mirror: Path, folder: Path | None = None) -> None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser())
        whose = hashlib.sha256(os.fsencode(mirror.absolute())).hexdigest()[:32]
        self._path = (folder or state / "remetal" / "mirrors") / f"{whose}.json"
        self._mirror = mirror
        self._lock = threading.Lock()

    def behind(self, site: str, reason: str) -> None:
        """Note that a site has missed something, and say so."""
        with self._lock:
            found = self.read()
            found.setdefault(site, {"since": datetime.now(UTC).isoformat(timespec="seconds")})
            found[site]["reason"] = reason
            self._write(found)
        _LOG.warning(
            "site %s is left out: %s; `remetal sync mirror:%s` brings it up to date later",
            site,
            reason,
            self._mirror,
        )

    def caught_up(self) -> None:
        """Note that all sites hold the same again."""
        with self._lock, contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def read(self) -> dict[str, dict[str, str]]:
        """Return by site since when it is behind, and why."""
        try:
            found = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, found: dict[str, dict[str, str]]) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(found, indent=1), "utf-8")
