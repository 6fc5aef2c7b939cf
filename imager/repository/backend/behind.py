"""Work that goes on behind, and does not keep the process from ending."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


def start(deed: Callable[[], _Result], name: str) -> "Future[_Result]":
    """Run something in a thread of its own, which ends with the process if it still runs then.

    Args:
        deed: what to run.
        name: of the thread.
    """
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(deed())
        except BaseException as error:  # noqa: BLE001  whoever waits for the future gets it
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
