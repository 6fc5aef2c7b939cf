"""Every text file that a restore generates."""

from typing import Final

import jinja2

from imager.units import format_duration, format_size

_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("restore", "templates"),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701  plain text, no HTML
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["duration"] = format_duration
_ENVIRONMENT.filters["size"] = format_size


def render(name: str, **values: object) -> str:
    """Return the template `name` with its values filled in.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not given.
    """
    return _ENVIRONMENT.get_template(name).render(values)
