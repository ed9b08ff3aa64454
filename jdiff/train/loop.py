"""The training loop: everything around the step.

A run continues where its last checkpoint is, in this order:
1. the directory is this experiment's, on this data, or nothing is touched;
2. the newest checkpoint gives the state; without one, the state is the seed's;
3. metrics after that step are cut, so that there is no gap and no repeat;
4. the batch of the next step is read by its number.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import pictures
from jdiff.data import Batch, Source, open_source, ordered, training_batches
from jdiff.experiment import Experiment
from jdiff.models import Network, build
from jdiff.parallel import check_batch, put_batch, replicated, state_sharding
from jdiff.pipelines import Pipeline
from jdiff.train import run
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.progress import Progress
from jdiff.train.state import TrainState, initial
from jdiff.train.step import make_step

_PREVIEW = 16
_FINAL = 64


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What a run is made of, before and after any training: the pieces that `train` and the command line share."""

    experiment: Experiment
    network: Network
    mesh: jax.sharding.Mesh
    num_classes: int
    abstract: TrainState  # shapes, dtypes and shardings

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return self.experiment.data.size, self.experiment.data.size, 3

    def initial(self) -> TrainState:
        """The state before the first update, on the mesh."""
        make = lambda: initial(
            self.network, self.experiment.optimizer.build(self.experiment.steps), self.experiment.seed
        )
        return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.abstract))()

    def step(self) -> Any:
        """The jitted update (state, batch) -> (state, metrics), which consumes the state."""
        optimizer = self.experiment.optimizer.build(self.experiment.steps)
        step = make_step(self.experiment, self.network, optimizer, self.num_classes)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(self.mesh)))

    def pipeline(self, chunk: int, **sampling: Any) -> Pipeline:
        """Sampling as the experiment says, but for what is given."""
        return Pipeline(
            self.network,
            self.experiment.process,
            self.experiment.parameterization,
            shape=self.shape,
            num_classes=self.num_classes,
            sampling=dataclasses.replace(self.experiment.sampling, **sampling),
            chunk=chunk,
        )


def assemble(experiment: Experiment, num_classes: int) -> Trainer:
    """The pieces of a run. Raises ValueError for a network, a mesh or a batch size that does not fit."""
    mesh = experiment.mesh.build()
    check_batch(mesh, experiment.batch_size)
    step, divisor = experiment.data.bucket_step, experiment.network.divisor
    if step is not None and step % divisor:
        raise ValueError(f"data.bucket_step: {step} is not a multiple of {divisor}, which {experiment.network} needs")
    out_channels = experiment.parameterization.out_channels(3)
    network = build(
        experiment.network, size=experiment.data.size, channels=3, num_classes=num_classes, out_channels=out_channels
    )
    make = lambda: initial(network, experiment.optimizer.build(experiment.steps), experiment.seed)
    shapes = jax.eval_shape(make)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_sharding(mesh, shapes),
    )
    return Trainer(experiment, network, mesh, num_classes, abstract)


def train(experiment: Experiment, directory: Path) -> TrainState:
    """Trains to the last step, from wherever `directory` has got to, and leaves pictures there. Returns the state."""
    source = open_source(experiment.data, "train")
    trainer = assemble(experiment, len(source.class_names))
    run.claim(directory, experiment, source)
    with Checkpoints(directory / "checkpoints", clean=True) as checkpoints:
        done = checkpoints.steps[-1] if checkpoints.steps else 0
        state = checkpoints.restore(done, trainer.abstract) if done else trainer.initial()
        run.cut(directory / "metrics.jsonl", done)
        draw = trainer.pipeline(_PREVIEW)
        state = _updates(trainer, source, state, directory, checkpoints, draw)
    _final_pictures(trainer, source, state, directory, draw)
    return state


def _updates(
    trainer: Trainer, source: Source, state: TrainState, directory: Path, checkpoints: Checkpoints, draw: Pipeline
) -> TrainState:
    experiment = trainer.experiment
    done = int(state.step)
    step = trainer.step()
    data = training_batches(
        experiment.data,
        source,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        start=done,
        put=partial(_placed, trainer.mesh),
    )
    with Progress(experiment.steps, done, experiment.batch_size) as progress, jax.set_mesh(trainer.mesh):
        for number in range(done + 1, experiment.steps + 1):
            state, metrics = step(state, next(data))
            if number == done + 1:
                jax.block_until_ready(metrics)
                progress.compiled(number)
            last = number == experiment.steps
            if number % experiment.log_every == 0 or last:
                values = {name: float(value) for name, value in metrics.items()}
                run.append(directory / "metrics.jsonl", {"step": number, **values})
                rate = progress.show(number, values["loss"])
                run.append(
                    directory / "throughput.jsonl", {"step": number, "images_per_second": rate, "at": time.time()}
                )
            if number % experiment.checkpoint_every == 0 or last:
                checkpoints.save(number, state)
            if number % experiment.sample_every == 0 and not last:
                with progress.paused():
                    images = draw(state.ema, seed=0, index=range(_PREVIEW), label=every_class(trainer, _PREVIEW))
                    sheet = pictures.tile(images, 8)
                    enlarge = pictures.enlargement(experiment.data.size)
                    pictures.save(sheet, directory / "samples" / f"step_{number:07d}.png", enlarge=enlarge)
    return state


def _placed(mesh: jax.sharding.Mesh, batch: Batch) -> Batch:
    """What the step takes of a batch, on the devices."""
    taken = {name: batch[name] for name in ("image", "index", "label") if name in batch}
    return put_batch(mesh, taken | {"index": batch["index"].astype(np.uint32)})


def every_class(trainer: Trainer, n: int) -> np.ndarray:
    """Labels of n samples that go through the classes in turn; the null class where there are none."""
    return np.arange(n) % trainer.num_classes if trainer.num_classes else np.zeros(n, int)


def _final_pictures(trainer: Trainer, source: Source, state: TrainState, directory: Path, draw: Pipeline) -> None:
    enlarge = pictures.enlargement(trainer.experiment.data.size)
    labels = every_class(trainer, _FINAL)
    samples = draw(state.ema, seed=0, index=range(_FINAL), label=labels)
    pictures.save(pictures.tile(samples, 8), directory / "samples.png", enlarge=enlarge)
    path = draw(state.ema, seed=0, index=range(8), label=labels[:8], trajectory=True)
    process = trainer.experiment.process
    level = np.asarray(jnp.hypot(process.alpha(draw.grid), process.sigma(draw.grid)))
    pictures.save(pictures.trajectory_sheet(path, level), directory / "trajectory.png", enlarge=enlarge)
    real = np.concatenate([batch["image"] for batch in ordered(source, 256)])
    pictures.save(pictures.nearest_sheet(samples[:8], real), directory / "nearest.png", enlarge=enlarge)
