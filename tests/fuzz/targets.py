"""What is fuzzed: every parser of the format, behind its seals and signatures, and of the links.

A target takes any bytes. It may return, or raise a RemetalError (readers of disks also
StructureError and UncertainMapError); whatever else it raises is a bug. Where the format seals or signs, the target
seals and signs what it is given: that is what somebody with a credential can do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imager.errors import RemetalError
from imager.extents.extents import UncertainMapError
from imager.probe.structure import StructureError
from tests.fuzz import disks, keyfiles, layers, links, objects, sealed, statements

REFUSALS = (RemetalError, StructureError, UncertainMapError)


@dataclass(frozen=True)
class Target:
    """A parser that is fuzzed.

    Attributes:
        name: of the target.
        parse: what is done with the bytes.
        seeds: valid inputs to start from.
    """

    name: str
    parse: Callable[[bytes], None]
    seeds: tuple[bytes, ...]

    def accepts(self, data: bytes) -> bool:
        """Parse; return whether it was taken for valid. Any other exception is a bug."""
        try:
            self.parse(data)
        except REFUSALS:
            return False
        return True


TARGETS = {
    name: Target(name, parse, tuple(seeds))
    for module in (objects, sealed, statements, keyfiles, disks, layers, links)
    for name, (parse, seeds) in module.targets().items()
}
