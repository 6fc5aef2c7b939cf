"""The one door to external programs."""

import sys

import pytest

from imager import process
from imager.errors import ProgramError, ProgramMissing


def test_output_and_input() -> None:
    assert process.run("cat", stdin=b"hello") == "hello"


def test_failure_keeps_everything() -> None:
    with pytest.raises(ProgramError) as caught:
        process.run("sh", "-c", "echo why >&2; exit 7")
    assert caught.value.returncode == 7
    assert caught.value.argv[0] == "sh"
    assert "why" in caught.value.message


def test_what_a_program_says_elsewhere_is_kept_too() -> None:
    with pytest.raises(ProgramError, match="exit code 1: it is damaged"):
        process.run("sh", "-c", "echo it is damaged; exit 1")


def test_accepted_code() -> None:
    assert process.run("sh", "-c", "echo fine; exit 2", accept=(0, 2)) == "fine\n"


def test_missing_program() -> None:
    with pytest.raises(ProgramMissing) as caught:
        process.run("no-such-program-anywhere")
    assert "no-such-program-anywhere" in caught.value.hint


def test_time_limit() -> None:
    with pytest.raises(ProgramError, match="still running"):
        process.run(sys.executable, "-c", "import time; time.sleep(60)", timeout=0.5)


def test_programs_speak_english_in_utc() -> None:
    assert process.run("sh", "-c", "echo $LC_ALL $TZ").split() == ["C.UTF-8", "UTC"]
