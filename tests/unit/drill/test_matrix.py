from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from imager.errors import ConfigError
from restore.drill import fixture, matrix, run
from restore.drill.bring_back import Settings
from restore.drill.fixture import checkout
from restore.drill.matrix import Cell, cross, drill_all, read_matrix, went_well
from restore.drill.qemu import TCG
from restore.drill.report import Outcome, Result
from restore.drill.scenario import Medium
from restore.drill.variation import Variation
from restore.drill.vm_spec import Firmware


def test_a_row_is_a_drill_for_each_of_its_variations(tmp_path: Path) -> None:
    path = tmp_path / "matrix.toml"
    path.write_text(
        '[[drill]]\nmachine = "a"\n'
        '[[drill]]\nmachine = "b"\nvariations = ["same", "larger"]\n'
        'firmware = "secureboot"\nmedium = "usb"\n'
    )
    assert read_matrix(path) == (
        Cell("a", Variation.SAME),
        Cell("b", Variation.SAME, Firmware.SECUREBOOT, Medium.USB),
        Cell("b", Variation.LARGER, Firmware.SECUREBOOT, Medium.USB),
    )


@pytest.mark.parametrize(
    "text", ["[[drill]]", '[[drill]]\nmachine = "a"\nvariations = ["odd"]', "["]
)
def test_a_file_that_names_no_drills_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "matrix.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="names no drills"):
        read_matrix(path)


def test_every_machine_is_in_the_matrix() -> None:
    fixtures = checkout() / "vm-fixtures"
    drilled = {cell.machine for cell in read_matrix(fixtures / "matrix.toml")}
    built = {path.stem for path in (fixtures / "machines").glob("*.toml")}
    assert drilled == built - {"bios-ext4-reordered"}  # which is there for deduplication


def test_machines_and_variations_are_crossed() -> None:
    assert cross(["a", "b"], ["same", "larger"])[1:3] == (
        Cell("a", Variation.LARGER),
        Cell("b", Variation.SAME),
    )


def test_drills_share_a_medium_and_each_is_told_of_whatever_becomes_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    media: list[Path] = []

    def build_medium(iso: Path, *_: object) -> None:
        iso.touch()
        media.append(iso)

    def build(name: str, _: object) -> fixture.Fixture:
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(matrix, "build_medium", build_medium)
    monkeypatch.setattr(fixture, "build", build)
    told: list[Sequence[Result]] = []
    results = drill_all(
        cross(["a", "b"], ["same", "larger"]),
        run.Choices(None, Medium.CD, None, tmp_path / "cache"),
        Settings(TCG, lambda _: None),
        lambda so_far: told.append(tuple(so_far)),
    )
    assert [len(each) for each in told] == [1, 2, 3, 4]
    assert told[-1] == tuple(results)
    assert {result.outcome for result in results} == {Outcome.FAILED}
    assert all("No space left" in result.proof for result in results)
    assert len(media) == 1
    assert not media[0].exists()


def test_every_machine_has_its_turn_before_one_has_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = cross(["a", "b"], ["same", "larger", "reversed"])
    drilled: list[Cell] = []

    def drill(cell: Cell, *_: object) -> Result:
        drilled.append(cell)
        return _result(cell)

    monkeypatch.setattr(Cell, "drill", drill)
    choices = run.Choices(None, Medium.CD, tmp_path / "rescue.iso", tmp_path)
    results = drill_all(cells, choices, Settings(TCG, lambda _: None), lambda _: None)
    assert drilled == [cells[0], cells[3], cells[1], cells[4], cells[2], cells[5]]
    assert results == [_result(cell) for cell in cells]


def test_drills_beside_each_other_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = cross(["a", "b", "c"], ["same", "larger"])
    monkeypatch.setattr(Cell, "drill", lambda cell, *_: _result(cell))
    told: list[Sequence[Result]] = []
    choices = run.Choices(None, Medium.CD, tmp_path / "rescue.iso", tmp_path)
    results = drill_all(cells, choices, Settings(TCG, lambda _: None), told.append, lanes=3)
    assert results == [_result(cell) for cell in cells]
    assert [len(each) for each in told] == [1, 2, 3, 4, 5, 6]


def test_what_went_well_before_is_not_drilled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure = Cell("a", Variation.SAME, Firmware.SECUREBOOT, Medium.USB)
    cells = (*cross(["a", "b"], ["same", "smaller"]), secure)
    before = [
        _result(cells[0]),
        replace(_result(cells[1]), outcome=Outcome.REFUSED),
        replace(_result(cells[2]), outcome=Outcome.FAILED),
        replace(_result(cells[3]), medium="usb"),
    ]
    choices = run.Choices(None, Medium.CD, tmp_path / "rescue.iso", tmp_path)
    known = went_well(cells, choices, before)
    assert known == {cells[0]: before[0], cells[1]: before[1]}
    drilled: list[Cell] = []

    def drill(cell: Cell, *_: object) -> Result:
        drilled.append(cell)
        return _result(cell)

    monkeypatch.setattr(Cell, "drill", drill)
    told: list[Sequence[Result]] = []
    results = drill_all(cells, choices, Settings(TCG, lambda _: None), told.append, known=known)
    assert drilled == [cells[2], secure, cells[3]]
    assert results == [before[0], before[1], *(_result(cell) for cell in cells[2:])]
    assert [len(each) for each in told] == [3, 4, 5]


def _result(cell: Cell) -> Result:
    firmware, medium = cell.firmware or Firmware.UEFI, cell.medium or Medium.CD
    return Result(
        cell.machine, firmware, medium, "tcg", Outcome.PROVEN, "", variation=cell.variation
    )
