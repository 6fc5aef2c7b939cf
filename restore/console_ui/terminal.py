"""Questions and answers on a console of 80 by 24, also a serial one."""

from collections.abc import Mapping, Sequence
from typing import Final

import click

from imager.console import Output

SHELL: Final = "shell"
AGAIN: Final = "again"
_PAGE: Final = 20  # lines shown at once, so that nothing scrolls away on 24


class LeaveToShell(Exception):
    """The person wants a shell."""


class StartAgain(Exception):
    """The person wants to start from the first question."""


class Terminal:
    """Shows text and asks questions. Enter alone never means yes: the question comes again.

    `shell` leaves to a shell at every question, and so do Ctrl-C and the end of input; `again`
    goes back to the first question.

    Args:
        out: where to write.
    """

    def __init__(self, out: Output) -> None:
        self.out = out

    def say(self, text: str = "") -> None:
        """Show a line."""
        self.out.say(text)

    def ask(self, question: str) -> str:
        """Ask until something is typed, and return it without the spaces around.

        Raises:
            LeaveToShell, StartAgain: as the class says.
        """
        return self._ask(question, "")

    def ask_words(self, question: str) -> str:
        """Ask for words of recovery pages, where `again` is one: here it is `/again`, and `/shell`.

        Raises:
            LeaveToShell, StartAgain: as the class says.
        """
        return self._ask(question, "/")

    def _ask(self, question: str, prefix: str) -> str:
        while True:
            try:
                answer: str = click.prompt(question, default="", show_default=False)
            except click.Abort as error:
                self.say()
                raise LeaveToShell from error
            words = answer.strip()
            if words.lower() == prefix + SHELL:
                raise LeaveToShell
            if words.lower() == prefix + AGAIN:
                raise StartAgain
            if words:
                return words

    def choose(
        self, title: str, options: Sequence[str], others: Mapping[str, str] | None = None
    ) -> int | str:
        """Let one of several be chosen by its number, or a word be typed instead.

        Args:
            title: what is chosen.
            options: what there is, shown numbered.
            others: words that are answers too, in lower case, and what each means.

        Returns:
            The place in `options`, or one of the words.
        """
        words = dict(others or {})
        lines = [f"{number:8}  {text}" for number, text in enumerate(options, 1)]
        lines += [f"{word:>8}  {text}" for word, text in words.items()]
        self.page([title, *lines, f"{SHELL:>8}  leave to a shell"])
        numbers = ["1"] if len(options) == 1 else [f"1 to {len(options)}"] if options else []
        question = f"Type {', '.join([*numbers, *words, SHELL])}"
        while True:
            answer = self.ask(question).lower()
            if answer in words:
                return answer
            if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(options):
                return int(answer) - 1
            self.say(f"{answer} is none of them.")

    def page(self, lines: Sequence[str]) -> None:
        """Show lines a screenful at a time."""
        for start in range(0, len(lines), _PAGE):
            if start:
                self._pause(len(lines) - start)
            for line in lines[start : start + _PAGE]:
                self.say(line)

    def _pause(self, left: int) -> None:
        try:
            answer: str = click.prompt(
                f"-- {left} more lines, Enter shows them", default="", show_default=False
            )
        except click.Abort as error:
            raise LeaveToShell from error
        if answer.strip().lower() == SHELL:
            raise LeaveToShell
