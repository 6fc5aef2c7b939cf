"""Generated text files, from templates/*.j2."""

from pathlib import Path
from typing import Any, Final

import jinja2

_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - configuration files, no HTML
)


def render(name: str, **values: Any) -> str:
    """Return the template `name`.j2 with its values filled in."""
    return _ENVIRONMENT.get_template(f"{name}.j2").render(values)
