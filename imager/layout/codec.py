"""The layout, and documents that hold it, to and from JSON; strictly.

msgspec decodes straight into the frozen dataclasses and checks every type. It lets unknown fields
of dataclasses pass, so what was decoded is compared with what was there: a document from a hostile
or newer repository can't carry anything that the model does not have.
"""

from typing import Any, TypeVar

import msgspec

from imager.errors import UnsupportedFormat
from imager.layout.machine import Machine

_Document = TypeVar("_Document")


def encode(value: Any) -> bytes:
    """Return a machine, or a document that holds one, as JSON with its fields in their order."""
    return msgspec.json.encode(value)


def decode(data: bytes, kind: type[_Document], what: str) -> _Document:
    """Return what `encode` wrote.

    Args:
        data: JSON.
        kind: what it must be.
        what: its name, for the error.

    Raises:
        UnsupportedFormat: the data is not such a document, or has fields that it may not have.
    """
    try:
        value = msgspec.json.decode(data, type=kind)
        found = msgspec.json.encode(msgspec.json.decode(data), order="sorted")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnsupportedFormat(f"{what} can't be read: {error}") from error
    if found != msgspec.json.encode(value, order="sorted"):
        raise UnsupportedFormat(f"{what} holds something that this version does not know")
    return value


def document(machine: Machine) -> dict[str, Any]:
    """Return the machine as plain lists and dicts, for `--json` output."""
    plain: dict[str, Any] = msgspec.to_builtins(machine)
    return plain
