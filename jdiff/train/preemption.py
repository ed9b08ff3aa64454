"""A notice that the machine will be taken away, or Ctrl-C: heard between two steps, on all hosts after the same one."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_TOLD = b"\nstopping after this step, which will be saved; Ctrl-C again stops at once\n"


class Preemption:
    """Whether the run has been asked to stop, by SIGTERM or SIGINT; a context. Outside of it these do what they did
    before, and in it too where the context is not of the main thread, which alone may say what a signal does. A second
    SIGINT does what it did before."""

    def __init__(self):
        self._told = False
        self.interrupted = False
        """Whether it was SIGINT, in this process."""
        # With several processes JAX's own service hears SIGTERM on any of them and agrees on a step.
        self._alone = jax.process_count() == 1

    def __enter__(self):
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            if self._alone:
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_):
        for number, action in self._before.items():
            signal.signal(number, action)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        os.write(2, _TOLD)  # print may be what is interrupted
        self.interrupted = self._told = True
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def after(self, step: int) -> bool:
        """Whether to stop after this step: to be asked once a step by every process."""
        return self._told if self._alone else multihost_utils.reached_preemption_sync_point(step)
