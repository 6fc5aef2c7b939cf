"""The restored system finds its network again, on cards that are not the old ones.

A name is pinned by a .link file, of which udev applies the first one that matches, in the order of
their names. So this one stands early, and is not made where a file of the system itself names the
card. It matches the permanent address, so that no bond or VLAN above the card is meant, and the
current one, since udev before version 245 knows only that. Other settings of a .link file that
matched all cards no longer hold for this one; such files are named.

What an initramfs holds of all this is of no matter for the names, except in the cases that
`is_named_early` tells: udev gives names again when the root is there.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from imager.layout.network import NetworkCard
from restore.boot_steps import MapCards
from restore.bootrepair.conductor import Work, conduct
from restore.bootrepair.devices import Devices
from restore.bootrepair.network_files import (
    LINKS,
    RULES,
    Edit,
    configured_names,
    find_edits,
    mentions,
)
from restore.bootrepair.settings import make_file, replace_file
from restore.bootrepair.systems import MOUNTS, System, inside
from restore.cards import CardMatch

PREFIX: Final = "10-remetal-"
_OWN_RULES: Final = RULES / "70-persistent-net.rules"
# Mount points without which a look would lead astray.
_NEEDED_TO_LOOK: Final = frozenset({"/etc", "/usr", "/lib"})
# What makes udev apply .link files; one in /etc stands for the others, also if it is empty.
_APPLIES_LINKS: Final = "80-net-setup-link.rules"
_RULE_PLACES: Final = ("etc/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_LIBRARY: Final = re.compile(r"libsystemd-shared-(\d+)")
_LIBRARY_PLACES: Final = ("usr/lib/systemd", "lib/systemd", "usr/lib64/systemd")
_RENAMES_AGAIN: Final = 240  # version of systemd from which udev does; see systemd issue 9006
_KERNELS_OWN: Final = re.compile(r"(eth|wlan|wwan|usb)\d+")

_LINK: Final = """\
# Made by remetal when this machine was restored to other network cards.
[Match]
MACAddress={mac}
PermanentMACAddress={mac}

