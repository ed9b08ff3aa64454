"""A step that hangs ends the process, and every process of the run prints where it stands.

A collective hangs in all processes, but the clocks of their watchdogs are not started at the same moment, and once the
first has ended, JAX's own service aborts the others. So a process prints its stack when it is aborted, too.
"""

import faulthandler
import sys
from typing import Any

_STDERR: Any = sys.__stderr__  # a notebook's own has no file that a hung process could write to


class Watchdog:
    """Ends the process, which prints the stacks of its threads, `seconds` after it was last told of progress; a
    context, in which a process that is aborted or crashes prints them as well."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def __enter__(self):
        self._enabled = not faulthandler.is_enabled()  # who has done so already has chosen a file
        if self._enabled:
            faulthandler.enable(_STDERR)
        return self

    def __exit__(self, *_):
        faulthandler.cancel_dump_traceback_later()
        if self._enabled:
            faulthandler.disable()

    def progress(self) -> None:
        """A step is done: from here on the time of the next counts."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=_STDERR)
