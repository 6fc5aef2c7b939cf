"""Which network card here takes the place of which saved one. Decides on data alone.

The order of the rules, each for all saved cards before the next:

1. named: `--nic SAVED=CARD`
2. the same permanent address
3. the same place on the same bus, and the same driver
4. the only saved card that is left, and the only one here
5. as many left here as saved: in the order of their places

What is left then has no counterpart: it is named, and nothing is changed for it. A wrong guess
costs no data, and the plan shows it before anything is written.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from imager.errors import UsageError
from imager.layout.network import NetworkCard
from restore.assignments import parse_assignments


class CardBasis(StrEnum):
    """Why a card was chosen, in words for the plan."""

    NAMED = "named with --nic"
    MAC = "same address"
    PLACE = "same place and driver"
    ONLY_ONE = "the only one left"
    ORDER = "by the order of their places"


@dataclass(frozen=True, slots=True)
class CardMatch:
    """A saved network card and what takes its place.

    Attributes:
        saved: the card of the image.
        here: the card of this machine, with the name it has now; None where there is none.
        basis: why this one; None where there is none.
        has_link: something answers at the other end of its cable. Cards that nobody has needed
            yet are not asked.
    """

    saved: NetworkCard
    here: NetworkCard | None = None
    basis: CardBasis | None = None
    has_link: bool = False

    @property
    def differs(self) -> bool:
        """Whether another card is here, or the same one in another place, which udev names it by."""
        return self.here is not None and (
            self.here.mac != self.saved.mac or self.here.place != self.saved.place
        )

    def describe(self) -> str:
        """Say which card is which."""
        text = f"{self.saved.title}, {self.saved.describe()}"
        if self.here is None:
            return f"{text}: no card here takes its place"
        if not self.differs:
            return f"{text}: is here"
        link = ", has a link" if self.has_link else ""
        return f"{text}: becomes {self.here.describe()}{link}; chosen because: {self.basis}"


def parse_nics(values: Iterable[str]) -> dict[str, str]:
    """Turn the values of `--nic` into saved card → card here.

    Raises:
        UsageError: not of the form SAVED=CARD, or a saved card twice.
    """
    return parse_assignments("--nic", values, form="SAVED=CARD", example="eth0=52:54:00:12:34:56")


def match_cards(
    saved: Sequence[NetworkCard],
    here: Sequence[NetworkCard],
    *,
    named: Mapping[str, str] | None = None,
    linked: Iterable[str] = (),
) -> tuple[CardMatch, ...]:
    """Return what takes the place of each saved card, in their order.

    Args:
        saved: cards of the image.
        here: cards of this machine.
        named: saved card → card here, as `parse_nics` returns it: each by its name or its address.
        linked: names of the cards here that have a link.

    Raises:
        UsageError: a card that is named does not exist, could be several, or is named twice.
    """
    found = _named(saved, here, named or {})
    for basis, same in ((CardBasis.MAC, _same_mac), (CardBasis.PLACE, _same_place)):
        _match_alike(saved, here, found, basis, same)
    _match_rest(saved, here, found)
    links = frozenset(linked)
    return tuple(
        CardMatch(card, *found[number], has_link=found[number][0].name in links)
        if number in found
        else CardMatch(card)
        for number, card in enumerate(saved)
    )


def free_cards(
    matches: Iterable[CardMatch], here: Iterable[NetworkCard]
) -> tuple[NetworkCard, ...]:
    """Return the cards here that take no saved card's place."""
    taken = [match.here for match in matches]
    return tuple(card for card in here if card not in taken)


def crossed_names(cards: Sequence[CardMatch], here: Iterable[NetworkCard]) -> tuple[str, ...]:
    """Return the names that udev, left to itself, would give to another card here than they are for.

    Where it does that before it has read what pins them, neither card can be renamed: each name is
    taken by the other.
    """
    others = tuple(here)
    wanted = {
        name: match.here
        for match in cards
        if match.differs
        for name in ((match.saved.name,) if match.saved.name else match.saved.predicted)
    }
    return tuple(
        name
        for name, card in wanted.items()
        if any(name in other.predicted for other in others if other != card)
    )


_Found = dict[int, tuple[NetworkCard, CardBasis]]
"""Number of the saved card → card here, and why."""


def _named(
    saved: Sequence[NetworkCard], here: Sequence[NetworkCard], named: Mapping[str, str]
) -> _Found:
    found: _Found = {}
    for old, new in named.items():
        number = saved.index(_card(saved, old, "this image"))
        card = _card(here, new, "this machine")
        if number in found:
            raise UsageError(f"--nic names {saved[number].title} twice")
        if card in _taken(found):
            raise UsageError(
                f"--nic gives {card.describe()} to two saved cards",
                hint="Give each saved card a card of its own; nothing was written.",
            )
        found[number] = (card, CardBasis.NAMED)
    return found


def _card(cards: Sequence[NetworkCard], name: str, owner: str) -> NetworkCard:
    wanted = name.lower().replace("-", ":")
    ways: tuple[Callable[[NetworkCard], bool], ...] = (
        lambda card: card.mac == wanted,
        lambda card: card.name == name,
        lambda card: card.place == name,
        lambda card: name in card.predicted,
    )
    for is_meant in ways:
        meant = [card for card in cards if is_meant(card)]
        if len(meant) == 1:
            return meant[0]
        if meant:
            break
    known = "; ".join(f"{card.title}, {card.describe()}" for card in cards)
    problem = "more than one network card" if meant else "no network card"
    raise UsageError(
        f"{owner} has {problem} {name}",
        hint=f"It has {known}." if known else "It has none that is known.",
    )


def _match_alike(
    saved: Sequence[NetworkCard],
    here: Sequence[NetworkCard],
    found: _Found,
    basis: CardBasis,
    same: Callable[[NetworkCard, NetworkCard], bool],
) -> None:
    """Match what is alike on either side once; of cards that share an address, none is known by it."""
    left, free = _left(saved, found), _free(here, found)
    for number in left:
        fitting = [card for card in free if same(saved[number], card)]
        rivals = [other for other in left if same(saved[other], saved[number])]
        if len(fitting) == 1 and len(rivals) <= 1:
            found[number] = (fitting[0], basis)


def _match_rest(saved: Sequence[NetworkCard], here: Sequence[NetworkCard], found: _Found) -> None:
    left, free = _left(saved, found), _free(here, found)
    if len(left) != len(free):
        return
    basis = CardBasis.ONLY_ONE if len(left) == 1 else CardBasis.ORDER
    pairs = zip(
        sorted(left, key=lambda number: saved[number].place),
        sorted(free, key=lambda card: card.place),
        strict=True,
    )
    found.update((number, (card, basis)) for number, card in pairs)


def _left(saved: Sequence[NetworkCard], found: _Found) -> list[int]:
    return [number for number in range(len(saved)) if number not in found]


def _free(here: Sequence[NetworkCard], found: _Found) -> list[NetworkCard]:
    taken = _taken(found)
    return [card for card in here if card not in taken]


def _taken(found: _Found) -> list[NetworkCard]:
    return [card for card, _ in found.values()]


def _same_mac(one: NetworkCard, other: NetworkCard) -> bool:
    return one.mac is not None and one.mac == other.mac


def _same_place(one: NetworkCard, other: NetworkCard) -> bool:
    return one.place == other.place and one.driver == other.driver
