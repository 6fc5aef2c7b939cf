"""Trying again what a link or a store could not do just now."""

import logging
from collections.abc import Callable
from typing import Final, TypeVar

import tenacity

from imager.errors import StoreUnreachable

PATIENCE: Final = 300.0  # seconds for which one call is tried again
# The same while the store has never answered: a wrong name should not take five minutes to be told.
FIRST_PATIENCE: Final = 15.0
_TOLD_AT: Final = 3  # a link that is back at once is nobody's business
_FIRST_WAIT: Final = 0.25
_LONGEST_WAIT: Final = 15.0
_LOG: Final = logging.getLogger("remetal")

_Result = TypeVar("_Result")


def patiently(call: Callable[[], _Result], patience: float) -> _Result:
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
        before_sleep=lambda state: _tell(state, patience),
        reraise=True,
    )
    return retrying(call)


def _tell(state: tenacity.RetryCallState, patience: float) -> None:
    """Say once in each outage that it is waited for."""
    if state.attempt_number == _TOLD_AT and state.outcome is not None:
        left = max(0.0, patience - (state.seconds_since_start or 0.0))
        _LOG.warning("%s; trying again for %.0f s", state.outcome.exception(), left)
