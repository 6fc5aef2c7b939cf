"""A repository without its configuration is told from none, and the way back that is said works."""

from collections.abc import Callable
from pathlib import Path

import pytest

from imager import console
from imager.errors import NotARepository, RemetalError
from tests.conftest import Tiny
from tests.unit.upkeep.covered_repository import cover


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x00\xff" * 2000),
        lambda path: path.write_bytes(path.read_bytes().replace(b"created", b"creates")),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 2')),
    ],
    ids=["lost", "empty", "garbage", "unknown field", "version"],
)
def test_the_hint_brings_it_back(
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], object],
) -> None:
    tiny.add({"a": b"content" * 1000}, tmp_path)
    cover(tiny)
    config = tiny.path / "config"
    before = config.read_bytes()
    harm(config)
    assert not config.exists() or config.read_bytes() != before
    with pytest.raises(RemetalError, match=r"config|version") as error:
        tiny.open()
    assert f"`remetal repair {tiny.path}`" in error.value.hint
    assert console.run(["repair", str(tiny.path)]) == 0
    assert config.read_bytes() == before
    capsys.readouterr()


@pytest.mark.parametrize("junk", [None, b"junk"])
def test_where_there_never_was_one_nothing_is_to_be_repaired(
    tmp_path: Path, junk: bytes | None
) -> None:
    if junk is not None:
        (tmp_path / "config").write_bytes(junk)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").touch()
    with pytest.raises(NotARepository) as error:
        Tiny(tmp_path, None, None).open()  # type: ignore[arg-type]
    assert "repair" not in error.value.hint
    assert "check the path" in error.value.hint.lower()
