import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from imager.errors import ConfigError
from restore.drill import report
from restore.drill.evidence import Difference
from restore.drill.report import Outcome, Result
from restore.drill.steps import Step

GOOD = Result(
    name="ward",
    firmware="uefi",
    medium="cd",
    accelerator="tcg",
    outcome=Outcome.PROVEN,
    proof="all 7 facts are what they were",
    steps=(
        Step("capture", 0.0, 12.0, 812 << 20),
        Step("rescue: write", 12.0, 30.0, None, part_of_rto=True),
        Step("rescue: write", 42.0, 30.5, None, part_of_rto=True),
    ),
    rto=95.0,
    used_bytes=812 << 20,
    stored_bytes=300 << 20,
    medium_bytes=101 << 20,
    facts=7,
)
BAD = Result(
    name="<lab>",
    firmware="bios",
    medium="usb",
    accelerator="tcg",
    outcome=Outcome.FAILED,
    proof="1 of 7 facts are not what they were",
    steps=(Step("capture", 0.0, 10.0),),
    facts=7,
    differences=(Difference("rows", "17", "18"),),
    kept=Path("/srv/kept"),
)


def _cells(results: list[Result]) -> dict[str, list[str]]:
    _, rows = report.tables(results)[0]
    return {row[0]: row[1:] for row in rows}


def test_one_column_for_each_drill() -> None:
    columns, rows = report.tables([GOOD, BAD])[0]
    assert columns == ["", ">ward (uefi, cd)", "><lab> (bios, usb)"]
    assert all(len(row) == 3 for row in rows)


def test_of_many_drills_there_is_one_row_for_each() -> None:
    varied = replace(GOOD, variation="larger")
    assert len(report.tables([GOOD])) == 1
    [(columns, rows)] = report.tables([GOOD, varied, BAD, GOOD])
    assert [len(row) for row in rows] == [len(columns)] * 4
    assert rows[1][:5] == ["ward", "uefi", "cd", "larger", "came back"]
    assert varied.title == "ward (uefi, cd, larger)"


def test_steps_of_one_name_are_added_up_and_missing_ones_are_a_dash() -> None:
    assert _cells([GOOD, BAD])["rescue: write"] == ["1 min 00 s", "-"]


def test_sizes_and_rto_are_for_people() -> None:
    cells = _cells([GOOD, BAD])
    assert cells["used on the machine"] == ["812.0 MiB", "-"]
    assert cells["RTO"] == ["1 min 35 s", "-"]
    assert cells["differences"] == ["0", "1"]
    assert cells["the machine"] == ["came back", "FAILED"]


def test_every_difference_is_said_with_before_and_after() -> None:
    text = "\n".join(report.lines(BAD))
    assert "rows" in text
    assert "before: 17" in text
    assert "after:  18" in text
    assert "/srv/kept" in text


def test_report_and_picture_are_written(tmp_path: Path) -> None:
    report.write([GOOD, BAD], tmp_path / "new" / "folder")
    document = json.loads((tmp_path / "new/folder/report.json").read_text())
    assert [drill["outcome"] for drill in document["drills"]] == ["came back", "FAILED"]
    assert document["drills"][0]["steps"][0]["seconds"] == 12.0
    assert document["drills"][1]["kept"] == "/srv/kept"


def test_the_picture_is_xml_with_a_bar_for_each_step() -> None:
    root = ET.fromstring(report.picture([GOOD, BAD]))  # noqa: S314  our own
    bars = [bar for bar in root.iter("{http://www.w3.org/2000/svg}rect") if bar.get("rx")]
    assert len(bars) == 4
    texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text.startswith("<lab> (bios, usb)") for text in texts)


def test_a_picture_of_nothing_is_no_error() -> None:
    assert report.picture([]).startswith("<svg")


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    assert report.read(tmp_path) == []
    report.write([GOOD, BAD], tmp_path)
    assert report.read(tmp_path) == [GOOD, BAD]
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "timeline.svg"}


def test_a_report_stays_whole_when_there_is_no_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.write([GOOD], tmp_path)

    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        report.write([GOOD, BAD], tmp_path)
    monkeypatch.undo()
    assert report.read(tmp_path) == [GOOD]


def test_a_report_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"drills": [{}]}')
    with pytest.raises(ConfigError, match=r"report\.json is no report of drills"):
        report.read(tmp_path)
