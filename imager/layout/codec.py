"""The layout, and documents that hold it, to and from JSON; strictly.

msgspec decodes straight into the frozen dataclasses and checks every type. It lets unknown fields
of dataclasses pass, so what was decoded is compared with what was there: a document from a hostile
or newer repository can't carry anything that the model does not have.

What a machine does not have at all is left out where older versions do not know the field: so they
read images of such machines, and refuse those they could not restore with all they need.
"""

from typing import Any, Final, TypeVar

import msgspec

from imager.errors import UnsupportedFormat
from imager.layout.layers import Layers
from imager.layout.machine import Machine

_Document = TypeVar("_Document")

# Fields of a machine that came after the first version, and what they are when left out.
_LATER: Final[dict[str, Any]] = {"layers": msgspec.to_builtins(Layers()), "cards": ()}


def encode(value: Any) -> bytes:
    """Return a machine, or a document that holds one, as JSON with its fields in their order."""
    return msgspec.json.encode(_shortened(value))


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
        found = msgspec.json.decode(data)
        known = msgspec.json.decode(msgspec.json.encode(_shortened(value)))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnsupportedFormat(f"{what} can't be read: {error}") from error
    # As text, since 1 and 1.0 and true are not the same here.
    if msgspec.json.encode(found, order="sorted") != msgspec.json.encode(known, order="sorted"):
        name = _unknown(found, known) or "something"
        raise UnsupportedFormat(f"{what} holds {name} that this version does not know")
    return value


def document(machine: Machine) -> dict[str, Any]:
    """Return the machine as plain lists and dicts, for `--json` output."""
    plain: dict[str, Any] = msgspec.to_builtins(machine)
    return plain


def _shortened(value: Any) -> Any:
    """Return a value as plain lists and dicts, without later fields that say nothing."""
    plain = msgspec.to_builtins(value)
    holders = [plain, plain.get("machine")] if isinstance(plain, dict) else []
    for holder in holders:
        for name, nothing in _LATER.items():
            if isinstance(holder, dict) and holder.get(name) == nothing:
                del holder[name]
    return plain


def _unknown(found: Any, known: Any) -> str | None:
    """Return the name of a field that is there and was not understood, with what it is in."""
    if isinstance(found, dict) and isinstance(known, dict):
        for name, value in found.items():
            if name not in known:
                return f"`{name}`"
            inner = _unknown(value, known[name])
            if inner is not None:
                return f"{inner} in `{name}`"
    if isinstance(found, list) and isinstance(known, list):
        for one, other in zip(found, known, strict=False):
            inner = _unknown(one, other)
            if inner is not None:
                return inner
    return None
