import time

import pytest

from restore.drill import steps as module
from restore.drill.console_tail import ConsoleTail
from restore.drill.steps import Steps


def test_steps_are_told_when_they_start_and_end() -> None:
    said: list[str] = []
    steps = Steps("ward", said.append)
    with steps.step("capture") as remark:
        remark.size = 1 << 20
        remark.text = "half stored"
    assert said[0] == "ward: capture …"
    assert said[1].startswith("ward: capture: 0.0 s, 1.0 MiB, half stored")
    [step] = steps.done
    assert (step.name, step.size, step.part_of_rto) == ("capture", 1 << 20, False)


def test_a_failing_step_is_recorded_and_the_error_goes_on() -> None:
    said: list[str] = []
    steps = Steps("ward", said.append)
    with pytest.raises(ValueError, match="broken"), steps.step("capture"):
        raise ValueError("broken")
    assert "failed after" in said[-1]
    assert [step.name for step in steps.done] == ["capture"]


def test_a_step_that_is_recorded_in_parts_is_not_kept_itself() -> None:
    steps = Steps("ward", lambda _: None)
    with steps.step("rescue", keep=False):
        pass
    assert steps.done == ()


def test_a_long_step_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TELL", 0.01)
    heard = module.threading.Event()

    def say(text: str) -> None:
        if "so far: writing" in text:
            heard.set()

    steps = Steps("ward", say)
    with steps.step("rescue"):
        steps.hint("writing")
        assert heard.wait(10)


def test_the_host_s_clock_is_understood() -> None:
    steps = Steps("ward", lambda _: None)
    assert steps.at(time.time() - 5) == pytest.approx(steps.now() - 5, abs=0.5)


def test_a_console_becomes_lines_of_text() -> None:
    lines: list[str] = []
    tail = ConsoleTail(lines.append, lambda _: None)
    tail(b"\x1b[2J\x1b[01;01HLoading")
    tail(b" kernel\r\n\r\n\x1b[1;31mred\x1b[0m \xff\n")
    tail(b"login: ")
    assert lines == ["Loading kernel", "red \ufffd"]


def test_a_progress_bar_is_glimpsed_and_told_once() -> None:
    lines: list[str] = []
    glimpses: list[str] = []
    tail = ConsoleTail(lines.append, glimpses.append)
    for percent in (b"10 %", b"50 %", b"100 %"):
        tail(b"\r\x1b[2Kwriting " + percent)
    tail(b"\r\n")
    assert lines == ["writing 100 %"]
    assert glimpses[0] == "writing 10 %"
    assert glimpses[-1] == "writing 100 %"
