"""The live line of a run: step, loss, images a second, time left. A plain line now and then where nobody watches."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_PLAIN_SECONDS = 15.0  # between plain lines
_SMOOTH = 0.9  # weight of the past in the shown loss


class Progress:
    """Progress from step `done` to `total`; a context. With `quiet` it says nothing."""

    def __init__(self, total: int, done: int, batch_size: int, *, quiet: bool = False):
        console = Console(stderr=True, quiet=quiet)
        self._total, self._batch_size, self._live = total, batch_size, console.is_terminal
        self._console = console
        self._bar = Bar(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} images/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("train", total=total, completed=done, loss=float("nan"), rate=0.0)
        self._loss: float | None = None
        self._mark = (done, time.monotonic())  # of the last shown step
        self._printed = -float("inf")
        self._rate = 0.0

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def show(self, step: int, loss: float) -> float:
        """Shows a step that has just been finished; returns the images a second since the last one shown.

        That is the last known rate (0 at first) where no step lies between: after the one that compiled.
        """
        now = time.monotonic()
        before, then = self._mark
        if step > before:
            self._rate, self._mark = (step - before) * self._batch_size / max(now - then, 1e-9), (step, now)
        self._loss = loss if self._loss is None else _SMOOTH * self._loss + (1 - _SMOOTH) * loss
        self._bar.update(self._task, completed=step, loss=self._loss, rate=self._rate)
        if not self._live and (now - self._printed > _PLAIN_SECONDS or step == self._total):
            left = f"  {(self._total - step) * self._batch_size / self._rate:.0f} s left" if self._rate else ""
            self._console.print(f"step {step}/{self._total}  loss {self._loss:.4f}  {self._rate:.0f} images/s{left}")
            self._printed = now
        return self._rate

    def compiled(self, step: int) -> None:
        """The first step is done: what came before it was mostly compilation, and does not count."""
        self._mark = (step, time.monotonic())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count as training."""
        start = time.monotonic()
        yield
        step, then = self._mark
        self._mark = (step, then + time.monotonic() - start)
