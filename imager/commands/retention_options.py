"""The options that say which images are kept."""

import functools
import math
from collections.abc import Callable
from typing import Any, Final

import click

from imager.retention.policy import DEFAULT, Policy
from imager.units import parse_duration

_RULES: Final = (
    ("last", "Keep the newest N images."),
    ("hourly", "Keep the newest image of each of N hours."),
    ("daily", "Keep the newest image of each of N days."),
    ("weekly", "Keep the newest image of each of N weeks."),
    ("monthly", "Keep the newest image of each of N months."),
    ("yearly", "Keep the newest image of each of N years."),
)


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Turn a duration on the command line, such as `90d`, into seconds; a callback of options."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def number(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Refuse what is no number, which passes every range; a callback of options."""
    if math.isnan(value):
        raise click.BadParameter("it must be a number", ctx, param)
    return value


def policy_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the `--keep-...` options, and the `Policy` they make as its argument `policy`.

    None given is the default policy; any given means exactly those. To be placed below `@verb`, so
    that a policy that makes no sense is reported as every other error is.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> None:
        given = {
            name: value
            for name in (*(rule for rule, _ in _RULES), "within")
            if (value := options.pop(f"keep_{name}")) is not None
        }
        function(*args, policy=Policy(**given) if given else DEFAULT, **options)

    decorated = click.option(
        "--keep-within",
        callback=seconds,
        metavar="DURATION",
        help="Keep all images that are not older (90d, 12h, 2w); the hourly to yearly ones are "
        "counted beyond it. Default when no --keep option is given: 90d, and 12 monthly.",
    )(wrapper)
    for name, text in reversed(_RULES):
        option = click.option(f"--keep-{name}", type=int, metavar="N", help=text)
        decorated = option(decorated)
    return decorated
