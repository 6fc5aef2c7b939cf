"""Files of a restored system that bind its configuration to the address of a network card.

An address is replaced only where it says *which* card is meant, only as a whole word and in the form
in which it is written. Every other byte stays, so do owner, mode and extended attributes. Where an
address is given to a card (`cloned-mac-address=`, `MACADDR=`, `[Link] MACAddress=` of a .network
file) it is left alone.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from restore.bootrepair.settings import LARGEST, files_below, without_comments
from restore.bootrepair.systems import inside

RULES: Final = PurePosixPath("/etc/udev/rules.d")
LINKS: Final = PurePosixPath("/etc/systemd/network")

_WORD: Final = re.compile(
    r"(?<![0-9A-Za-z:.-])"
    r"(?:[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})"
    r"(?![0-9A-Za-z:.-])"
)
_UDEV_ADDRESS: Final = re.compile(r'(?:ATTRS?|SYSFS)\{address\}\s*==\s*"[^"]*"')
_FLOW_MATCH: Final = re.compile(r"""\bmatch["']?\s*:\s*\{[^}]*?\bmacaddress["']?\s*:[^,}]*""")
_YAML_KEY: Final = re.compile(r"""(\s*(?:-\s+)?)["']?([\w./*-]+)["']?\s*:""")
# Where the name of a card may be written, beside the files below: folders, with all in them.
_NETWORK: Final = (
    "etc/network",
    "etc/netplan",
    "etc/systemd/network",
    "etc/NetworkManager",
    "etc/sysconfig/network-scripts",
    "etc/sysconfig/network",
    "etc/udev/rules.d",
)

Spans = Iterator[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Edit:
    """A file in which addresses are replaced.

    Attributes:
        path: in its system.
        before: all its bytes.
        after: all its bytes with the new addresses.
        addresses: old and new, each pair once, in lower case.
        selects_names: the file is one by which udev chooses the name of a card.
        gives_name: it does give one.
    """

    path: PurePosixPath
    before: bytes
    after: bytes
    addresses: tuple[tuple[str, str], ...]
    selects_names: bool
    gives_name: bool


def find_edits(root: Path, addresses: Mapping[str, str]) -> Iterator[Edit]:
    """Yield the files of a system that bind something to an old address, and what they become.

    Args:
        root: of the system.
        addresses: old address → new one, in lower case with colons. One may be both, or stay.

    Raises:
        OSError: a file can't be read.
    """
    for kind in _KINDS:
        for path in _files(root, kind):
            before = inside(root, path).read_bytes()
            # Every byte has a character of its own, so what is not replaced stays as it is.
            text = before.decode("latin-1")
            after, done = _replaced(text, kind.find(text), addresses)
            if done:
                yield Edit(
                    path=path,
                    before=before,
                    after=after.encode("latin-1"),
                    addresses=tuple(dict.fromkeys(done)),
                    selects_names=kind.name is not None,
                    gives_name=kind.name is not None and kind.name.search(text) is not None,
                )


def mentions(root: Path, addresses: Iterable[str]) -> Iterator[tuple[PurePosixPath, str]]:
    """Yield each file below /etc that an old address is in, wherever."""
    forms = {
        form.encode(): address
        for address in addresses
        for form in (address, address.replace(":", "-"))
    }
    for path, file in files_below(root, "etc"):
        content = file.read_bytes().lower()
        for address in dict.fromkeys(found for form, found in forms.items() if form in content):
            yield path, address


def configured_names(root: Path, names: Iterable[str]) -> frozenset[str]:
    """Return which of some names of cards the network configuration of a system speaks of."""
    words = {
        name: re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-])") for name in dict.fromkeys(names)
    }
    found: set[str] = set()
    for folder in _NETWORK:
        for path, file in files_below(root, folder):
            text = without_comments(file.read_text("latin-1"))
            found |= {name for name, word in words.items() if word.search(text)}
            found |= {path.name.removeprefix("ifcfg-")} & set(words)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Kind:
    folder: PurePosixPath
    patterns: tuple[str, ...]
    find: Callable[[str], Spans]
    name: re.Pattern[str] | None = None


def _files(root: Path, kind: _Kind) -> Iterator[PurePosixPath]:
    folder = inside(root, kind.folder)
    for pattern in kind.patterns:
        for found in sorted(folder.glob(pattern)):
            path = kind.folder / found.relative_to(folder)
            real = inside(root, path)
            if real.is_file() and real.stat().st_size <= LARGEST:
                yield path


