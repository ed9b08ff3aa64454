"""A notice that the machine will be taken away: SIGTERM, heard between two steps, on all hosts after the same one."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether the run has been asked to stop; a context. Outside of it SIGTERM does what it did before, and in it too
    where the context is not of the main thread, which alone may say what a signal does."""

    def __init__(self):
        self._told = False
        # With several processes JAX's own service hears the signal on any of them and agrees on a step.
        self._alone = jax.process_count() == 1

    def __enter__(self):
        self._listens = self._alone and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_):
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def after(self, step: int) -> bool:
        """Whether to stop after this step: to be asked once a step by every process."""
        return self._told if self._alone else multihost_utils.reached_preemption_sync_point(step)
