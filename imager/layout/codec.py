"""Layout to and from JSON, strictly: what is unknown or missing is refused.

msgspec decodes straight into the frozen dataclasses and checks every type, so that a layout
from a hostile repository can't carry anything the model does not allow.
"""

from typing import Any

import msgspec

from imager.errors import UnsupportedFormat
from imager.layout.machine import Machine


def encode(machine: Machine) -> bytes:
    """Return the machine as JSON with its fields in the order of the model."""
    return msgspec.json.encode(machine)


def decode(data: bytes) -> Machine:
    """Return the machine that `encode` wrote.

    Raises:
        UnsupportedFormat: the data is not such a document.
    """
    try:
        return msgspec.json.decode(data, type=Machine)
    except msgspec.MsgspecError as error:
        raise UnsupportedFormat(f"the layout of this image can't be read: {error}") from error


def document(machine: Machine) -> dict[str, Any]:
    """Return the machine as plain lists and dicts, for `--json` output."""
    plain: dict[str, Any] = msgspec.to_builtins(machine)
    return plain
