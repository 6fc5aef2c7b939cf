"""Options that say of something saved what takes its place here, such as `--map disk0=/dev/sdb`."""

from collections.abc import Iterable

from imager.errors import UsageError


def parse_assignments(
    option: str, values: Iterable[str], *, form: str, example: str
) -> dict[str, str]:
    """Turn the values of an option into what is saved → what is here.

    Args:
        option: its name.
        values: what was given, each with the first "=" between the two.
        form: of a value, in words: "SAVED=TARGET".
        example: a value.

    Raises:
        UsageError: one is not of the form, or something saved is named twice.
    """
    named: dict[str, str] = {}
    for value in values:
        saved, separator, here = value.partition("=")
        if not (saved and separator and here):
            raise UsageError(
                f"{option} {value} is not of the form {form}",
                hint=f"For example: {option} {example}",
            )
        if saved in named:
            raise UsageError(f"{option} names {saved} twice")
        named[saved] = here
    return named
