"""What scripts and people see of the command itself."""

import importlib.metadata
import json
import signal
import subprocess
import sys

import click
import pytest

from imager import console
from imager.console import Output
from imager.errors import Interrupted, NoRoom, UnknownImage, UsageError

VERBS = sorted(point.name for point in importlib.metadata.entry_points(group="remetal.commands"))


def subcommands(name: str) -> list[list[str]]:
    command = console.cli.get_command(click.Context(console.cli), name)
    assert command is not None
    if isinstance(command, click.Group):
        return [[name, *path[1:]] for sub in command.commands for path in [[name, sub]]]
    return [[name]]


ALL = [words for verb in VERBS for words in subcommands(verb)]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_verb_has_help_with_an_example_and_json(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert "--json" in text


def test_no_secret_comes_from_the_command_line() -> None:
    for words in ALL:
        command: click.Command | None = console.cli
        for word in words:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)
        assert command is not None
        for parameter in command.params:
            assert parameter.name not in {"passphrase", "password", "secret"}


def test_completion_knows_the_verbs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imager.console"],
        env={"_IMAGER_CONSOLE_COMPLETE": "", "_REMETAL_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "_remetal_completion" in done.stdout


@pytest.mark.parametrize("words", [[], ["key"]], ids=["remetal", "key"])
def test_no_summary_is_cut_off(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run([*words, "--help"]) == 0
    _, _, summaries = capsys.readouterr().out.partition("Commands:\n")
    cut = [line.split()[0] for line in summaries.splitlines() if line.endswith("...")]
    assert not cut


@pytest.mark.parametrize(
    "words", ["check ", "prune ", "repair ", "key list ", "hold ", "drill ", "show "]
)
def test_completion_of_a_repository_is_a_directory(words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from imager.console import cli; cli(prog_name='remetal')"],
        env={
            "_REMETAL_COMPLETE": "bash_complete",
            "COMP_WORDS": f"remetal {words}/sr",
            "COMP_CWORD": str(len(words.split()) + 1),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "dir,/sr"


def make(problem: BaseException | None) -> click.Command:
    @click.command()
    @console.verb
    def broken(out: Output) -> None:
        out.document({"half": "done"})
        if problem is not None:
            raise problem

    return broken


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (UnknownImage("there is no such image"), UnknownImage.exit_code),
        (OSError(28, "No space left on device", "/somewhere"), NoRoom.exit_code),
        (KeyboardInterrupt(), Interrupted.exit_code),
        (click.UsageError("bad words"), UsageError.exit_code),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problem: BaseException,
    code: int,
) -> None:
    monkeypatch.setattr(console.cli, "get_command", lambda *_: make(problem))
    assert console.run(["broken"]) == code
    assert capsys.readouterr().out == ""


def test_json_error_keeps_the_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.cli, "get_command", lambda *_: make(UnknownImage("none")))
    with pytest.raises(SystemExit) as stopped:
        console.run(["broken", "--json"])
    assert stopped.value.code == UnknownImage.exit_code
    document = json.loads(capsys.readouterr().out)
    assert document["half"] == "done"
    assert document["error"]["id"] == "unknown-image"


def test_an_unforeseen_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.cli, "get_command", lambda *_: make(OSError(5, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        console.run(["broken"])


def test_plain_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("copy", 1000) as advance:
        advance(400)
        advance(600)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("copy: 100 % of 1000 B")
    assert lines[0].endswith("left")


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(quiet=True)
    out.remark("remark")
    with out.progress("copy", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_asks_a_verb_to_end_lets_it_clean_up(number: signal.Signals) -> None:
    program = """
import click, sys, time
from imager import console

@click.command()
def wait():
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

console._Verbs.get_command = lambda *_: wait
sys.argv = ["remetal", "wait"]
console.main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "at work\n"
        running.send_signal(number)
        output, complaint = running.communicate(timeout=60)
    assert output == "cleaned up\n"
    assert "stopped on request" in complaint
    assert running.returncode == Interrupted.exit_code


def test_what_the_caller_ignores_stays_ignored() -> None:
    program = """
import signal, sys
from imager import console

sys.argv = ["remetal", "--version"]
try:
    console.main()
finally:
    print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
"""
    shell = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", program]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout.endswith(
        "True\n"
    )
