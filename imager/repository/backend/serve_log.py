"""What `remetal serve` writes down: to the system's log, and to a file."""

import json
import logging
import logging.handlers
from pathlib import Path
from typing import Final

_SOCKET: Final = Path("/dev/log")
_LONGEST: Final = 300  # characters of what the other side has chosen


class ServeLog:
    """The log of one connection.

    Everything that the other side has chosen is written as JSON strings, so that it can't look like
    anything else, and no line is longer than a name may be.

    Args:
        key: name of the key.
        peer: address of the other side.
        file: to append to; None for the system's log alone.

    Raises:
        OSError: the file can't be written to.
    """

    def __init__(self, key: str, peer: str, file: Path | None) -> None:
        self._who = f"key={json.dumps(key)} from={json.dumps(peer)}"
        self._logger = logging.getLogger("remetal-serve")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        if _SOCKET.exists():
            system = logging.handlers.SysLogHandler(
                str(_SOCKET), logging.handlers.SysLogHandler.LOG_AUTH
            )
            system.setFormatter(logging.Formatter("remetal-serve[%(process)d]: %(message)s"))
            self._logger.addHandler(system)
        if file is not None:
            lines = logging.FileHandler(file)
            lines.setFormatter(
                logging.Formatter(
                    "%(asctime)s remetal-serve[%(process)d] %(levelname)s %(message)s"
                )
            )
            self._logger.addHandler(lines)

    def refused(self, verb: str, name: str, why: str) -> None:
        """Write down what the key may not have."""
        self._logger.warning(
            "%s refused=%s object=%s reason=%s",
            self._who,
            verb,
            json.dumps(name[:_LONGEST]),
            json.dumps(why[:_LONGEST]),
        )

    def note(self, text: str) -> None:
        """Write down anything else."""
        self._logger.info("%s %s", self._who, text)
