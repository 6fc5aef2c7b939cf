"""The one door to external programs.

Every program that remetal calls goes through `run` (or `start`, for one that
stays), so that argv, exit code and stderr are never lost and the environment
is the same everywhere: C locale, UTC, no surprises from the caller's shell.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from imager.errors import ProgramError, ProgramMissing

# sbin is where partitioners and mkfs live; a plain user's PATH leaves it out.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    path = os.environ.get("PATH", "")
    return {
        **os.environ,
        "PATH": f"{path}:{_PATH}" if path else _PATH,
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        **(extra or {}),
    }


def run(
    *argv: str | Path,
    stdin: bytes | None = None,
    timeout: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    accept: Sequence[int] = (0,),
) -> str:
    """Run a program to its end and return its standard output as text.

    Args:
        argv: the program and its arguments; never a shell line.
        stdin: bytes for standard input; empty when not given.
        timeout: seconds after which the program is killed.
        cwd: working directory.
        env: variables on top of the cleaned environment.
        accept: exit codes that count as success.

    Raises:
        ProgramMissing: the program is not installed.
        ProgramError: any other exit code, or the time is over.
    """
    words = tuple(str(word) for word in argv)
    try:
        done = subprocess.run(
            words,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout,
            cwd=cwd,
            env=_environment(env),
            check=False,
        )
    except FileNotFoundError as error:
        if cwd is not None and not cwd.exists():
            raise
        raise ProgramMissing(words) from error
    except subprocess.TimeoutExpired as error:
        text = (error.stderr or b"").decode(errors="replace")
        raise ProgramError(words, -9, f"{text}\nstill running after {timeout} s") from error
    if done.returncode not in accept:
        # Some say on standard output what is wrong: e2fsck, ntfsresize.
        said = done.stderr if done.stderr.strip() else done.stdout
        raise ProgramError(words, done.returncode, said.decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def start(
    *argv: str | Path,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that stays; the caller waits for it or stops it by its handle.

    Raises:
        ProgramMissing: the program is not installed.
    """
    words = tuple(str(word) for word in argv)
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            env=_environment(env),
        )
    except FileNotFoundError as error:
        raise ProgramMissing(words) from error
