"""The training loop: everything around the step.

A run continues where its last whole checkpoint is, in this order:
0. no other process writes into the directory, or nothing is begun;
1. the directory is this experiment's, on this data, or nothing is touched;
2. the newest checkpoint that is whole gives the state; without one, the state is the seed's;
3. metrics after that step are cut, so that there is no gap and no repeat;
4. the batch of the next step is read by its number.

Too many skipped updates in a row take it back to the same place. It ends early, saved, when the machine is to be taken
away or at Ctrl-C; a step that hangs ends the process; and so does a directory that is removed, or whose file system
goes away: nothing is written to another place, and what had been saved is where it was.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import pictures
from jdiff.data import FolderSource, Replaced, Source, open_source
from jdiff.experiment import Experiment, fingerprint
from jdiff.locks import locked
from jdiff.parallel import summary, wait_for_all
from jdiff.pipelines import Pipeline
from jdiff.terminal import printable
from jdiff.train import replay, run
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.finetune import started_from
from jdiff.train.goodput import Goodput, spent, told
from jdiff.train.held_out import held_out_loss
from jdiff.train.keep import Due
from jdiff.train.paths import absolute
from jdiff.train.preemption import Preemption
from jdiff.train.progress import Progress
from jdiff.train.replicas import disagreeing
from jdiff.train.shown import Shown, shown
from jdiff.train.snapshots import Profiles, open_snapshots
from jdiff.train.state import TrainState
from jdiff.train.trainer import Trainer, assemble
from jdiff.train.watchdog import Watchdog
from jdiff.typing import Params

_PREVIEW = 16
_FINAL = 64


class _BadStateError(Exception):
    """Too many updates in a row were skipped."""

    def __init__(self, state: TrainState, metrics: dict[str, float]):
        super().__init__(f"{int(state.skipped.in_a_row)} updates in a row were skipped, up to step {int(state.step)}")
        self.state, self.metrics = state, metrics


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What one process of a run holds on to."""

    trainer: Trainer
    source: Source
    directory: Path
    checkpoints: Checkpoints
    draw: Pipeline
    shown: Shown
    snapshots: Checkpoints | None
    goodput: Goodput
    preemption: Preemption
    watchdog: Watchdog
    held_out: Callable[[Params], float] | None
    check: Callable[[], None]
    """Raises LockedError where another process may write into the directory."""


def train(experiment: Experiment, directory: Path) -> TrainState:
    """Trains to the last step, from wherever `directory` has got to, and leaves pictures there. Returns the state,
    which is of an earlier step where SIGTERM has ended the run. After SIGINT it raises KeyboardInterrupt, with the step
    that is saved.

    Raises LockedError where another process writes into `directory`, OSError where nothing can be written there, and
    ValueError, naming what `jdiff replay` takes, when updates are skipped again and again.
    """
    experiment = absolute(experiment)
    if jax.process_index():  # the processes of one run are one writer
        return _train(experiment, directory, lambda: None)
    with locked(directory, what="training") as check:
        run.check_config(directory, experiment)
        return _train(experiment, directory, check)


def _train(experiment: Experiment, directory: Path, check: Callable[[], None]) -> TrainState:
    goodput = Goodput()
    with goodput.of("init"):
        source = open_source(experiment.data, "train")
        trainer = assemble(experiment, len(source.class_names))
        view = shown(trainer, source)
        held_out = held_out_loss(trainer) if experiment.keep.metric == "held_out_loss" else None
        _claim(directory, experiment, source)
    if isinstance(source, FolderSource) and source.skipped:
        _say(f"files left out: {', '.join(f'{reason} {count}' for reason, count in source.skipped.items())}")
    if trainer.mesh.size > trainer.mesh.shape["data"]:
        axes = " x ".join(f"{axis} {size}" for axis, size in trainer.mesh.shape.items() if size > 1)
        _say(f"mesh: {axes}; {summary(trainer.layout())}")
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", experiment.keep))
        snapshots = stack.enter_context(open_snapshots(directory)) if experiment.profiles else None
        preemption = stack.enter_context(Preemption())
        draw = trainer.pipeline(_PREVIEW, view.null)
        watchdog = Watchdog(experiment.faults.hang_seconds)
        loop = _Loop(
            trainer,
            source,
            directory,
            checkpoints,
            draw,
            view,
            snapshots,
            goodput,
            preemption,
            watchdog,
            held_out,
            check,
        )
        with watchdog:
            state = _borne(loop)
    if int(state.step) == experiment.steps:
        with goodput.of("pictures"):
            _final_pictures(loop, state)
    if int(state.step) > goodput.start:
        # Saving and drawing at the end come after the last step's line.
        run.append(directory / "throughput.jsonl", {"step": int(state.step), **goodput.line()})
    _say(told(spent(directory / "throughput.jsonl")))
    if preemption.interrupted and int(state.step) < experiment.steps:
        raise KeyboardInterrupt(f"stopped after step {int(state.step)} of {experiment.steps}")
    return state


