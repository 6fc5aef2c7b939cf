"""A step that makes a restored machine start, run as a plan runs it."""

from restore.boot_steps import MapCards, MapDisks
from restore.execute import Outcome, execute
from restore.plan import Plan


def carried_out(step: MapCards | MapDisks) -> tuple[str, ...]:
    """Run a plan that has no other step, and return its notes."""
    outcomes: list[Outcome] = []
    execute(
        Plan("web1", "id", "4f2a", "2026-01-02T03:04:05Z", (), (step,)),
        object(),  # no step reads it
        advance=lambda _: None,
        record=outcomes.append,
        measure=lambda *_: None,
        log=str,
    )
    names = {MapCards: "map-cards", MapDisks: "map-disks"}
    (outcome,) = outcomes
    assert (outcome.step, outcome.subject) == (names[type(step)], "restored system")
    return outcome.notes
