"""Linear layers and convolutions that keep the batch where it is, and multiply rows.

Where a mesh has an axis `fsdp`, it splits the batch and the weights. A compiler that is free to choose multiplies with
the part of the weights that a device has, and sends activations around, wherever those are the smaller ones. With the
results split as the batch is, it has to bring the weights together instead, and to leave of their gradient the
device's own part: what fully sharded data parallelism is (1910.02054).

And where a mesh has an axis `context`, it splits tokens, but not the images of convolutions: XLA gets gradients of
kernels wrong where it splits images along an axis beside others (jaxlib 0.10.2, on a CPU).

Without `context`, linear layers and 1 x 1 convolutions are products of two matrices: for the gradient of a kernel, XLA
on a CPU transposes what has more axes, and computes it anew, out of order, to do so (experiments/results/
networks_vs_torch.md).
"""

from collections.abc import Callable

from flax import nnx

from jdiff.models import ambient
from jdiff.typing import Array


def by_rows(product: Callable[[Array], Array], x: Array) -> Array:
    """A product [N, in] -> [N, out] of all the rows of x [B, ..., in]."""
    rows = product(x.reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


class Linear(nnx.Linear):
    """Flax's, x [B, ..., in] -> [B, ..., out], split along B."""

    def __call__(self, inputs: Array) -> Array:
        product = super().__call__
        return ambient.in_place(product(inputs) if ambient.size("context") > 1 else by_rows(product, inputs))


class Conv(nnx.Conv):
    """Flax's, x [B, H, W, in] -> [B, H', W', out], split along B alone."""

    def __call__(self, inputs: Array) -> Array:
        if ambient.size("context") == 1 and self.kernel.shape[:2] == (1, 1) and self.strides == 1:
            return ambient.in_place(by_rows(self.rows, inputs))
        return ambient.in_place(ambient.along_batch(super().__call__(ambient.along_batch(inputs))))

    def rows(self, x: Array) -> Array:
        """[N, in] -> [N, out] of a 1 x 1 convolution."""
        x, kernel, bias = self.promote_dtype((x, self.kernel[0, 0], self.bias), dtype=self.dtype)
        return x @ kernel if bias is None else x @ kernel + bias
