import importlib.metadata
import json
import marshal
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from bootmedia import layer, wheels
from bootmedia.config import MediumConfig
from bootmedia.rootfs import SITE_PACKAGES, Base
from imager.network_settings import NetworkSettings
from imager.repository.crypto.recipient import RecipientKey
from imager.repository.keyring import LockedRecoveryKey
from imager.repository.store_keys import StoreKeys
from tests.stores.ssh import make_key


def _points() -> dict[str, str]:
    points = importlib.metadata.entry_points(group="remetal.commands")
    return {point.name: point.value for point in points}


def _unpacked(base: Base, config: MediumConfig, place: Path) -> Path:
    archive, _ = layer.build(base, config)
    place.mkdir()
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories"], input=archive, cwd=place, check=True
    )
    return place


def test_what_a_rescued_machine_has_no_use_for_stays_out() -> None:
    paths = layer.sources()
    assert "imager/console.py" in paths
    assert "restore/commands/rescue.py" in paths
    assert not [path for path in paths if path.startswith(("imager/upkeep/", "restore/drill/"))]
    assert not [path for path in paths if "__pycache__" in path or path.endswith(".md")]


def test_the_restorer_is_there_and_drills_are_not() -> None:
    kept = layer.usable_commands(layer.sources(), _points())
    assert {"rescue", "restore", "images", "show"} <= set(kept)
    assert not {"drill", "media"} & set(kept)


def test_a_command_that_needs_what_is_left_out_goes_too() -> None:
    files = {
        "imager/__init__.py": b"",
        "imager/errors.py": b"class E: ...",
        "imager/good.py": b"from imager.errors import E\nimport os",
        "imager/bad.py": b"import imager.deep",
        "imager/deep.py": b"def f():\n    from imager import upkeep",
        "imager/lost.py": b"from imager.gone import x",
        "imager/relative.py": b"from .deep import f",
        "imager/round.py": b"import imager.trip",
        "imager/trip.py": b"import imager.round",
    }
    names = ("good", "bad", "lost", "relative", "round", "absent")
    points = {name: f"imager.{name}:{name}" for name in names}
    assert set(layer.usable_commands(files, points)) == {"good", "round"}


def test_what_only_type_checkers_import_is_not_brought() -> None:
    source = b"""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from stubs import Client
else:
    import other
def f():
    import deep
"""
    assert layer.imported_modules({"imager/x.py": source}) == {"typing", "other", "deep"}


def test_every_import_on_the_medium_is_brought() -> None:
    modules = layer.imported_modules(layer.sources())
    others = modules - sys.stdlib_module_names - {"imager", "restore", "bootmedia"}
    names = {line.partition("==")[0].lower() for line in wheels.requirements(modules)}
    distributions = importlib.metadata.packages_distributions()
    missing = {
        module
        for module in others
        if not names & {name.lower() for name in distributions.get(module, ())}
    }
    assert missing == set()


def test_what_only_builds_media_is_not_brought() -> None:
    lines = wheels.requirements(layer.imported_modules(layer.sources()))
    assert not [line for line in lines if line.startswith(("pycdlib", "qemu"))]


def test_modules_are_compiled_so_that_no_time_stamp_matters(base: Base, tmp_path: Path) -> None:
    place = _unpacked(base, MediumConfig(), tmp_path / "out")
    site = place / SITE_PACKAGES
    compiled = site / "imager/__pycache__/console.cpython-311.pyc"
    data = compiled.read_bytes()
    assert int.from_bytes(data[4:8], "little") == 1  # by hash, and never compared
    assert marshal.loads(data[16:]).co_filename == f"/{SITE_PACKAGES}/imager/console.py"  # noqa: S302


def test_remetal_on_the_medium_runs(base: Base, tmp_path: Path) -> None:
    place = _unpacked(base, MediumConfig(), tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", "from imager.console import main; main()", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(place / SITE_PACKAGES), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "rescue" in done.stdout
    assert "media" not in done.stdout.partition("Commands:")[2]


def test_what_the_restorer_is_told(base: Base, tmp_path: Path) -> None:
    key = tmp_path / "my.key"
    LockedRecoveryKey.lock(RecipientKey.generate(), "secret", "test", None).write(key)
    config = MediumConfig(
        title="Ward 'A'", keyboard="de", recovery_key=key, repositories=("/srv/images",)
    )
    place = _unpacked(base, config, tmp_path / "out")
    told = json.loads((place / "etc/remetal/medium.json").read_text())
    assert told["title"] == "Ward 'A'"
    assert told["repositories"] == ["/srv/images"]
    uuid.UUID(told["medium"])
    on_medium = place / told["recovery_key"].lstrip("/")
    assert on_medium.read_bytes() == key.read_bytes()
    assert stat.S_IMODE(on_medium.stat().st_mode) == 0o600
    assert "loadkeys --quiet de" in (place / "init").read_text()


@pytest.mark.parametrize(
    "script", ["init", "usr/local/lib/remetal/session", "usr/local/sbin/reboot"]
)
def test_scripts_are_sound(base: Base, tmp_path: Path, script: str) -> None:
    place = _unpacked(base, MediumConfig(keyboard="de"), tmp_path / "out")
    subprocess.run(["sh", "-n", place / script], check=True)
    assert (place / script).stat().st_mode & 0o111 == 0o111


def test_equal_input_gives_equal_media(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = layer.build(base, MediumConfig())
    assert layer.build(base, MediumConfig()) == first
    assert layer.build(base, MediumConfig(title="another"))[1] != first[1]


def test_what_stores_need_lies_where_the_description_says(base: Base, tmp_path: Path) -> None:
    make_key(tmp_path / "host")
    public = " ".join((tmp_path / "host.pub").read_text().split()[:2])
    sealed = StoreKeys(b"no word of any source").seal("four random words")
    config = MediumConfig(
        repositories=("ssh://backup@10.0.0.5/srv/images",),
        host_keys=(f"10.0.0.5 {public}",),
        network=NetworkSettings(address="10.0.0.9/24", gateway=("10.0.0.1",)),
    )
    archive, _ = layer.build(base, config, sealed)
    assert b"no word of any source" not in archive
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories"], input=archive, cwd=root, check=True
    )
    description = json.loads((root / "etc/remetal/medium.json").read_text())
    assert description["network"]["address"] == "10.0.0.9/24"
    assert description["authorities"] is None
    keys = root / description["store_keys"].lstrip("/")
    assert keys.read_bytes() == sealed
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    hosts = root / description["known_hosts"].lstrip("/")
    assert hosts.read_text() == f"10.0.0.5 {public}\n"
    script = root / "usr/local/lib/remetal/dhcp"
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    subprocess.run(["sh", "-n", script], check=True)
