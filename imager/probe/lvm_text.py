"""LVM's text of a volume group, parsed.

The form is that of libdevmapper's configuration files: sections in braces, values, lists.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from imager.probe.structure import StructureError

Value: TypeAlias = "int | float | str | list[Value] | Section"
Section: TypeAlias = "dict[str, Value]"

_TOKEN: Final = re.compile(
    r'\s*(?:#[^\n]*\n\s*)*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+(?:\.\d+)?)(?![\w.-])'
    r"|(?P<word>[\w.+@-]+)|(?P<sign>[{}=\[\],]))"
)
_REST: Final = re.compile(r"\s*(?:#[^\n]*(?:\n\s*|$))*\0*\Z")
_DEEPEST: Final = 16


def parse(text: str) -> Section:
    """Return the sections of a configuration text.

    Raises:
        StructureError: it is none.
    """
    return _Parser(text).top()


def render(section: Section) -> str:
    """Return the text of a section's entries in the form that LVM writes; `parse` reads them again.

    The order of entries is kept: GRUB, which has no parser for it, relies on LVM's.
    """
    return "".join(f"{line}\n" for line in _lines(section))


def _lines(section: Section) -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield f"{name} {{"
            yield from _lines(value)
            yield "}"
        elif isinstance(value, list) and any(isinstance(item, int) for item in value):
            # Of a segment: what it lies on, and where there.
            yield f"{name} = ["
            words = [_word(item) for item in value]
            yield from (", ".join(words[at : at + 2]) + "," for at in range(0, len(words) - 2, 2))
            yield ", ".join(words[(len(words) - 1) // 2 * 2 :])
            yield "]"
        else:
            yield f"{name} = {_word(value)}"


def _word(value: Value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_word, value))}]"
    if isinstance(value, str):
        return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
    return str(value)


def section(parent: Mapping[str, Value], name: str) -> Section:
    """Return a section within another; an empty one where there are no logical volumes.

    Raises:
        StructureError: it is not there, or something else.
    """
    found = parent.get(name, {} if name == "logical_volumes" else None)
    if not isinstance(found, dict):
        raise StructureError(f"the LVM metadata lacks {name}")
    return found


def number(section: Section, name: str) -> int:
    """Return a number that is not negative.

    Raises:
        StructureError: it is not there, or something else.
    """
    found = section.get(name)
    if not isinstance(found, int) or found < 0:
        raise StructureError(f"the LVM metadata lacks {name}")
    return found


def string(section: Section, name: str) -> str:
    """Return a text.

    Raises:
        StructureError: it is not there, or something else.
    """
    found = section.get(name)
    if not isinstance(found, str):
        raise StructureError(f"the LVM metadata lacks {name}")
    return found


def strings(section: Section, name: str) -> list[str]:
    """Return a list of texts, which may be missing, or one text that stands for it.

    Raises:
        StructureError: it is not there, or something else.
    """
    found = section.get(name, [])
    words = found if isinstance(found, list) else [found]
    if not all(isinstance(word, str) for word in words):
        raise StructureError(f"the LVM metadata has no words in {name}")
    return [str(word) for word in words]


class _Parser:
    """A text and the place where it is read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def top(self) -> Section:
        """Return the whole text."""
        found: Section = {}
        while not _REST.match(self._text, self._position):
            self._entry(found, 0)
        return found

    def _entry(self, into: Section, depth: int) -> None:
        kind, name = self._next()
        if kind == "number":
            kind = "word"  # a name may be all digits
        if kind != "word" or name in into or depth > _DEEPEST:
            raise StructureError("the LVM metadata can't be parsed")
        sign = self._next()
        if sign == ("sign", "="):
            into[name] = self._value(depth)
        elif sign == ("sign", "{"):
            section: Section = {}
            while self._peek() != ("sign", "}"):
                self._entry(section, depth + 1)
            self._next()
            into[name] = section
        else:
            raise StructureError("the LVM metadata can't be parsed")

    def _value(self, depth: int) -> Value:
        kind, text = self._next()
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if kind == "number":
            return float(text) if "." in text else int(text)
        if (kind, text) != ("sign", "[") or depth > _DEEPEST:
            raise StructureError("the LVM metadata can't be parsed")
        items: list[Value] = []
        while self._peek() != ("sign", "]"):
            if items and self._next() != ("sign", ","):
                raise StructureError("the LVM metadata can't be parsed")
            items.append(self._value(depth + 1))
        self._next()
        return items

    def _peek(self) -> tuple[str, str]:
        position = self._position
        found = self._next()
        self._position = position
        return found

    def _next(self) -> tuple[str, str]:
        match = _TOKEN.match(self._text, self._position)
        if match is None or match.lastgroup is None:
            raise StructureError("the LVM metadata can't be parsed")
        self._position = match.end()
        return match.lastgroup, match[match.lastgroup]
