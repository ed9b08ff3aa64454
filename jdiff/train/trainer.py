"""The pieces of a run, before, in and after training."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jdiff.data import Batch, Source, training_batches
from jdiff.experiment import Experiment
from jdiff.models import Network, build
from jdiff.parallel import Row, check_batch, host_share, mapped, put_batch, replicated, report, state_sharding
from jdiff.pipelines import Pipeline
from jdiff.train.state import TrainState, initial
from jdiff.train.step import Metrics, make_step


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

    def layout(self) -> list[Row]:
        """How each array of the parameters lies on the mesh, and why."""
        return report(self.mesh, self.abstract.params, heads_of(self.experiment))

    def initial(self) -> TrainState:
        """The state before the first update, on the mesh."""
        make = lambda: initial(
            self.network, self.experiment.optimizer.build(self.experiment.steps), self.experiment.seed
        )
        return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.abstract))()

    def update(self) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """The update (state, batch) -> (state, metrics) for one compilation over the mesh, before it is compiled."""
        optimizer = self.experiment.optimizer.build(self.experiment.steps)
        update = make_step(self.experiment, self.network, optimizer, self.num_classes)

        def on_mesh(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return update(state, batch)

        return on_mesh

    def step(self) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """The compiled update (state, batch) -> (state, metrics), which consumes the state; by `pmap` where the mesh
        says so."""
        if self.experiment.mesh.strategy == "pmap":
            optimizer = self.experiment.optimizer.build(self.experiment.steps)
            update = make_step(self.experiment, self.network, optimizer, self.num_classes, axis="data")
            return mapped(update, self.mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        return jax.jit(self.update(), donate_argnums=0, out_shardings=(shardings, replicated(self.mesh)))

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


def heads_of(experiment: Experiment) -> int | None:
    """Of the attention of a transformer."""
    return getattr(experiment.network, "num_attention_heads", None)


def assemble(experiment: Experiment, num_classes: int, devices: Sequence[Any] | None = None) -> Trainer:
    """The pieces of a run on `devices`, which may be described and not there; on all that are, unless given. Raises
    ValueError for a network, a mesh or a batch size that does not fit."""
    mesh = experiment.mesh.build(devices)
    check_batch(mesh, experiment.batch_size, experiment.accumulate)
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
        state_sharding(mesh, shapes, heads_of(experiment)),
    )
    return Trainer(experiment, network, mesh, num_classes, abstract)
