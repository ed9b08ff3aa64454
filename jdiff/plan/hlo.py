"""What a compiled program does on one device, read from its text (the HLO that XLA prints after partitioning).

XLA's own `cost_analysis` counts the body of a loop once. Here each computation is counted as often as it runs: the
trip count of a loop is the `known_trip_count` that XLA notes (GPUs), or what its counter, which goes in steps of 1, has
to go from its start to what the condition compares it with (TPUs; not always from 0: the compiler moves a first turn of
a scan out of the loop).

FLOPs are those of products of matrices, 2 for a multiply-add, counted as XLA's HloCostAnalysis counts a convolution:
taps that fall on padding or between dilated values are none. A Pallas kernel is opaque in the text: what is not counted
is listed in `opaque`.

Bytes of collectives are what one device sends in a ring (Thakur, Rabenseifner, Gropp 2005): with X devices in a group,
(X - 1)/X of what is gathered, scattered or exchanged, twice that of what is all-reduced. What goes between slices of
TPUs is a `send` to the host, which hands it on: its bytes count once, as two slices exchange them.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

_BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
BETWEEN = "between slices"
_PRODUCTS = ("convolution", "dot")
_ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """One collective of the program, with the times that it runs in a step."""

    kind: str
    sent: float
    """Bytes that a device sends, all runs together."""
    group: tuple[int, ...]
    """The first group of devices, by their place in the mesh; none of what goes between slices."""
    runs: int


@dataclass(frozen=True)
class Statistics:
    """Of one device and one run of the program."""

    flops: float
    cycles: float
    """The compiler's own estimate, collectives and opaque kernels left out; 0 where it gives none, as on GPUs."""
    product_cycles: float
    """Of these, in fusions with products of matrices."""
    moved: float
    """Bytes that fusions and copies without products read and write in main memory; of a stack of which one layer is
    read or written, that layer."""
    collectives: tuple[Collective, ...]
    opaque: dict[str, int]
    """Kernels that the text does not show the inside of, with how often they run."""

    def sent(self) -> dict[str, float]:
        """Bytes that a device sends, by kind of collective."""
        total: dict[str, float] = defaultdict(float)
        for collective in self.collectives:
            total[collective.kind] += collective.sent
        return dict(sorted(total.items()))


@dataclass
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: list[str]
    attributes: str


@dataclass
class _Computation:
    instructions: dict[str, _Instruction] = field(default_factory=dict)


def statistics(text: str) -> Statistics:
    """Of the text of a compiled program. Raises ValueError for a loop whose trip count it does not show."""
    computations, entry = _parse(text)
    runs = _runs(computations, entry)
    fused = {
        name
        for computation in computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
        for name in _called(instruction)
    }
    flops = cycles = product_cycles = moved = 0.0
    collectives, opaque = [], Counter()
    for name, times in runs.items():
        body = computations[name].instructions
        for instruction in body.values():
            kind = instruction.opcode.removesuffix("-start")
            if instruction.opcode in _PRODUCTS:
                flops += times * _flops(instruction, body)
            elif instruction.opcode == "send" and "_xla_megascale_target" in instruction.attributes:
                size = _bytes(body[instruction.operands[0]].type)
                collectives.append(Collective(BETWEEN, size * times, (), times))
            elif kind in _COLLECTIVES:
                collectives.append(_collective(instruction, kind, name, body, times))
            elif instruction.opcode == "custom-call" and (target := _opaque(instruction)):
                opaque[target] += times
            if name in fused or kind in _COLLECTIVES or _holds(instruction, computations, _COLLECTIVES):
                continue
            found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            taken = times * int(found[1]) if found else 0
            cycles += taken
            if instruction.opcode in _PRODUCTS or _holds(instruction, computations, _PRODUCTS):
                product_cycles += taken
            elif instruction.opcode in ("fusion", "copy"):
                moved += times * _moved(instruction, body, computations)
    return Statistics(flops, cycles, product_cycles, moved, tuple(collectives), dict(opaque))


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            current = computations[name] = _Computation()
            entry = name if line.startswith("ENTRY ") else entry
        elif line.startswith("  ") and " = " in line and current is not None:
            instruction = _instruction(re.sub(r"/\*index=\d+\*/", "", line))
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("the text of the program has no ENTRY computation")
    return computations, entry


