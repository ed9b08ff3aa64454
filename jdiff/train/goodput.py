"""Where the time of a run went, over all its processes: what trained, and what did not.

Each line of throughput.jsonl has the seconds of its process so far, by what they went into. What a process did after
the checkpoint that the next one went on from was lost.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from jdiff.train.run import read_lines

BUCKETS: tuple[str, ...] = ("init", "compile", "data", "step", "checkpoint", "eval", "pictures", "lost")


class Goodput:
    """The seconds of this process."""

    def __init__(self):
        self.again()

    def again(self) -> None:
        """From here on it counts as another process, so that what is done twice is lost as after a kill."""
        self.started = time.time()
        self.start = 0  # the step that this process goes on from
        self.seconds = dict.fromkeys(BUCKETS[:-1], 0.0)

    @contextlib.contextmanager
    def of(self, bucket: str) -> Iterator[None]:
        """Counts the time inside."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[bucket] += time.monotonic() - start

    def line(self) -> dict:
        """For throughput.jsonl."""
        seconds = {bucket: round(seconds, 3) for bucket, seconds in self.seconds.items()}
        return {"process": self.started, "from": self.start, "seconds": seconds}


def spent(path: Path) -> dict[str, float]:
    """Seconds by bucket of all processes that wrote lines to throughput.jsonl; what is no such line, as one that a kill
    has cut, is left out."""
    processes: dict[float, list[dict]] = {}
    for line in read_lines(path):
        if _is_whole(line):
            processes.setdefault(line["process"], []).append(line)
    starts = [lines[0]["from"] for lines in processes.values()]
    total = dict.fromkeys(BUCKETS, 0.0)
    for lines, resumed in zip(processes.values(), [*starts[1:], None], strict=False):
        useful = [line for line in lines if resumed is None or line["step"] <= resumed]
        kept = useful[-1]["seconds"] if useful else dict.fromkeys(BUCKETS[:-1], 0.0)
        for bucket, seconds in kept.items():
            total[bucket] += seconds
        total["lost"] += sum(lines[-1]["seconds"].values()) - sum(kept.values())
    return total


def _is_whole(line: dict) -> bool:
    seconds = line.get("seconds")
    if not isinstance(seconds, dict) or seconds.keys() != set(BUCKETS[:-1]):
        return False
    numbers = [line.get("process"), line.get("from"), line.get("step"), *seconds.values()]
    return all(type(number) in (int, float) for number in numbers)


def told(seconds: dict[str, float]) -> str:
    """One line: the share that went into steps, and where the rest went."""
    whole = sum(seconds.values())
    rest = ", ".join(f"{bucket} {value:.1f}" for bucket, value in seconds.items() if bucket != "step" and value >= 0.05)
    return f"goodput {seconds['step'] / max(whole, 1e-9):.0%} of {whole:.1f} s (seconds: {rest})"
