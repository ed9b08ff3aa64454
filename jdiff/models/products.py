"""Linear layers and convolutions that keep the batch where it is, and multiply rows.

Where a mesh has an axis `fsdp`, it splits the batch and the weights. A compiler that is free to choose multiplies with
the part of the weights that a device has, and sends activations around, wherever those are the smaller ones. With the
results split as the batch is, it has to bring the weights together instead, and to leave of their gradient the
device's own part: what fully sharded data parallelism is (1910.02054). XLA on a CPU still sums gradients of kernels on
all devices and cuts them afterwards, which sends twice as much. So where no other axis splits a kernel, each device
gathers it in a `shard_map`, whose transpose sums and scatters; it is gathered anew for the backward pass, not kept. Not
on TPUs: there XLA scatters by itself, and lays half as much computing beside what it is told to gather (pod_plans.md).

And where a mesh has an axis `context`, it splits tokens, but not the images of convolutions: XLA gets gradients of
kernels wrong where it splits images along an axis beside others (jaxlib 0.10.2, on a CPU).

Without `context`, linear layers and 1 x 1 convolutions are products of two matrices: for the gradient of a kernel, XLA
on a CPU transposes what has more axes, and computes it anew, out of order, to do so (experiments/results/
networks_vs_torch.md).
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from jdiff.models import ambient
from jdiff.typing import Array


def by_rows(product: Callable[[Array], Array], x: Array) -> Array:
    """A product [N, in] -> [N, out] of all the rows of x [B, ..., in]."""
    rows = product(x.reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


def _gathering(product: Callable[..., Array]) -> Callable[..., Array]:
    """product(x, kernel, ...) that itself brings together what `fsdp` has split of the kernel."""

    @wraps(product)
    def gathered(x: Array, kernel: Array, *rest: Any, **options: Any) -> Array:
        axis = ambient.kernel_axis(kernel.shape)
        if axis is None or x.shape[0] % ambient.size(*ambient.BATCH) or ambient.platform() == "tpu":
            return product(x, kernel, *rest, **options)

        @jax.checkpoint
        def local(x: Array, part: Array) -> Array:
            # Different along `data` before it is gathered, so that what `data` sums of its gradient is the part.
            part = jax.lax.pcast(part, "data", to="varying")
            return product(x, jax.lax.all_gather(part, "fsdp", axis=axis, tiled=True), *rest, **options)

        rows, parts = PartitionSpec(ambient.BATCH), PartitionSpec(*(None,) * axis, "fsdp")
        mapped = jax.shard_map(local, in_specs=(rows, parts), out_specs=rows, axis_names=set(ambient.BATCH))
        return mapped(x, kernel)

    return gathered


_dot_general = _gathering(jax.lax.dot_general)
_convolution = _gathering(jax.lax.conv_general_dilated)
_matmul = _gathering(jax.numpy.matmul)


class Linear(nnx.Linear):
    """Flax's, x [B, ..., in] -> [B, ..., out], split along B."""

    def __init__(self, *sizes: int, **options: Any):
        super().__init__(*sizes, dot_general=_dot_general, **options)

    def __call__(self, inputs: Array) -> Array:
        product = super().__call__
        return ambient.in_place(product(inputs) if ambient.size("context") > 1 else by_rows(product, inputs))


class Conv(nnx.Conv):
    """Flax's, x [B, H, W, in] -> [B, H', W', out], split along B alone."""

    def __init__(self, *sizes: Any, **options: Any):
        super().__init__(*sizes, conv_general_dilated=_convolution, **options)

    def __call__(self, inputs: Array) -> Array:
        if ambient.size("context") == 1 and self.kernel.shape[:2] == (1, 1) and self.strides == 1:
            return ambient.in_place(by_rows(self.rows, inputs))
        return ambient.in_place(ambient.along_batch(super().__call__(ambient.along_batch(inputs))))

    def rows(self, x: Array) -> Array:
        """[N, in] -> [N, out] of a 1 x 1 convolution."""
        x, kernel, bias = self.promote_dtype((x, self.kernel[0, 0], self.bias), dtype=self.dtype)
        product = _matmul(x, kernel)
        return product if bias is None else product + bias