def _claim(directory: Path, experiment: Experiment, source: Source) -> None:
    """The first process makes the run directory, the others find it made."""
    if jax.process_index() == 0:
        run.claim(directory, experiment, source)
    wait_for_all("the run directory is made")
    if jax.process_index():
        run.claim(directory, experiment, source)


def _say(text: str) -> None:
    """To whoever watches the run, by the first process."""
    if jax.process_index() == 0:
        print(printable(text), file=sys.stderr, flush=True)


def _show(loop: _Loop, name: str, sheet: Callable[[], np.ndarray]) -> None:
    """Writes what `sheet` makes, which the first process alone asks for, as a picture in the run's directory."""
    if jax.process_index() == 0:
        loop.check()
        pictures.save(sheet(), loop.directory / name, enlarge=pictures.enlargement(loop.shown.edge))


def _borne(loop: _Loop) -> TrainState:
    """Updates to the end; back to the last checkpoint as often as the experiment bears it."""
    rollbacks = loop.trainer.experiment.faults.rollbacks
    for left in range(rollbacks, -1, -1):
        state = _resumed(loop)
        try:
            return _updates(loop, state)
        except _BadStateError as fault:
            if left:
                _say(f"{fault}; going back to the last checkpoint, {left - 1} times more")
                loop.goodput.again()
                continue
            bundle = replay.leave(loop.directory, loop.trainer.experiment, fault.state, fault.metrics)
            raise ValueError(
                f"{fault}, and again after going back {rollbacks} times; "
                f"to make the first of them again: jdiff replay {bundle}"
            ) from fault
    raise AssertionError


def _resumed(loop: _Loop) -> TrainState:
    """The state to go on from; what lies after it is cut."""
    with loop.goodput.of("init"):
        found = loop.checkpoints.newest(loop.trainer.abstract, lambda damage: _say(f"passed over: {damage}"))
        done, state = found or (0, loop.trainer.initial())
        source = loop.trainer.experiment.init
        if found is None and source is not None:
            state, words = started_from(source, state, loop.directory)
            _say(words)
        loop.check()
        for name in ("metrics.jsonl", "held_out.jsonl"):
            if odd := run.cut(loop.directory / name, done):
                _say(f"{loop.directory / name}: dropped {odd} lines that are repeated or damaged")
    return state


