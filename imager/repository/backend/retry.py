"""Trying again what a link or a store could not do just now."""

from collections.abc import Callable
from typing import Final, TypeVar

import tenacity

from imager.errors import StoreUnreachable

PATIENCE: Final = 300.0  # seconds for which one call is tried again
_FIRST_WAIT: Final = 0.25
_LONGEST_WAIT: Final = 15.0

_Result = TypeVar("_Result")


def patiently(call: Callable[[], _Result], patience: float = PATIENCE) -> _Result:
    """Return what a call returns, and try it again while the store can't be reached.

    The waits grow from a quarter of a second to fifteen seconds, and are spread, so that many
    machines don't come back at the same moment.

    Args:
        call: may be made any number of times.
        patience: seconds from the first try after which no other is begun.

    Raises:
        StoreUnreachable: that of the last try.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StoreUnreachable),
        stop=tenacity.stop_after_delay(patience),
        wait=tenacity.wait_exponential_jitter(
            multiplier=_FIRST_WAIT, max=_LONGEST_WAIT, jitter=_FIRST_WAIT
        ),
        reraise=True,
    )
    return retrying(call)
