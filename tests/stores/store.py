"""What the tests know of a store."""

from typing import Protocol

from imager.repository.backend.place import Place


class Store(Protocol):
    """A real store that runs."""

    def new_place(self) -> Place:
        """Return an empty place of its own in this store."""
        ...
