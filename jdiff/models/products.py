"""Linear layers and convolutions that keep the batch where it is.

Where a mesh has an axis `fsdp`, it splits the batch and the weights. A compiler that is free to choose multiplies with
the part of the weights that a device has, and sends activations around, wherever those are the smaller ones. With the
results split as the batch is, it has to bring the weights together instead, and to leave of their gradient the
device's own part: what fully sharded data parallelism is (1910.02054).

And where a mesh has an axis `context`, it splits tokens, but not the images of convolutions: XLA gets gradients of
kernels wrong where it splits images along an axis beside others (jaxlib 0.10.2, on a CPU).
"""

from flax import nnx

from jdiff.models import ambient
from jdiff.typing import Array


class Linear(nnx.Linear):
    """Flax's, x [B, ..., in] -> [B, ..., out], split along B."""

    def __call__(self, inputs: Array) -> Array:
        if ambient.size("context") > 1:
            return ambient.in_place(super().__call__(inputs))
        rows = super().__call__(inputs.reshape(-1, self.in_features))
        return ambient.in_place(rows.reshape(*inputs.shape[:-1], self.out_features))


class Conv(nnx.Conv):
    """Flax's, x [B, H, W, in] -> [B, H', W', out], split along B alone."""

    def __call__(self, inputs: Array) -> Array:
        return ambient.in_place(ambient.along_batch(super().__call__(ambient.along_batch(inputs))))