def _replaced(
    text: str, spans: Spans, addresses: Mapping[str, str]
) -> tuple[str, list[tuple[str, str]]]:
    done: list[tuple[str, str]] = []

    def new(match: re.Match[str]) -> str:
        word = match[0]
        digits = re.sub("[^0-9A-Fa-f]", "", word)
        old = _with_colons(digits.lower())
        if old not in addresses:
            return word
        done.append((old, addresses[old]))
        letters = iter(addresses[old].replace(":", ""))
        shown = "".join(next(letters) if char in digits else char for char in word)
        return shown.upper() if digits != digits.lower() else shown

    parts: list[str] = []
    at = 0
    for start, end in spans:
        parts += [text[at:start], _WORD.sub(new, text[start:end])]
        at = end
    return "".join((*parts, text[at:])), done


def _with_colons(digits: str) -> str:
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield where each line begins, and the line; one that goes on in the next is one with it."""
    at = 0
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        if not line.rstrip("\r\n").endswith("\\"):
            yield at, pending
            at += len(pending)
            pending = ""
    if pending:
        yield at, pending


def _in_udev_rules(text: str) -> Spans:
    for start, line in _lines(text):
        if not line.lstrip().startswith("#"):
            for match in _UDEV_ADDRESS.finditer(line):
                yield start + match.start(), start + match.end()


def _in_section(sections: frozenset[str], keys: frozenset[str]) -> Callable[[str], Spans]:
    """Return what finds the values of some keys in some sections of a file of settings."""

    def find(text: str) -> Spans:
        section = ""
        for start, line in _lines(text):
            words = line.strip()
            if words.startswith("["):
                section = words.strip("[]")
            key, equals, _ = line.partition("=")
            if section in sections and equals and key.strip() in keys:
                yield start + len(key), start + len(line)

    return find


def _in_assignment(text: str) -> Spans:
    for start, line in _lines(text):
        if re.match(r"\s*HWADDR=", line):
            yield start, start + len(line)


def _in_interfaces(text: str) -> Spans:
    for start, line in _lines(text):
        if line.split()[:1] in (["hwaddress"], ["rename"]):
            yield start, start + len(line)


def _in_netplan(text: str) -> Spans:
    """Find `macaddress` below `match`; the one of a card itself gives it an address."""
    above: list[tuple[int, str]] = []  # indentation and key of all that the line may lie in
    start = 0
    for line in text.splitlines(keepends=True):
        here, start = start, start + len(line)
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        for match in _FLOW_MATCH.finditer(line):
            yield here + match.start(), here + match.end()
        key = _YAML_KEY.match(line)
        if key is None:
            continue
        indent = len(key[1])
        above = [(depth, name) for depth, name in above if depth < indent]
        if key[2] == "macaddress" and above and above[-1][1] == "match":
            yield here, here + len(line)
        above.append((indent, key[2]))


_IN_MATCH: Final = _in_section(
    frozenset({"Match"}), frozenset({"MACAddress", "PermanentMACAddress"})
)
_KINDS: Final = (
    _Kind(RULES, ("*persistent-net*.rules",), _in_udev_rules, re.compile(r'\bNAME\s*:?=\s*"')),
    _Kind(LINKS, ("*.link", "*.link.d/*.conf"), _IN_MATCH, re.compile(r"^Name=.*\S", re.MULTILINE)),
    _Kind(LINKS, ("*.network", "*.network.d/*.conf"), _IN_MATCH),
    _Kind(PurePosixPath("/etc/netplan"), ("*.yaml",), _in_netplan),
    _Kind(
        PurePosixPath("/etc/NetworkManager/system-connections"),
        ("*",),
        _in_section(
            frozenset({"ethernet", "802-3-ethernet", "wifi", "802-11-wireless"}),
            frozenset({"mac-address"}),
        ),
    ),
    _Kind(PurePosixPath("/etc/sysconfig/network-scripts"), ("ifcfg-*",), _in_assignment),
    _Kind(PurePosixPath("/etc/sysconfig/network"), ("ifcfg-*",), _in_assignment),
    _Kind(PurePosixPath("/etc/network"), ("interfaces", "interfaces.d/*"), _in_interfaces),
)
