"""The tree of errors is what its docstring draws."""

import re

from imager import errors
from imager.errors import RemetalError


def tree() -> dict[str, type[RemetalError]]:
    found: dict[str, type[RemetalError]] = {}
    waiting: list[type[RemetalError]] = [RemetalError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found


def drawn() -> dict[str, int]:
    assert errors.__doc__
    rows = re.findall(r"^[ │├└─]+(\w+) +(\d+)", errors.__doc__, re.MULTILINE)
    return {name: int(code) for name, code in rows}


def test_drawing_is_the_tree() -> None:
    defined = {
        name: kind.exit_code for name, kind in tree().items() if kind.__module__ == "imager.errors"
    }
    assert drawn() == defined


def test_every_error_can_be_told_apart() -> None:
    kinds = [kind for kind in tree().values() if kind.__module__ == "imager.errors"]
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    assert len({kind.id for kind in kinds}) == len(kinds)
    assert all(0 < kind.exit_code < 256 for kind in kinds)


def test_what_a_module_makes_of_one_for_itself_is_the_same_to_everybody_else() -> None:
    for kind in tree().values():
        if kind.__module__ != "imager.errors":
            assert (kind.id, kind.exit_code) == (kind.__bases__[0].id, kind.__bases__[0].exit_code)
