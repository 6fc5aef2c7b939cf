"""A drill that passed is noted, and retention keeps the image for it."""

from dataclasses import replace
from pathlib import Path

from imager.layout.firmware import Firmware, FirmwareKind
from imager.layout.machine import Machine
from imager.repository.backend.place import Place
from imager.repository.keyring import LockedRecoveryKey
from imager.repository.standing import read_standing
from restore.drill.record import record
from restore.drill.report import Outcome, Result
from restore.drill.run import Subject
from tests.conftest import Tiny

RESULT = Result(
    name="web", firmware="bios", medium="cd", accelerator="tcg", outcome=Outcome.PROVEN, proof="", rto=151.0
)  # fmt: skip


def test_what_passed_is_noted(tiny: Tiny, tmp_path: Path) -> None:
    image = tiny.add({"a": b"a" * 100_000}, tmp_path)
    other = tiny.add({"a": b"b" * 100_000}, tmp_path)
    key = tmp_path / "recovery.key"
    LockedRecoveryKey.lock(tiny.key, "a phrase", "test", tiny.open().id).write(key)
    machine = Machine("1", "web", "x86_64", Firmware(FirmwareKind.BIOS), ())
    subject = Subject(machine, Place(str(tiny.path)), image, 0, 0, key, "a phrase")
    assert record(subject, RESULT)
    assert record(replace(subject, image=other), replace(RESULT, outcome=Outcome.FAILED, rto=None))
    standing = read_standing(tiny.open())
    assert standing.drilled == {image}
    assert not standing.problems
