"""Every text file that is generated for the rescue medium."""

from typing import Final

import jinja2


def _grub_quoted(text: str) -> str:
    """Quote a text for GRUB's command language, which has the shell's single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"


_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("bootmedia", "templates"),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701  none of them is HTML; GRUB's are quoted by a filter
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["grub_quoted"] = _grub_quoted


def render(name: str, **values: object) -> str:
    """Return the template `name` with its values filled in.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not given.
    """
    return _ENVIRONMENT.get_template(name).render(values)
