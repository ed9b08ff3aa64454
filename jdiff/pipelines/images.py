"""A process, a parameterization, a network's parameters, guidance and a solver as one callable: images from seeds.

Samples are drawn in chunks of one size, the last one padded, so that any number compiles once and sample 17 of seed 3
is the same drawing alone or among 64.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jdiff import guidance, rng
from jdiff.models import Network
from jdiff.parallel import BATCH, batch_sharding, without_fsdp
from jdiff.prediction import Parameterization, predictor
from jdiff.processes import Process
from jdiff.samplers import GRIDS, SOLVERS, checked, sample
from jdiff.typing import Array, Cond, Key, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn from a trained network."""

    solver: str = "dpmpp_2m"
    """Numerical method: a name of `samplers.SOLVERS`."""
    grid: str = "karras"
    """How the steps are spread over time: a name of `samplers.GRIDS`."""
    steps: int = 20
    """Times on the grid, the last of which gives the data."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 for the plain conditional model."""

    def __post_init__(self):
        for field, table in (("solver", SOLVERS), ("grid", GRIDS)):
            if getattr(self, field) not in table:
                raise ValueError(f"{field} must be one of {sorted(table)}, got {getattr(self, field)!r}")
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}")


class Pipeline:
    """Draws images [n, H, W, C], float32 in [-1, 1].

    It compiles once: the number of samples, seeds, classes, the scale of guidance and the grid are values.

    On a `mesh` each of its slices of data x fsdp draws its part of a chunk, which is raised to a multiple of them. The
    parameters must lie there; what `fsdp` splits of them is whole on each slice while images are drawn.

    With classes, label == num_classes draws without one. `null` is what stands for no other condition, an array each by
    name, as the encoding of an empty caption; a network that takes none has no `null`.
    """

    def __init__(
        self,
        network: Network,
        process: Process,
        parameterization: Parameterization,
        *,
        shape: tuple[int, int, int],
        num_classes: int,
        sampling: Sampling,
        chunk: int,
        null: dict[str, np.ndarray] | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self.shape, self.num_classes, self.sampling, self.mesh = shape, num_classes, sampling, mesh
        slices = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH)
        self.chunk = math.ceil(chunk / slices) * slices
        self.null = null or {}
        self.grid = GRIDS[sampling.grid](process, sampling.steps)
        # A scale of one is the conditional model: one evaluation a step, not two.
        guided = (num_classes > 0 or bool(self.null)) and sampling.guidance != 1
        solver = SOLVERS[sampling.solver]
        self.evaluations = (solver.nfe(len(self.grid) - 1) + 1) * (1 + guided)
        """Of the network, for one image; the last gives the data."""

        def draw(params: Params, key: Key, index: Array, cond: Cond, scale: Array, grid: Array, *, trajectory: bool):
            predict = predictor(partial(network.apply, params), process, parameterization)
            null = {name: jnp.broadcast_to(value, cond[name].shape) for name, value in self._null().items()}
            denoise = (
                guidance.classifier_free(predict, cond, null, scale) if guided else guidance.unguided(predict, cond)
            )
            keys = rng.per_example(rng.named(key, "sample"), index)
            return sample(keys, denoise, process, solver, grid, shape, trajectory=trajectory)

        self._draw = {flag: checked(partial(draw, trajectory=flag)) for flag in (False, True)}

    def __call__(
        self,
        params: Params,
        *,
        seed: int,
        index: Sequence[int] | np.ndarray,
        label: Sequence[int] | np.ndarray | None = None,
        cond: dict[str, np.ndarray] | None = None,
        trajectory: bool = False,
    ) -> np.ndarray:
        """Samples number `index` of `seed`, one class each (default: none), and each of `cond`, [n, ...] by the names
        of `null` (default: that).

        With `trajectory`, the noisy x at every time of the grid and the samples: [steps + 1, n, H, W, C].
        """
        index = np.asarray(index, np.uint32)
        label = np.full(len(index), self.num_classes) if label is None else np.asarray(label)
        if len(label) != len(index):
            raise ValueError(f"label must have one class for each of the {len(index)} samples, got {len(label)}")
        if not (label <= self.num_classes).all() or (label < 0).any():
            raise ValueError(f"label must be in 0..{self.num_classes}, got {label.min()}..{label.max()}")
        given = {name: np.broadcast_to(value, (len(index), *np.shape(value))) for name, value in self.null.items()}
        if cond is not None:
            self._check(cond, len(index))
            given = {name: np.asarray(value) for name, value in cond.items()}
        if self.num_classes:
            given["label"] = label.astype(np.int32)
        params, parts = self._whole(params), []
        for start in range(0, len(index), self.chunk):
            here = slice(start, start + self.chunk)
            missing = self.chunk - len(index[here])
            fill = lambda values, missing=missing: np.concatenate([values, np.repeat(values[-1:], missing, 0)])
            images = self._draw[trajectory](
                params,
                jax.random.key(seed),
                self._split(fill(index[here])),
                {name: self._split(fill(values[here])) for name, values in given.items()},
                jnp.float32(self.sampling.guidance),
                self.grid,
            )
            if trajectory:
                images = np.concatenate([_here(images[1]), _here(images[0])[None]])
            parts.append(_here(images)[..., : self.chunk - missing, :, :, :])
        return np.concatenate(parts, axis=1 if trajectory else 0)

    def lower(self, params: Params) -> jax.stages.Lowered:
        """The program that draws a chunk, not yet compiled; parameters may be abstract, and devices not there."""
        sharding = None if self.mesh is None else batch_sharding(self.mesh)
        rows = lambda shape, dtype: jax.ShapeDtypeStruct((self.chunk, *shape), dtype, sharding=sharding)
        cond = {name: rows(np.shape(value), np.asarray(value).dtype) for name, value in self._null().items()}
        key = jax.eval_shape(lambda: jax.random.key(0))
        return self._draw[False].lower(self.laid_out(params), key, rows((), np.uint32), cond, np.float32(1), self.grid)

    def laid_out(self, params: Params) -> Params:
        """Shapes, dtypes and shardings of parameters while images are drawn."""
        if self.mesh is None:
            return params
        whole = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=without_fsdp(leaf.sharding))
        return jax.tree.map(whole, params)

    def _whole(self, params: Params) -> Params:
        """Gathered once, not in each step: told nothing, XLA would rather send activations around."""
        if self.mesh is None or self.mesh.shape["fsdp"] == 1:
            return params
        return jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, self.laid_out(params)))

    def _split(self, values: np.ndarray) -> Array | np.ndarray:
        """Over the mesh; every process has all of them."""
        if self.mesh is None:
            return values
        return jax.make_array_from_callback(values.shape, batch_sharding(self.mesh), values.__getitem__)

    def _null(self) -> dict[str, np.ndarray]:
        return self.null | ({"label": np.asarray(self.num_classes, np.int32)} if self.num_classes else {})

    def _check(self, cond: dict[str, np.ndarray], count: int) -> None:
        wanted = {name: (count, *np.shape(value)) for name, value in self.null.items()}
        got = {name: np.shape(value) for name, value in cond.items()}
        if got != wanted:
            raise ValueError(f"cond must be {wanted}, got {got}")


def _here(images: Array | np.ndarray) -> np.ndarray:
    """All of them in this process, also where other processes hold a part."""
    whole = isinstance(images, np.ndarray) or images.is_fully_addressable or images.is_fully_replicated
    return np.asarray(images if whole else multihost_utils.process_allgather(images, tiled=True))
