"""Processes that train together, meshes over their devices, and how arrays lie on them.

Axes of a mesh, any of them 1:

- `data`: the batch is split, parameters are copies.
- `fsdp`: the batch is split, and so are large parameters, their optimizer state and their averages (1910.02054).
- `tensor`: attention heads and the inner width of two-layer networks are split (1909.08053).
- `context`: tokens are split; keys and values go around (2310.01889).
- `pipeline`: stacks of equal blocks are split, and the batch passes through in pieces (1811.06965).

The global batch is the same arithmetic on any mesh. Networks see the mesh as JAX's ambient one, and these names.
"""

from jdiff.parallel.hosts import join, own_output, wait_for_all
from jdiff.parallel.mesh import (
    AXES,
    BATCH,
    Mesh,
    batch_sharding,
    check_batch,
    compiler_options,
    host_share,
    put_batch,
    replicated,
    without_fsdp,
)
from jdiff.parallel.pmap import mapped
from jdiff.parallel.rules import Row, report, state_sharding, summary
from jdiff.parallel.virtual import check_virtual, on_virtual_shards

__all__ = [
    "AXES",
    "BATCH",
    "Mesh",
    "Row",
    "batch_sharding",
    "check_batch",
    "check_virtual",
    "compiler_options",
    "host_share",
    "join",
    "mapped",
    "on_virtual_shards",
    "own_output",
    "put_batch",
    "replicated",
    "report",
    "state_sharding",
    "summary",
    "wait_for_all",
    "without_fsdp",
]
