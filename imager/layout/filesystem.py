"""What a volume holds, as its own signature says."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A filesystem, swap area or other signature in a volume.

    Attributes:
        type: libblkid's TYPE, such as "ext4", "vfat", "swap", "crypto_LUKS".
        uuid: libblkid's UUID, or None.
        label: or None.
    """

    type: str
    uuid: str | None = None
    label: str | None = None

    @property
    def title(self) -> str:
        """How people call it: "ext4 "root"" with its label, else its type."""
        return self.type + (f' "{self.label}"' if self.label else "")
