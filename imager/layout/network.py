"""Network cards: what a machine was connected by, and what its configuration may name them by."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NetworkCard:
    """A physical network card; bridges, bonds, VLANs and tunnels are made anew by the system itself.

    Attributes:
        name: what the system on the disks calls it, such as "eth0". None where another system looked
            (as the rescue medium does): its name for the card says nothing about the other's.
        predicted: what udev makes of its place and its address, such as "eno1" and "enp1s0", in the
            order in which it prefers them; a system that names cards by udev uses one of these.
        mac: its permanent address, such as "52:54:00:12:34:56", lower case; None where it has none,
            and gets another one each time it starts.
        driver: the kernel's name of it, or None.
        place: where it is on its bus: the address of a PCI function as "0000:01:00.0", of another
            bus what the kernel calls the device there. A second port of the same device has its
            number behind a slash.
    """

    name: str | None
    predicted: tuple[str, ...]
    mac: str | None
    driver: str | None
    place: str

    @property
    def title(self) -> str:
        """The name, or what it may be, for people."""
        if self.name is not None:
            return self.name
        return " or ".join(self.predicted) or "a card without a known name"

    def describe(self) -> str:
        """Say what tells it from others: address, driver and place."""
        return (
            f"{self.mac or 'no address of its own'} ({self.driver or 'no driver'} at {self.place})"
        )