[Link]
Name={name}
"""
_RULE: Final = (
    'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="?*", ATTR{{address}}=="{mac}", '
    'ATTR{{type}}=="1", NAME="{name}"\n'
)


@dataclass(frozen=True, slots=True)
class _Pin:
    """A name that a card gets.

    Attributes:
        name: of the card, from now on.
        mac: of the card here.
        reason: in words.
    """

    name: str
    mac: str
    reason: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a system needs.

    Attributes:
        edits: files in which addresses are replaced.
        pins: names that are pinned.
        notes: what a person must know.
    """

    edits: tuple[Edit, ...]
    pins: tuple[_Pin, ...]
    notes: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether anything has to be written."""
        return bool(self.edits or self.pins)


def map_cards(step: MapCards, place: Path = MOUNTS) -> tuple[str, ...]:
    """Do what the step says, and return what was found and done, file by file.

    Args:
        step: says which disks were restored, and which cards are here.
        place: folder for mount points.
    """

    def look(system: System, _: Devices) -> tuple[bool | None, tuple[str, ...]]:
        found = examine(system.root, step)
        return (True, ()) if found.changes else (None, tuple(left(system, found)))

    def apply(system: System, _: Devices, __: bool) -> Iterator[str]:
        found = examine(system.root, step)
        yield from (f"{system.title}: {each}" for each in change(system.root, found))
        yield from left(system, found)

    def left(system: System, found: Findings) -> Iterator[str]:
        yield from (f"{system.title}: {each}" for each in found.notes)
        yield from (f"{system.title}: {each}" for each in _left(system.root, step))

    def by_hand(_: Devices) -> str:
        cards = "; ".join(match.describe() for match in step.cards)
        return f"no restored system could be looked into. Its network cards are others now: {cards}"

    trouble = "network cards could not be mapped to the end"
    return conduct(step.disks, place, Work(_NEEDED_TO_LOOK, look, apply, by_hand, trouble))


def examine(root: Path, step: MapCards) -> Findings:
    """Return what a system needs to find its network cards. Only reads.

    Raises:
        OSError: a file can't be read.
    """
    # A card that only moved may be chosen by its address, too.
    moved = {
        mac: mac
        for match in step.cards
        if (mac := match.saved.mac) and match.here and mac == match.here.mac
    }
    choosing = tuple(find_edits(root, {**moved, **step.addresses}))
    edits = tuple(edit for edit in choosing if edit.after != edit.before)
    pins: list[_Pin] = []
    notes: list[str] = []
    selected = {old: edit for edit in choosing if edit.selects_names for old, _ in edit.addresses}
    candidates = [name for match in step.cards for name in match.saved.predicted]
    configured = configured_names(root, candidates)
    for match in step.cards:
        selecting = selected.get(match.saved.mac or "")
        if selecting is not None:
            if not selecting.gives_name:
                notes.append(
                    f"WARNING: {selecting.path} chooses {match.saved.title} and gives it no name: "
                    "if the card is not found under its old one, add Name= there"
                )
            continue
        pin = _pin(match, configured)
        if isinstance(pin, _Pin):
            pins.append(pin)
        else:
            notes.append(pin)
    pins.extend(_out_of_the_way(step.free, {pin.name for pin in pins}))
    if not pins:
        return Findings(edits, (), tuple(notes))
    if not _has_links(root) and not inside(root, _OWN_RULES).is_file():
        wanted = "; ".join(f"{pin.name} is {pin.mac} now" for pin in pins)
        notes.append(f"WARNING: nothing there names network cards by a file. By hand: {wanted}")
        return Findings(edits, (), tuple(notes))
    notes.extend(_doubts(root, pins, len(step.cards) + len(step.free)))
    return Findings(edits, tuple(pins), tuple(notes))


def change(root: Path, found: Findings) -> Iterator[str]:
    """Change a system as was found, and yield what was done, file by file.

    Each file is changed whole or not at all; one that can't be is told, and the others go on.
    """
    for edit in found.edits:
        addresses = ", ".join(f"{old} is {new} now" for old, new in edit.addresses if old != new)
        try:
            replace_file(inside(root, edit.path), edit.after)
        except OSError as error:
            yield f"WARNING: {edit.path} was not changed ({error.strerror}). By hand: {addresses}"
            continue
        yield f"{edit.path}: {addresses}"
    has_links = _has_links(root)
    for pin in found.pins:
        path = LINKS / f"{PREFIX}{pin.name}.link" if has_links else _OWN_RULES
        try:
            _write_pin(root, pin, path, as_link=has_links)
        except OSError as error:
            yield (
                f"WARNING: {path} was not written ({error.strerror}). By hand: {pin.name} is "
                f"{pin.mac} now"
            )
            continue
        yield f"{path}: {pin.name} is {pin.mac} now, {pin.reason}"


def is_named_early(root: Path, crossed: Collection[str]) -> bool:
    """Return whether names that were pinned come to nothing if the initramfs names cards without them.

    Before version 240 of systemd, udev leaves a card alone that was renamed once, as the initramfs
    may have done. From then on it names it again, but a name that another card took meanwhile is not
    free. That a kernel's command line chooses a naming scheme of before (net.naming-scheme=v239) is
    not seen.
    """
    if not any(inside(root, LINKS).glob("*.link")):
        return False
    versions = [
        int(match[1])
        for place in (*_LIBRARY_PLACES, *_multiarch(root))
        for path in inside(root, place).glob("libsystemd-shared-*")
        if (match := _LIBRARY.match(path.name)) is not None
    ]
    return bool(crossed) or max(versions, default=0) < _RENAMES_AGAIN


def names_cards(names: Collection[str]) -> bool:
    """Return whether an initramfs with files of these names gives names to network cards."""
    return any(PurePosixPath(name).name == _APPLIES_LINKS for name in names)


def _left(root: Path, step: MapCards) -> Iterator[str]:
    """Say where old addresses still are: what they mean there is for a person to know."""
    # One that a card here has, whatever it had before, is not an old one.
    here = {match.here.mac for match in step.cards if match.here}
    old = [address for address in step.addresses if address not in here]
    for path, address in mentions(root, old):
        yield f"{path} still holds {address}, the address of a card that is gone: look whether it matters there"


def _pin(match: CardMatch, configured: Collection[str]) -> _Pin | str:
    """Return the name a card must have, or why none is pinned."""
    saved, here = match.saved, match.here
    assert here is not None  # noqa: S101  only such cards are mapped
    names = [saved.name] if saved.name else [n for n in saved.predicted if n in configured]
    if not names:
        return (
            f"no network configuration there speaks of {saved.title}, and the image does not know "
            f"what the system called the card: its name is not pinned to {here.describe()}"
        )
    if here.mac is None:
        return (
            f"WARNING: {names[0]} can't be pinned to the card at {here.place}, which has no "
            "address of its own. By hand: name it by its place"
        )
    reason = (
        f"it was {saved.mac or 'without an address'} at {saved.place}, and takes the card "
        f"({here.driver or 'no driver'} at {here.place})"
    )
    return _Pin(names[0], here.mac, reason)


def _out_of_the_way(free: Sequence[NetworkCard], taken: Collection[str]) -> Iterator[_Pin]:
    """Name cards that udev would give a name which another one must have."""
    for card in free:
        if card.mac is not None and set(card.predicted) & set(taken):
            yield _Pin(
                f"enx{card.mac.replace(':', '')}",
                card.mac,
                "it takes no saved card's place, and would take the name of one",
            )


def _doubts(root: Path, pins: Sequence[_Pin], cards: int) -> Iterator[str]:
    kernels_own = [pin.name for pin in pins if _KERNELS_OWN.fullmatch(pin.name)]
    if kernels_own and cards > 1:
        yield (
            f"WARNING: {', '.join(kernels_own)}: the kernel gives such names itself, and udev can't "
            "swap those that are taken. If cards come up swapped, swap their cables, or give them "
            "other names in the network configuration"
        )
    if _has_links(root):
        others = [
            path.name
            for path in sorted(inside(root, LINKS).glob("*.link"))
            if not path.name.startswith(PREFIX) and path.is_file()
        ]
        if others:
            yield (
                f"{', '.join(others)} in {LINKS}: of such files only the first one that matches a "
                "card is applied; look whether they set anything for the cards that are pinned now"
            )


def _has_links(root: Path) -> bool:
    """Return whether udev there applies .link files."""
    for folder in _RULE_PLACES:
        path = inside(root, folder) / _APPLIES_LINKS
        if path.is_symlink() or path.exists():
            real = inside(root, f"{folder}/{_APPLIES_LINKS}")
            return real.is_file() and real.stat().st_size > 0
    return False


def _write_pin(root: Path, pin: _Pin, path: PurePosixPath, *, as_link: bool) -> None:
    real = inside(root, path)
    if as_link:
        make_file(real, _LINK.format(mac=pin.mac, name=pin.name).encode())
        return
    before = real.read_bytes()
    between = b"" if not before or before.endswith(b"\n") else b"\n"
    replace_file(real, before + between + _RULE.format(mac=pin.mac, name=pin.name).encode())


def _multiarch(root: Path) -> Iterator[str]:
    for path in inside(root, "usr/lib").glob("*-linux-gnu*/systemd"):
        yield f"usr/lib/{path.parent.name}/systemd"
