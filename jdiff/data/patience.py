"""Calls that may hang, as reads of a network mount do, with an end: nothing can interrupt them, but nobody must wait.

A call runs in a thread of its own; where it takes too long, the thread is left behind, and the caller goes on. Threads
are used again, so that a call costs some 50 us more than without.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

PATIENCE = 60.0
"""Seconds until a call counts as one that hangs."""
T = TypeVar("T")
_idle: list["_Helper"] = []
# A fork copies the list but not the threads.
os.register_at_fork(after_in_child=_idle.clear)


class _Helper(threading.Thread):
    """Answers one call after the other; a daemon, so that one that hangs keeps no program from ending."""

    def __init__(self):
        super().__init__(name="jdiff-patience", daemon=True)
        self.calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while (asked := self.calls.get()) is not None:
            call, answer = asked
            try:
                answer.put((call(), None))
            except BaseException as error:
                answer.put((None, error))


def within(call: Callable[[], T], what: str) -> T:
    """What `call` gives, or raises. Raises TimeoutError, naming `what`, after `PATIENCE` seconds."""
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
    helper.calls.put((call, answer))
    try:
        value, error = answer.get(timeout=PATIENCE)
    except queue.Empty:
        helper.calls.put(None)
        raise TimeoutError(f"{what} has not answered for {PATIENCE:g} seconds") from None
    _idle.append(helper)
    if error is not None:
        raise error
    return value
