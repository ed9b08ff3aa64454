"""The pieces of a run, before, in and after training."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from jdiff.config import to_dict
from jdiff.data import Batch, Data, Latents, Replaced, Source, open_source, training_batches
from jdiff.experiment import Experiment
from jdiff.models import MMDiT, Network, UNet2DCondition, build
from jdiff.parallel import (
    Row,
    batch_sharding,
    check_batch,
    check_virtual,
    compiler_options,
    host_share,
    mapped,
    on_virtual_shards,
    put_batch,
    replicated,
    report,
    state_sharding,
)
from jdiff.pipelines import Pipeline
from jdiff.train.scaling import scaled
from jdiff.train.state import TrainState, initial
from jdiff.train.step import Metrics, make_parts, make_step


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
        return self.experiment.data.size, self.experiment.data.size, self.experiment.data.channels

    @property
    def conditions(self) -> dict[str, tuple[int, ...]]:
        """What the network takes of a caption: the shapes of an example's, by name."""
        network, data = self.experiment.network, self.experiment.data
        if isinstance(network, MMDiT | UNet2DCondition) and isinstance(data, Latents):
            return network.conditions(data.tokens)
        return {}

    @property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of what an update takes, in squares."""
        fields: dict[str, tuple[tuple[int, ...], Any]] = {"image": (self.shape, np.float32), "index": ((), np.uint32)}
        if self.num_classes:
            fields["label"] = (), np.int32
        if isinstance(self.experiment.data, Latents):
            fields["spread"] = self.shape, np.float32
        fields |= {
            name: (shape, np.float32 if name == "time_ids" else np.float16) for name, shape in self.conditions.items()
        }
        rows, sharding = self.experiment.batch_size, batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)
            for name, (shape, dtype) in fields.items()
        }

    def layout(self) -> list[Row]:
        """How each array of the parameters lies on the mesh, and why."""
        return report(self.mesh, self.abstract.params, heads_of(self.experiment))

    def initial(self) -> TrainState:
        """The state before the first update, on the mesh."""
        make = partial(_first, self.network, self.experiment)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        if self.experiment.verify_determinism:
            return jax.device_put(jax.tree.map(np.asarray, jax.jit(make)()), shardings)
        return jax.jit(make, out_shardings=shardings)()

    def update(self) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """The update (state, batch) -> (state, metrics) for one compilation over the mesh, before it is compiled."""
        return self.on_mesh(make_step(*self._parts))

    def on_mesh(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, traced where networks see the mesh."""

        def traced(*inputs: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*inputs)

        return traced

    def step(self) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """The compiled update (state, batch) -> (state, metrics), which consumes the state; by `pmap` or on virtual
        shards where the experiment says so."""
        if self.experiment.verify_determinism:
            return on_virtual_shards(*make_parts(*self._parts), self.mesh)
        if self.experiment.mesh.strategy == "pmap":
            return mapped(make_step(*self._parts, axis="data"), self.mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        out, options = (shardings, replicated(self.mesh)), compiler_options(self.mesh)
        return jax.jit(self.update(), donate_argnums=0, out_shardings=out, compiler_options=options)

    @property
    def _parts(self) -> tuple[Any, ...]:
        """What an update is made of."""
        return self.experiment, self.network, _optimizer(self.experiment), self.num_classes

    def batches(self, source: Source, start: int, replaced: Replaced | None = None) -> Iterator[Any]:
        """What the step takes of the batches of steps `start`, start + 1, ..., on the devices ahead of use. `replaced`
        counts the rows that could not be read."""
        return self._stream(self.experiment.data, source, start, self.experiment.label_dropout, replaced)

    def held_out(self, most: int) -> list[Any]:
        """Batches of held-out examples on the devices, in squares where they are images: each example once, or `most`
        batches. Raises ValueError where nothing is held out."""
        data = self.experiment.data
        if isinstance(data, Data):
            data = dataclasses.replace(data, flip=False, bucket_step=None, jitter=0.0)
        source = open_source(data, "held_out")
        count = min(most, -(-len(source) // self.experiment.batch_size))
        return list(itertools.islice(self._stream(data, source, 0, 0.0), count))

    def _stream(
        self,
        data: Data | Latents,
        source: Source,
        start: int,
        caption_dropout: float,
        replaced: Replaced | None = None,
    ) -> Iterator[Any]:
        wanted = self.abstract_batch

        def placed(batch: Batch) -> Any:
            taken = {name: batch[name] for name in wanted}
            return put_batch(self.mesh, taken | {"index": batch["index"].astype(np.uint32)})

        host, hosts = host_share(self.mesh)
        return training_batches(
            data,
            source,
            batch_size=self.experiment.batch_size,
            seed=self.experiment.seed,
            caption_dropout=caption_dropout,
            start=start,
            put=placed,
            replaced=replaced,
            host=host,
            hosts=hosts,
        )

    def pipeline(self, chunk: int, null: dict[str, np.ndarray] | None = None, **sampling: Any) -> Pipeline:
        """Sampling as the experiment says, but for what is given; `null` are the conditions of an empty caption."""
        return Pipeline(
            self.network,
            self.experiment.process,
            self.experiment.parameterization,
            shape=self.shape,
            num_classes=self.num_classes,
            sampling=dataclasses.replace(self.experiment.sampling, **sampling),
            chunk=chunk,
            null=null,
            mesh=self.mesh,
        )


def _first(network: Network, experiment: Experiment) -> TrainState:
    return initial(network, _optimizer(experiment), experiment.seed, experiment.profiles)


def _optimizer(experiment: Experiment) -> optax.GradientTransformation:
    optimizer, compute = experiment.optimizer.build(experiment.steps), getattr(experiment.network, "compute", None)
    return scaled(optimizer) if compute is not None and compute.dtype == "float16" else optimizer


def heads_of(experiment: Experiment) -> int | None:
    """Of the attention of a transformer."""
    return getattr(experiment.network, "num_attention_heads", None)


def check_sizes(experiment: Experiment) -> None:
    """Raises ValueError for a number of the network or the data that none has: with it, building the network would take
    all the time or memory there is."""
    config = to_dict(experiment)
    for name, value in (*_numbers(config["network"], "network"), *_numbers({"size": config["data"]["size"]}, "data")):
        most = next((most for words, most in _MOST.items() if any(word in name for word in words)), 2**16)
        if value > most:
            raise ValueError(f"{name}: {value} is more than a network can have, which is {most}")


_MOST = {
    ("layers", "blocks"): 2**12,
    ("label_dim", "num_embeds", "class_embeds"): 2**24,
    ("size", "resolution", "resample", "patch"): 2**14,
}
"""Greatest numbers by words in the names of fields."""


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """The whole numbers of a tree, by their dotted names."""
    if type(value) is int:
        yield name, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for key, one in inner:
        yield from _numbers(one, f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}")


def assemble(experiment: Experiment, num_classes: int, devices: Sequence[Any] | None = None) -> Trainer:
    """The pieces of a run on `devices`, which may be described and not there; on all that are, unless given. Raises
    ValueError for a network, a mesh or a batch size that does not fit."""
    mesh = experiment.mesh.build(devices)
    check_batch(mesh, experiment.batch_size, experiment.accumulate)
    if experiment.verify_determinism:
        check_virtual(mesh, experiment.batch_size, experiment.accumulate)
    step = experiment.data.bucket_step if isinstance(experiment.data, Data) else None
    divisor = experiment.network.divisor
    if step is not None and step % divisor:
        raise ValueError(f"data.bucket_step: {step} is not a multiple of {divisor}, which {experiment.network} needs")
    size, channels = experiment.data.size, experiment.data.channels
    out_channels = experiment.parameterization.out_channels(channels)
    check_sizes(experiment)
    try:
        network = build(
            experiment.network, size=size, channels=channels, num_classes=num_classes, out_channels=out_channels
        )
        shapes = jax.eval_shape(partial(_first, network, experiment))
    except (TypeError, ArithmeticError, LookupError, AssertionError) as error:
        # What libraries say of shapes that do not fit together.
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ValueError(f"network: {experiment.network} cannot be built: {said}") from error
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_sharding(mesh, shapes, heads_of(experiment)),
    )
    return Trainer(experiment, network, mesh, num_classes, abstract)
