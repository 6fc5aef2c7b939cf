"""Network cards of a machine that is captured while it, or a rescue medium, runs on it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from imager import netdev
from imager.layout.network import NetworkCard


def read_cards(
    disks: Iterable[Path],
    system: Iterable[Path],
    look: Callable[[], tuple[NetworkCard, ...]] = netdev.physical_cards,
) -> tuple[NetworkCard, ...]:
    """Return the network cards of this machine; none where they can't be listed.

    What a card is called is only known where the system that runs here is the one that is captured.

    Args:
        disks: that are captured, all built into this machine.
        system: that the system which runs here lies on.
        look: returns the cards here.
    """
    try:
        cards = look()
    except OSError:
        return ()
    if set(disks) & set(system):
        return cards
    return tuple(replace(card, name=None) for card in cards)
