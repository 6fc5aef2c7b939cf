"""A capture that is held up between its last look and writing its image says what is there."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imager.errors import ContentRemoved, UntrustedObject
from imager.repository import pack, session
from imager.repository.backend.directory import DirectoryBackend
from imager.repository.backend.protocol import Buffer
from imager.repository.retrieval import Unlocked
from imager.upkeep import membership
from tests.conftest import Tiny
from tests.unit.upkeep.test_prune import age, content, data, prune

_LONG = 2 * 3600.0


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_SIZE", 1 << 18)


def capture_held_up(
    tiny: Tiny, text: bytes, scratch: Path, meanwhile: Callable[[], object]
) -> None:
    """Capture, and stand still for two hours right before the image is written."""
    passed = [0.0]
    put_new = DirectoryBackend.put_new

    def hold_up(self: DirectoryBackend, name: str, parts: Sequence[Buffer]) -> bool:
        if name.startswith("images/"):
            passed[0] += _LONG
            meanwhile()
        return put_new(self, name, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_uptime", lambda: passed[0])
        patch.setattr(DirectoryBackend, "put_new", hold_up)
        tiny.add({"a": text}, scratch, "late")


def images(tiny: Tiny) -> list[str]:
    repository = tiny.open()
    found, _ = repository.images(repository.credential_keys(tiny.credential))
    return [image.id for image in found if image.summary.machine_name == "late"]


def test_an_image_whose_packs_are_gone_is_said_to_be_there_and_incomplete(
    tiny: Tiny, tmp_path: Path
) -> None:
    text = data()
    old = frozenset({tiny.add({"a": text}, tmp_path)})

    def remove() -> None:
        prune(tiny, old)
        age(tiny)
        prune(tiny, old)

    with pytest.raises(ContentRemoved) as error:
        capture_held_up(tiny, text, tmp_path, remove)
    (late,) = images(tiny)
    assert late[:12] in error.value.message
    assert "it is there, and is not complete" in error.value.message
    tiny.add({"a": text}, tmp_path, "again")
    assert content(tiny.open(), tiny, late) == {"a": text}, "the hint promises that"


def test_an_image_whose_packs_may_go_is_said_to_be_there(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    old = frozenset({tiny.add({"a": text}, tmp_path)})

    def condemn() -> None:
        prune(tiny, old)
        age(tiny)

    with pytest.raises(ContentRemoved) as error:
        capture_held_up(tiny, text, tmp_path, condemn)
    (late,) = images(tiny)
    assert late[:12] in error.value.message
    assert "it is there, and complete now" in error.value.message
    prune(tiny, old)
    assert content(tiny.open(), tiny, late) == {"a": text}


def test_an_image_of_a_credential_that_was_revoked_meanwhile_is_said_to_be_there(
    tiny: Tiny, tmp_path: Path
) -> None:
    def revoke() -> None:
        repository = tiny.open()
        unlocked = Unlocked(repository, tiny.key)
        made = membership.plan_revocation(repository, unlocked, "test machine", "stolen")
        membership.revoke(repository, made)

    with pytest.raises(UntrustedObject, match="was written, and is not believed") as error:
        capture_held_up(tiny, data(), tmp_path, revoke)
    assert "key credential" in error.value.hint
    assert len(list((tiny.path / "images").iterdir())) == 1


def test_an_image_that_lost_nothing_is_no_error(tiny: Tiny, tmp_path: Path) -> None:
    text = data()
    capture_held_up(tiny, text, tmp_path, lambda: None)
    assert content(tiny.open(), tiny, "late") == {"a": text}
