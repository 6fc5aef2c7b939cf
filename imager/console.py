"""What a person or a script sees: text, progress, JSON, errors and exit codes.

Only this module prints or exits. Verbs receive an `Output`, libraries receive
at most a callable `advance(bytes)` and raise `imager.errors`.

People read standard output; progress and remarks go to standard error, so
that `--json` output stays one JSON document.
"""

import errno
import functools
import importlib.metadata
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click
from click.shell_completion import CompletionItem
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.tree import Tree

import imager
from imager.errors import Interrupted, NoRoom, RemetalError, UsageError
from imager.units import format_duration, format_size

_GROUP: Final = "remetal.commands"
_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)
_PIPE_WIDTH: Final = 200
_PLAIN_INTERVAL: Final = 5.0  # seconds between progress lines without a terminal

# Control characters and those that turn the direction of text: names in a repository may hold them,
# and a terminal would obey. And what stands for bytes of a path that are no text.
_STEERING: Final = dict.fromkeys(
    (
        *(code for code in range(0x20) if chr(code) not in "\n\t"),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    ),
    "\N{REPLACEMENT CHARACTER}",
)

Advance = Callable[[int], None]


class Output:
    """Where one verb writes: for people, or one JSON document for scripts.

    Args:
        as_json: emit JSON on standard output and nothing else there.
        quiet: no progress and no remarks.

    Attributes:
        plain: progress as lines now and then, also on a terminal: for serial consoles, where a
            bar that is drawn many times a second floods the line.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.plain = False
        self._document: dict[str, Any] = {}
        # Without a terminal nothing wraps: logs and pipes get whole lines.
        wide = None if sys.stdout.isatty() else _PIPE_WIDTH
        self._out = Console(highlight=False, soft_wrap=True, width=wide)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """Print a line for people; nothing with `--json`."""
        if not self.as_json:
            self._out.print(text.translate(_STEERING), markup=False)

    def remark(self, text: str) -> None:
        """Print a line on standard error; nothing with `--quiet`."""
        if not self.quiet:
            self._err.print(text.translate(_STEERING), markup=False)

    def document(self, data: dict[str, Any]) -> None:
        """Set the verb's result, which is printed when it ends, with `--json` only."""
        self._document = data

    def print_document(self, error: RemetalError | None) -> None:
        """Print the verb's result, and the error it ended with if any, as one JSON document."""
        data = dict(self._document)
        if error is not None:
            data["error"] = {
                "id": error.id,
                "message": error.message,
                "hint": error.hint,
                "exit_code": error.exit_code,
            }
        text = json.dumps(data, indent=2, ensure_ascii=False, default=str)
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
        sys.stdout.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table; a column whose title starts with `>` is right-aligned."""
        if self.as_json:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            title = column.removeprefix(">")
            justify: JustifyMethod = "right" if column != title else "left"
            table.add_column(title, justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(cell.translate(_STEERING) for cell in row))
        self._out.print(table, markup=False, soft_wrap=False)

    def tree(self, tree: Tree) -> None:
        """Print a tree."""
        if not self.as_json:
            _calm(tree)
            self._out.print(tree, soft_wrap=False)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Show how far a long piece of work of `total` bytes is, with rate and time left.

        Yields:
            A function to call with the number of bytes just done; safe from any thread.
        """
        if self.quiet or total <= 0:
            yield lambda _: None
        elif self._err.is_terminal and not self.plain:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._err,
            ) as bar:
                task = bar.add_task(title, total=total)
                yield lambda count: bar.advance(task, count)
        else:
            yield _PlainProgress(title, total, self.remark).advance


def _calm(tree: Tree) -> None:
    """Replace what would steer a terminal in a tree's labels."""
    if isinstance(tree.label, str):
        tree.label = tree.label.translate(_STEERING)
    for child in tree.children:
        _calm(child)


class _PlainProgress:
    """Progress as plain lines, for logs and serial consoles."""

    def __init__(self, title: str, total: int, write: Callable[[str], None]) -> None:
        self._title = title
        self._total = total
        self._write = write
        self._done = 0
        self._start = self._shown = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._shown < _PLAIN_INTERVAL and self._done < self._total:
            return
        self._shown = now
        elapsed = max(now - self._start, 1e-3)
        rate = self._done / elapsed
        left = max(self._total - self._done, 0) / rate if rate else 0.0
        self._write(
            f"{self._title}: {100 * self._done / self._total:.0f} % of {format_size(self._total)}, "
            f"{format_size(int(rate))}/s, {format_duration(left)} left"
        )


class Location(click.types.StringParamType):
    """Where a repository is; a shell completes directories."""

    name = "location"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete it."""
        del ctx, param
        return [CompletionItem(incomplete, type="dir")]


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Give a click command the options every verb has, and an `Output` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document for scripts.")
    @click.option("--quiet", is_flag=True, help="No progress and no remarks.")
    @functools.wraps(function)
    def wrapper(*args: Any, as_json: bool, quiet: bool, **options: Any) -> None:
        out = Output(as_json=as_json, quiet=quiet)
        if not as_json:
            function(out, *args, **options)
            return
        try:
            function(out, *args, **options)
        except (RemetalError, OSError) as problem:
            error = _translate(problem)
            out.print_document(error)
            raise SystemExit(error.exit_code) from problem
        out.print_document(None)

    return wrapper


class _Verbs(click.Group):
    """The verbs that the installed packages register as entry points, loaded when used."""

    def _points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=_GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(self._points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        point = self._points().get(cmd_name)
        if point is None:
            return None
        command: click.Command = point.load()
        return command


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(imager.__version__, prog_name="remetal")
@click.option("--debug", is_flag=True, help="Show what external programs are run, and tracebacks.")
def cli(debug: bool) -> None:
    """Bring a whole machine back to the state it had before the incident.

    \b
    On a calm day:
      remetal init /srv/images              make a repository and its keys
      remetal capture /srv/images           save this machine
      remetal media build -o rescue.iso     make the rescue medium
      remetal drill /srv/images latest      prove that it comes back
      remetal prune /srv/images             let go of what is no longer kept
    On the worst day: boot the medium and follow it, or
      remetal restore REPO IMAGE

    Shell completion: eval "$(_REMETAL_COMPLETE=bash_source remetal)"
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s"
    )


def _translate(problem: RemetalError | OSError) -> RemetalError:
    """Return what an error means to a person; an unforeseen one is raised again."""
    if isinstance(problem, RemetalError):
        return problem
    if problem.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoRoom(f"no room left at {problem.filename}" if problem.filename else "no room left")
    raise problem


def _fail(error: RemetalError) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    message = f"remetal: {error.message}".translate(_STEERING)
    console.print(message, style="bold red", markup=False)
    if error.hint:
        console.print(error.hint.translate(_STEERING), markup=False)
    return error.exit_code


def run(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors become one clear sentence."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        result = cli(words, prog_name="remetal", standalone_mode=False)
    except (RemetalError, OSError) as problem:
        if "--debug" in words:
            logging.getLogger("remetal").exception("traceback")
        return _fail(_translate(problem))
    except click.ClickException as error:
        error.show()
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _fail(Interrupted("stopped on request"))
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the `remetal` command.

    Being asked to end, and losing the terminal, is what Ctrl-C is: an exception, so that whatever is
    at work leaves no virtual machine, device or mount behind. What the caller ignores stays ignored.
    """
    for number in _ENDINGS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    sys.exit(run())


if __name__ == "__main__":
    main()
