"""Linters are tests."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PACKAGES = ("imager", "restore", "bootmedia")
CODE = (*PACKAGES, "tests", "vm-fixtures")
LONGEST = 500
NAMELESS = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}


def run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def modules() -> list[Path]:
    return [path for package in CODE for path in (ROOT / package).rglob("*.py")]


def test_ruff() -> None:
    run(str(BIN / "ruff"), "check", *CODE)


def test_ruff_format() -> None:
    run(str(BIN / "ruff"), "format", "--check", *CODE)


def test_mypy_strict() -> None:
    run(str(BIN / "mypy"))


def test_test_modules_outside_packages_have_names_of_their_own() -> None:
    """Two of one name can't be imported in the same run, and each alone can."""
    paths = (ROOT / "tests").rglob("test_*.py")
    names = Counter(path.name for path in paths if not (path.parent / "__init__.py").exists())
    assert [name for name, count in names.items() if count > 1] == []


def test_import_contracts() -> None:
    run(str(BIN / "lint-imports"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_of_a_size_to_read(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST
    assert path.stem not in NAMELESS


def test_only_the_console_prints_or_exits() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path == ROOT / "imager/console.py":
                continue
            text = path.read_text("utf-8").partition('if __name__ == "__main__":')[0]
            assert not re.search(r"(?<![\w.])print\(|sys\.exit\(|raise SystemExit", text), path


def test_only_iso_uses_pycdlib() -> None:
    users = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(import|from) pycdlib", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert users == ["bootmedia/iso.py"]


def test_only_process_starts_programs() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path != ROOT / "imager/process.py":
                assert "subprocess.run(" not in path.read_text("utf-8"), path