def _updates(loop: _Loop, state: TrainState) -> TrainState:
    trainer, directory, goodput = loop.trainer, loop.directory, loop.goodput
    experiment, faults = trainer.experiment, trainer.experiment.faults
    done = goodput.start = int(state.step)
    step = trainer.step()
    replaced = Replaced(experiment.data.max_replaced)
    data = trainer.batches(loop.source, done, replaced)
    before: tuple[Any, ...] = ()  # the metrics of the step before, looked at when its successor is on its way
    first: dict[str, float] = {}  # those of the first update that was skipped
    losses: list[float] = []  # since the last checkpoint
    due = Due(experiment.checkpoint_minutes)
    with Progress(experiment.steps, done, experiment.batch_size, quiet=jax.process_index() > 0) as progress:
        for number in range(done + 1, experiment.steps + 1):
            with goodput.of("data"):
                batch = next(data)
            with goodput.of("compile" if number == done + 1 else "step"):
                check = faults.check_every is not None and number % faults.check_every == 0
                twin = step(jax.tree.map(jnp.copy, state), batch)[0] if check else None
                state, metrics = step(state, batch)
                if faults.check_every and check and (odd := disagreeing(state, twin)):
                    raise ValueError(
                        f"step {number}: {', '.join(odd)} do not hold what others hold, or do not give the same twice; "
                        f"checkpoints after step {number - faults.check_every} are not to be trusted"
                    )
                if number == done + 1:
                    jax.block_until_ready(metrics)
                    progress.compiled(number)
                last = number == experiment.steps
                stop = loop.preemption.after(number)
                log = number % experiment.log_every == 0 or last
                save = number % experiment.checkpoint_every == 0 or last or stop or (log and due())
                # One step behind, so that the device is never without work, unless the step is waited for anyway.
                for seen in (*before, metrics) if log or save else before:
                    in_a_row = int(seen["skipped_in_a_row"])
                    losses.append(float(seen["loss"]))
                    if in_a_row == 1:
                        first = {name: float(value) for name, value in seen.items()}
                    if in_a_row >= faults.skips:
                        raise _BadStateError(state, first)
                before = () if log or save else (metrics,)
            loop.watchdog.progress()
            if log or save:
                loop.check()
            if log:
                values = {name: metrics[name].item() for name in metrics}
                run.append(directory / "metrics.jsonl", {"step": number, **values, **replaced.metrics(number)})
                rate = progress.show(number, values["loss"])
                line = {"step": number, "images_per_second": rate, **goodput.line()}
                run.append(directory / "throughput.jsonl", line)
            if loop.snapshots is not None and (number % experiment.snapshot_every == 0 or last):
                with goodput.of("checkpoint"):
                    loop.snapshots.save(number, Profiles(state.profiles), fingerprint(experiment))
            # A state that is going bad is not kept. What lies before it is whole first: a run that goes on from here
            # does not come by there again.
            if save and (last or not int(metrics["skipped_in_a_row"])):
                with progress.paused(), goodput.of("eval"):
                    metric = _metric(loop, state, losses, stop)
                with goodput.of("checkpoint"):
                    if loop.snapshots is not None:
                        loop.snapshots.wait()
                    loop.checkpoints.save(number, state, fingerprint(experiment), metric)
                losses.clear()
                due.done()
            if stop:
                break
            if number % experiment.sample_every == 0 and not last:
                with progress.paused(), goodput.of("pictures"):
                    images = _drawn(loop, state, _PREVIEW)
                    _show(loop, f"samples/step_{number:07d}.png", partial(_sheet, loop, images))
    return state


def _metric(loop: _Loop, state: TrainState, losses: list[float], stop: bool) -> float | None:
    """What tells whether a checkpoint is among the best: of the losses since the last one, or of held-out data."""
    if loop.held_out is not None:
        # There is no time for it when the machine is to be taken away.
        losses = [] if stop else [loop.held_out(state.ema)]
        for loss in losses:
            run.append(loop.directory / "held_out.jsonl", {"step": int(state.step), "loss": loss})
    finite = [loss for loss in losses if np.isfinite(loss)]
    return float(np.mean(finite)) if finite else None


def every_class(trainer: Trainer, n: int) -> np.ndarray:
    """Labels of n samples that go through the classes in turn; the null class where there are none."""
    return np.arange(n) % trainer.num_classes if trainer.num_classes else np.zeros(n, int)


def _drawn(loop: _Loop, state: TrainState, n: int, *, trajectory: bool = False) -> np.ndarray:
    """The first n samples of seed 0, with the classes or captions in turn."""
    label, cond = every_class(loop.trainer, n), loop.shown.cond(n)
    return loop.draw(state.ema, seed=0, index=range(n), label=label, cond=cond, trajectory=trajectory)


def _sheet(loop: _Loop, samples: np.ndarray) -> np.ndarray:
    return pictures.tile(loop.shown.decode(samples), 8)


def _final_pictures(loop: _Loop, state: TrainState) -> None:
    process, decode, real = loop.trainer.experiment.process, loop.shown.decode, loop.shown.real
    samples = _drawn(loop, state, _FINAL)
    _show(loop, "samples.png", lambda: _sheet(loop, samples))
    path = _drawn(loop, state, 8, trajectory=True)
    level = np.asarray(jnp.hypot(process.alpha(loop.draw.grid), process.sigma(loop.draw.grid)))
    _show(loop, "trajectory.png", lambda: pictures.trajectory_sheet(path, level, decode))
    _show(loop, "nearest.png", lambda: pictures.nearest_sheet(samples[:8], real(), decode))