def _instruction(line: str) -> _Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = re.findall(r"%([\w.\-]+)", inside) or ([inside] if inside else [])
    return _Instruction(name.lstrip("%"), kind, rest[:opening], operands, rest[closing + 1 :])


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"a parenthesis that nothing closes: {text[start : start + 80]}")


def _called(instruction: _Instruction) -> list[str]:
    found = []
    for one, several in _CALLED.findall(instruction.attributes):
        found += [one] if one else [name.strip().lstrip("%") for name in several.split(",")]
    return found


def _runs(computations: dict[str, _Computation], entry: str) -> dict[str, int]:
    """How often each computation runs; a branch of a conditional as often as the conditional."""
    order, seen = [], set()

    def visit(name: str) -> None:
        if name in seen or name not in computations:
            return
        seen.add(name)
        for instruction in computations[name].instructions.values():
            for other in _called(instruction):
                visit(other)
        order.append(name)

    visit(entry)
    runs: dict[str, int] = defaultdict(int, {entry: 1})
    for name in reversed(order):
        for instruction in computations[name].instructions.values():
            around = computations[name].instructions
            times = _trips(instruction, around, computations) if instruction.opcode == "while" else 1
            for other in _called(instruction):
                if other in computations:
                    runs[other] += runs[name] * times
    return dict(runs)


def _trips(loop: _Instruction, around: dict[str, _Instruction], computations: dict[str, _Computation]) -> int:
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    inside = computations[condition[1]].instructions if condition else {}
    compared = [one for one in inside.values() if one.opcode == "compare" and "direction=LT" in one.attributes]
    if len(compared) == 1 and all(name in inside for name in compared[0].operands):
        counter, limit = (inside[name] for name in compared[0].operands)
        place = re.search(r"index=(\d+)", counter.attributes)
        started = around.get(loop.operands[0])
        if place and started and started.opcode == "tuple":
            start = _constant(started.operands[int(place[1])], around)
            end = _constant(limit.name, inside)
            if start is not None and end is not None:
                return end - start
    raise ValueError(f"loop {loop.name}: its condition does not show how often it runs")


def _constant(name: str, body: dict[str, _Instruction]) -> int | None:
    """The value of a scalar, through copies; None where it is computed."""
    found = body.get(name)
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = body.get(found.operands[0])
    return int(found.operands[0]) if found is not None and found.opcode == "constant" else None


def _shape(kind: str) -> tuple[int, ...]:
    found = _ARRAY.search(kind)
    return tuple(int(n) for n in found[2].split(",") if n) if found else ()


def _bytes(kind: str) -> float:
    """Of an array or a tuple of arrays, without padding."""
    total = 0.0
    for dtype, shape in _ARRAY.findall(kind):
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype) if dtype in _BITS else int(digits[0]) if digits else 0
        total += math.prod(int(n) for n in shape.split(",") if n) * (bits or 0) / 8
    return total


def _flops(product: _Instruction, body: dict[str, _Instruction]) -> float:
    left, right = (_shape(body[name].type) for name in product.operands[:2])
    if product.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        contracted = math.prod(left[int(axis)] for axis in axes[1].split(",") if axis) if axes else 1
        return 2.0 * math.prod(_shape(product.type)) * contracted
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    if labels is None:
        raise ValueError(f"convolution {product.name} has no dim_labels")
    inputs, kernel, outputs = labels.groups()
    window = dict(
        re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", product.attributes) or [""] * 2)[1])
    )
    out = _shape(product.type)
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


