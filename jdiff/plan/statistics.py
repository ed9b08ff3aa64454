"""What a compiled program does on one device, read from its text.

XLA's own `cost_analysis` counts the body of a loop once. Here each computation is counted as often as it runs.

FLOPs are those of products of matrices, 2 for a multiply-add, counted as XLA's HloCostAnalysis counts a convolution:
taps that fall on padding or between dilated values are none. A Pallas kernel is opaque in the text; it counts with what
it says of itself, and where it says nothing is listed in `opaque`. Of cuDNN's, convolutions count as such, and
attention as two products of the size of its weights forward, five backward, where they are computed again.

Bytes of collectives are what one device sends in a ring (Thakur, Rabenseifner, Gropp 2005): with X devices in a group,
(X - 1)/X of what is gathered, scattered or exchanged, twice that of what is all-reduced. What goes between slices of
TPUs is a `send` to the host, which hands it on: its bytes count once, as two slices exchange them.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from jdiff.plan.hlo import Computation, Instruction, bytes_of, called, group_of, holds, parse, runs_of, shape_of

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
BETWEEN = "between slices"
_PRODUCTS = ("convolution", "dot")
_KERNELS = ("tpu_custom_call", "__cudnn", "__triton", "__cublas", "cublas")
_ATTENTION = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}
"""How many products of the size of the weights these are."""
_CONVOLUTIONS = {
    "__cudnn$convForward": (0, 1, None),
    "__cudnn$convBiasActivationForward": (0, 1, None),
    "__cudnn$convBackwardInput": (None, 1, 0),
    "__cudnn$convBackwardFilter": (0, None, 1),
}
"""Which operand is the input, the kernel and the output of the convolution that `dim_labels` is of; None is the
result."""
_BESIDE = "async_collective_fusion"
"""What computations are called that a collective goes on beside (TPUs); they name the collective again, as does the one
that waits for its end."""


@dataclass(frozen=True)
class Collective:
    """One collective of the program, with the times that it runs in a step."""

    kind: str
    sent: float
    """Bytes that a device sends, all runs together."""
    group: tuple[int, ...]
    """The first group of devices, by their place in the mesh; none of what goes between slices."""
    runs: int
    chain: str = ""
    """XLA's name of what it goes on beside; none where everything waits."""
    beside: float = 0.0
    """The compiler's cycles of computing that it goes on beside, all runs together; 0 where everything waits."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of one device and one run of the program."""

    flops: float
    """With those of kernels."""
    cycles: float
    """The compiler's own estimate, collectives and kernels left out; 0 where it gives none, as on GPUs."""
    product_cycles: float
    """Of these, in fusions with products of matrices."""
    moved: float
    """Bytes that fusions and copies without products read and write in main memory; of a stack of which one layer is
    read or written, that layer."""
    kernel_flops: float
    """Of kernels that say what they do, by their own estimate."""
    kernel_moved: float
    """Bytes that these read and write in main memory, by the same."""
    collectives: tuple[Collective, ...]
    opaque: dict[str, int]
    """Kernels that do not say, with how often they run."""

    def sent(self) -> dict[str, float]:
        """Bytes that a device sends, by kind of collective."""
        total: dict[str, float] = defaultdict(float)
        for collective in self.collectives:
            total[collective.kind] += collective.sent
        return dict(sorted(total.items()))

    def between(self, each: int) -> float:
        """Bytes that a device sends in groups that do not lie within one host of `each` devices."""
        return sum(one.sent for one in self.collectives if len({place // each for place in one.group}) > 1)


def statistics(text: str) -> Statistics:
    """Of the text of a compiled program. Raises ValueError for a loop whose trip count it does not show."""
    computations, entry = parse(text)
    runs = runs_of(computations, entry)
    fused = {
        name
        for computation in computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
        for name in called(instruction)
    }
    flops = cycles = product_cycles = moved = kernel_flops = kernel_moved = 0.0
    collectives, opaque, beside = [], Counter(), Counter()
    for name, times in runs.items():
        body = computations[name].instructions
        again = name.startswith(_BESIDE) or any(_target(one) == "AsyncCollectiveDone" for one in body.values())
        for instruction in body.values():
            kind = instruction.opcode.removesuffix("-start")
            if instruction.opcode in _PRODUCTS:
                flops += times * _flops(instruction, body)
            elif instruction.opcode == "send" and "_xla_megascale_target" in instruction.attributes:
                size = bytes_of(body[instruction.operands[0]].type)
                collectives.append(Collective(BETWEEN, size * times, (), times))
            elif kind in _COLLECTIVES and not again:
                collectives.append(_collective(instruction, kind, name, body, times))
            elif _target(instruction) in _CONVOLUTIONS:
                flops += times * _convolution(_shapes(instruction, body), instruction)
            elif _target(instruction).startswith(_KERNELS):
                said = _kernel(instruction, body)
                kernel_flops += times * said[0] if said else 0
                kernel_moved += times * said[1] if said else 0
                opaque[_target(instruction)] += 0 if said else times
            if name in fused or kind in _COLLECTIVES:
                continue
            laid = [other for other in called(instruction) if other.startswith(_BESIDE)]
            if holds(instruction, computations, _COLLECTIVES) and not laid:
                continue
            found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            taken = times * int(found[1]) if found else 0
            cycles += taken
            for other in laid:
                beside.update(dict.fromkeys(_chains(computations[other]), taken))
            if instruction.opcode in _PRODUCTS or holds(instruction, computations, _PRODUCTS):
                product_cycles += taken
            elif instruction.opcode in ("fusion", "copy"):
                moved += times * _moved(instruction, body, computations)
    return Statistics(
        flops=flops + kernel_flops,
        cycles=cycles,
        product_cycles=product_cycles,
        moved=moved,
        kernel_flops=kernel_flops,
        kernel_moved=kernel_moved,
        collectives=tuple(replace(one, beside=float(beside[one.chain]) if one.chain else 0.0) for one in collectives),
        opaque={target: times for target, times in opaque.items() if times},
    )


def _target(instruction: Instruction) -> str:
    """Of a custom call."""
    found = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
    return found[1] if found and instruction.opcode == "custom-call" else ""


def _shapes(instruction: Instruction, body: dict[str, Instruction]) -> list[tuple[int, ...]]:
    """Of the input, the kernel and the output of a convolution of cuDNN's."""
    operands = [shape_of(body[name].type) for name in instruction.operands]
    places = _CONVOLUTIONS[_target(instruction)]
    return [shape_of(instruction.type) if place is None else operands[place] for place in places]


def _kernel(instruction: Instruction, body: dict[str, Instruction]) -> tuple[float, float] | None:
    """FLOPs of a kernel and the bytes that it reads and writes; None where it does not say."""
    if said := re.search(r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"', instruction.attributes):
        return int(said[1]), int(said[2])
    weights = re.search(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]', instruction.attributes)
    if weights is None or _target(instruction) not in _ATTENTION:
        return None
    products = _ATTENTION[_target(instruction)] * math.prod(int(size) for size in re.findall(r"\d+", weights[1]))
    moved = bytes_of(instruction.type) + sum(bytes_of(body[name].type) for name in instruction.operands)
    return 2.0 * products * shape_of(body[instruction.operands[0]].type)[-1], moved


def _chains(computation: Computation) -> set[str]:
    """Of its collectives."""
    return {_chain(one) for one in computation.instructions.values() if one.opcode in _COLLECTIVES}


def _chain(collective: Instruction) -> str:
    found = re.search(r'chain_id="(\d+)"', collective.attributes)
    return found[1] if found else ""


def _flops(product: Instruction, body: dict[str, Instruction]) -> float:
    left, right = (shape_of(body[name].type) for name in product.operands[:2])
    if product.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        contracted = math.prod(left[int(axis)] for axis in axes[1].split(",") if axis) if axes else 1
        return 2.0 * math.prod(shape_of(product.type)) * contracted
    return _convolution([left, right, shape_of(product.type)], product)


def _convolution(shapes: list[tuple[int, ...]], product: Instruction) -> float:
    """Of input, kernel and output."""
    left, right, out = shapes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    if labels is None:
        raise ValueError(f"convolution {product.name} has no dim_labels")
    inputs, kernel, outputs = labels.groups()
    window = dict(
        re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", product.attributes) or [""] * 2)[1])
    )
    taps = 1
    for axis in sorted(label for label in kernel if label.isdigit()):
        one = lambda key, default, axis=axis: window[key].split("x")[int(axis)] if key in window else default
        size, steps = int(one("size", "1")), out[outputs.index(axis)]
        taps *= _valid(
            left[inputs.index(axis)],
            size,
            steps,
            int(one("stride", "1")),
            int(one("pad", "0_0").split("_")[0]),
            int(one("lhs_dilate", "1")),
            int(one("rhs_dilate", "1")),
        )
    groups = re.search(r"batch_group_count=(\d+)", product.attributes)
    batch = left[inputs.index("b")] / (int(groups[1]) if groups else 1)
    return 2.0 * batch * out[outputs.index("f")] * right[kernel.index("i")] * taps


def _valid(length: int, size: int, steps: int, stride: int, pad: int, dilate: int, spread: int) -> int:
    """Pairs of an output's place and a tap of the kernel that meet at a value of the input."""
    place = np.arange(steps)[:, None] * stride + np.arange(size) * spread - pad
    return int(((place >= 0) & (place < (length - 1) * dilate + 1) & (place % dilate == 0)).sum())


def _collective(instruction: Instruction, kind: str, name: str, body: dict[str, Instruction], times: int) -> Collective:
    # On TPUs a reduce-scatter is an all-reduce inside a fusion that keeps its own part.
    kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
    group = group_of(instruction.attributes)
    size = sum(bytes_of(body[operand].type) for operand in instruction.operands if operand in body)
    share = (len(group) - 1) / len(group) if group else 0.0
    if kind == "all-gather":
        sent = size * (len(group) - 1)
    elif kind == "collective-permute":
        sent = size
    else:
        sent = size * share * (2 if kind == "all-reduce" else 1)
    return Collective(kind, sent * times, group, times, _chain(instruction))


def _moved(instruction: Instruction, body: dict[str, Instruction], computations: dict[str, Computation]) -> float:
    """Bytes read and written in main memory; S(1) marks what lies in the chip's own."""
    main = lambda kind: 0.0 if "S(1)" in kind and not kind.startswith("(") else bytes_of(kind)
    reads = {place: main(body[name].type) for place, name in enumerate(instruction.operands) if name in body}
    writes = main(instruction.type)
    parts = [name for name in called(instruction) if name in computations] if instruction.opcode == "fusion" else []
    inside = computations[parts[0]].instructions if parts else {}
    for inner in inside.values():
        source = inside.get(inner.operands[0]) if inner.operands else None
        if inner.opcode not in ("dynamic-slice", "dynamic-update-slice") or source is None:
            continue
        part = bytes_of(inner.type)
        if inner.opcode == "dynamic-update-slice":
            update = inside.get(inner.operands[1])
            part = bytes_of(update.type) if update is not None else part
            writes -= min(writes, bytes_of(inner.type) - part)
        if source.opcode == "parameter" and (place := int(source.operands[0])) in reads:
            reads[place] = min(reads[place], 0.0 if inner.opcode == "dynamic-update-slice" else part)
    return sum(reads.values()) + writes
