"""Work beside each other, in processes that never stay behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imager.errors import DrillError, ProgramError
from restore.drill.lanes import in_lanes
from restore.drill.vm_spec import VmSpec

# Longer than any test waits: a lane that is not interrupted shows.
_FOR_EVER = 600.0


def test_every_item_is_answered_whatever_the_number_of_lanes() -> None:
    for number in (1, 2, 9):
        answers = dict(in_lanes(lambda item: (item * item, os.getpid()), range(5), number))
        assert [answers[position][0] for position in range(5)] == [0, 1, 4, 9, 16]
        workers = {pid for _, pid in answers.values()}
        assert (os.getpid() in workers) == (number == 1)


@pytest.mark.parametrize("number", [2, 3, 64])
def test_no_processor_is_idle_and_none_has_two_lanes_without_need(number: int) -> None:
    ours = os.sched_getaffinity(0)
    seen = dict(in_lanes(lambda _: os.sched_getaffinity(0), range(number), number))
    shares = [seen[position] for position in range(number)]
    assert set().union(*shares) == ours
    assert max(sum(one in share for share in shares) for one in ours) == -(-number // len(ours))


def test_a_machine_has_no_more_processors_than_its_lane() -> None:
    seen = dict(in_lanes(lambda _: (os.sched_getaffinity(0), VmSpec("m", 64).cpus), range(64), 64))
    assert all(cpus == min(2, len(share)) for share, cpus in seen.values())
    assert VmSpec("m", 64).cpus == min(2, len(os.sched_getaffinity(0)))


def test_what_ends_first_is_yielded_first(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")

    def work(item: str) -> str:
        if item == "slow":
            (tmp_path / "gate").read_bytes()
        return item

    order = []
    for position, answer in in_lanes(work, ["slow", "quick"], 2):
        order.append((position, answer))
        if answer == "quick":
            (tmp_path / "gate").write_bytes(b"open")
    assert order == [(1, "quick"), (0, "slow")]


def _wait_and_tell(folder: Path) -> None:
    try:
        (folder / "waits").touch()
        time.sleep(_FOR_EVER)
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        raise


def _await(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


def test_an_error_comes_whole_and_interrupts_what_runs_beside(tmp_path: Path) -> None:
    def work(item: str) -> None:
        if item == "waits":
            _wait_and_tell(tmp_path)
        _await(tmp_path / "waits")
        raise ProgramError(("mdadm", "--stop"), 3, "busy", hint="Wait.")

    with pytest.raises(ProgramError, match=r"mdadm --stop.*busy") as caught:
        list(in_lanes(work, ["waits", "fails"], 2))
    assert (caught.value.returncode, caught.value.hint) == (3, "Wait.")
    assert (tmp_path / "interrupted").exists()


def test_a_lane_that_is_killed_is_missed() -> None:
    def work(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DrillError, match="ended before its drill did"):
        list(in_lanes(work, [1, 2], 2))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_lanes_are_interrupted_when_who_started_them_ends(
    tmp_path: Path, number: signal.Signals
) -> None:
    program = f"""
from pathlib import Path
from tests.unit.drill.test_lanes import _wait_and_tell
from restore.drill.lanes import in_lanes
from restore.drill.vm_spec import VmSpec
list(in_lanes(_wait_and_tell, [Path({str(tmp_path)!r}, name) for name in "ab"], 2))
"""
    for name in "ab":
        (tmp_path / name).mkdir()
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as running:
        for name in "ab":
            _await(tmp_path / name / "waits")
        running.send_signal(number)
        running.wait(60)
    for name in "ab":
        _await(tmp_path / name / "interrupted")
