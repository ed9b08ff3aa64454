"""Calls that may hang, as reads of a network mount do, with an end: nothing can interrupt them, but nobody must wait.

A call runs in a thread of its own; where it takes too long, the thread is left behind, and the caller goes on. Threads
are used again, so that a call costs some 50 us more than without. Several may be begun before the first is waited for.
"""

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
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
        while True:
            call, answer = self.calls.get()
            try:
                value, error = call(), None
            except BaseException as raised:
                value, error = None, raised
            # Before the answer, so that who has it finds this thread idle.
            _idle.append(self)
            if error is None:
                answer.set_result(value)
            else:
                answer.set_exception(error)
            del call, answer, value, error


def begun(call: Callable[[], T]) -> Future[T]:
    """Begins `call`: the future gives what it gave, or raises what it raised."""
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    answer: Future[T] = Future()
    helper.calls.put((call, answer))
    return answer


def within(call: Callable[[], T], what: str) -> T:
    """What `call` gives, or raises. Raises TimeoutError, naming `what`, after `PATIENCE` seconds."""
    answer = begun(call)
    if not wait([answer], PATIENCE).done:
        raise TimeoutError(f"{what} has not answered for {PATIENCE:g} seconds")
    return answer.result()