def _collective(
    instruction: _Instruction, kind: str, name: str, body: dict[str, _Instruction], times: int
) -> Collective:
    # On TPUs a reduce-scatter is an all-reduce inside a fusion that keeps its own part.
    kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
    group = _group(instruction.attributes)
    size = sum(_bytes(body[operand].type) for operand in instruction.operands if operand in body)
    share = (len(group) - 1) / len(group) if group else 0.0
    if kind == "all-gather":
        sent = size * (len(group) - 1)
    elif kind == "collective-permute":
        sent = size
    else:
        sent = size * share * (2 if kind == "all-reduce" else 1)
    return Collective(kind, sent * times, group, times)


def _group(attributes: str) -> tuple[int, ...]:
    """The first group of devices, from any of the ways in which XLA writes groups."""
    if pair := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return tuple(int(place) for place in pair.groups())
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(place) for place in listed[1].split(","))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", attributes):
        names = re.findall(r"'(\w+)'=(\d+)", mesh[1])
        sizes = [int(size) for _, size in names]
        ids = _iota(mesh[2]) if mesh[2] else np.arange(math.prod(sizes))
        inside = [axis for axis, (name, _) in enumerate(names) if f"'{name}'" in mesh[3]]
        places = ids.reshape(sizes)[tuple(slice(None) if axis in inside else 0 for axis in range(len(sizes)))]
        return tuple(int(place) for place in places.ravel())
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+)", attributes):
        return tuple(int(place) for place in _iota(counted[3]).reshape(int(counted[1]), int(counted[2]))[0])
    raise ValueError(f"replica_groups in a form that is not known: {attributes[:200]}")


def _iota(text: str) -> np.ndarray:
    """[64,8]T(1,0): the numbers from 0 in that shape, its axes turned."""
    shape = re.search(r"\[([\d,]+)\]", text)
    sizes = [int(size) for size in shape[1].split(",")] if shape else []
    turned = re.search(r"T\(([\d,]+)\)", text)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose([int(axis) for axis in turned[1].split(",")]) if turned else ids).ravel()


def _opaque(instruction: _Instruction) -> str:
    target = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
    kernels = ("tpu_custom_call", "__cudnn", "__triton", "__cublas", "cublas")
    return target[1] if target and target[1].startswith(kernels) else ""


def _holds(instruction: _Instruction, computations: dict[str, _Computation], opcodes: tuple[str, ...]) -> bool:
    """Whether it is a fusion of any of these."""
    return any(
        inner.opcode in opcodes
        for name in _called(instruction)
        if instruction.opcode == "fusion" and name in computations
        for inner in computations[name].instructions.values()
    )


def _moved(instruction: _Instruction, body: dict[str, _Instruction], computations: dict[str, _Computation]) -> float:
    """Bytes read and written in main memory; S(1) marks what lies in the chip's own."""
    main = lambda kind: 0.0 if "S(1)" in kind and not kind.startswith("(") else _bytes(kind)
    reads = {place: main(body[name].type) for place, name in enumerate(instruction.operands) if name in body}
    writes = main(instruction.type)
    called = [name for name in _called(instruction) if name in computations] if instruction.opcode == "fusion" else []
    inside = computations[called[0]].instructions if called else {}
    for inner in inside.values():
        source = inside.get(inner.operands[0]) if inner.operands else None
        if inner.opcode not in ("dynamic-slice", "dynamic-update-slice") or source is None:
            continue
        part = _bytes(inner.type)
        if inner.opcode == "dynamic-update-slice":
            update = inside.get(inner.operands[1])
            part = _bytes(update.type) if update is not None else part
            writes -= min(writes, _bytes(inner.type) - part)
        if source.opcode == "parameter" and (place := int(source.operands[0])) in reads:
            reads[place] = min(reads[place], 0.0 if inner.opcode == "dynamic-update-slice" else part)
    return sum(reads.values()) + writes
