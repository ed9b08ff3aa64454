"""The pieces of a run, before, in and after training."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jdiff.data import Batch, Source, training_batches
from jdiff.experiment import Experiment
from jdiff.models import Network, build
from jdiff.parallel import check_batch, host_share, put_batch, replicated, state_sharding
from jdiff.pipelines import Pipeline
from jdiff.train.state import TrainState, initial
from jdiff.train.step import make_step


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

    def batches(self, source: Source, start: int) -> Iterator[Any]:
        """What the step takes of the batches of steps `start`, start + 1, ..., on the devices ahead of use."""

        def placed(batch: Batch) -> Any:
            taken = {name: batch[name] for name in ("image", "index", "label") if name in batch}
            return put_batch(self.mesh, taken | {"index": batch["index"].astype(np.uint32)})

        host, hosts = host_share(self.mesh)
        return training_batches(
            self.experiment.data,
            source,
            batch_size=self.experiment.batch_size,
            seed=self.experiment.seed,
            start=start,
            put=placed,
            host=host,
            hosts=hosts,
        )

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


def assemble(experiment: Experiment, num_classes: int, devices: Sequence[Any] | None = None) -> Trainer:
    """The pieces of a run on `devices`, which may be described and not there; on all that are, unless given. Raises
    ValueError for a network, a mesh or a batch size that does not fit."""
    mesh = experiment.mesh.build(devices)
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
