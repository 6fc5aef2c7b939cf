"""LUKS containers, as their headers describe them; nothing is known of what they hold."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LuksContainer:
    """A LUKS container. It is never opened here, so the layout has nothing inside it.

    Attributes:
        place: id of the volume or md array that it lies in.
        version: 1 or 2.
        uuid: as cryptsetup writes it.
        label: or None; LUKS1 has none.
        cipher: such as "aes-xts-plain64".
        key_slots: how many are in use.
        header: bytes from the start to the encrypted data.
        damaged_header: the first of the two headers of LUKS2 is damaged; the second one was read.
    """

    place: str
    version: int
    uuid: str
    label: str | None
    cipher: str
    key_slots: int
    header: int
    damaged_header: bool = False

    @property
    def title(self) -> str:
        """How people call it: "LUKS2 container 'vault'"."""
        return f"LUKS{self.version} container" + (f" '{self.label}'" if self.label else "")
