"""The text of a compiled program (the HLO that XLA prints after partitioning), taken apart.

How often a computation runs: the trip count of a loop is the `known_trip_count` that XLA notes (GPUs), or what its
counter, which goes in steps of 1, has to go from its start to what the condition compares it with (TPUs; not always
from 0: the compiler moves a first turn of a scan out of the loop).
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

_BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0}
_ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")


@dataclass
class Instruction:
    """One line."""

    name: str
    type: str
    opcode: str
    operands: list[str]
    attributes: str


@dataclass
class Computation:
    """Its instructions by name, in the order of the text."""

    instructions: dict[str, Instruction] = field(default_factory=dict)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of the one that it starts with."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            current = computations[name] = Computation()
            entry = name if line.startswith("ENTRY ") else entry
        elif line.startswith("  ") and " = " in line and current is not None:
            instruction = _instruction(re.sub(r"/\*index=\d+\*/", "", line))
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("the text of the program has no ENTRY computation")
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = re.findall(r"%([\w.\-]+)", inside) or ([inside] if inside else [])
    return Instruction(name.lstrip("%"), kind, rest[:opening], operands, rest[closing + 1 :])


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"a parenthesis that nothing closes: {text[start : start + 80]}")


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that it runs."""
    found = []
    for one, several in _CALLED.findall(instruction.attributes):
        found += [one] if one else [name.strip().lstrip("%") for name in several.split(",")]
    return found


def runs_of(computations: dict[str, Computation], entry: str) -> dict[str, int]:
    """How often each computation runs; a branch of a conditional as often as the conditional."""
    order, seen = [], set()

    def visit(name: str) -> None:
        if name in seen or name not in computations:
            return
        seen.add(name)
        for instruction in computations[name].instructions.values():
            for other in called(instruction):
                visit(other)
        order.append(name)

    visit(entry)
    runs: dict[str, int] = defaultdict(int, {entry: 1})
    for name in reversed(order):
        for instruction in computations[name].instructions.values():
            around = computations[name].instructions
            times = _trips(instruction, around, computations) if instruction.opcode == "while" else 1
            for other in called(instruction):
                if other in computations:
                    runs[other] += runs[name] * times
    return dict(runs)


def _trips(loop: Instruction, around: dict[str, Instruction], computations: dict[str, Computation]) -> int:
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


def _constant(name: str, body: dict[str, Instruction]) -> int | None:
    """The value of a scalar, through copies; None where it is computed."""
    found = body.get(name)
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = body.get(found.operands[0])
    return int(found.operands[0]) if found is not None and found.opcode == "constant" else None


def shape_of(kind: str) -> tuple[int, ...]:
    """Of an array."""
    found = _ARRAY.search(kind)
    return tuple(int(n) for n in found[2].split(",") if n) if found else ()


def bytes_of(kind: str) -> float:
    """Of an array or a tuple of arrays, without padding."""
    total = 0.0
    for dtype, shape in _ARRAY.findall(kind):
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype) if dtype in _BITS else int(digits[0]) if digits else 0
        total += math.prod(int(n) for n in shape.split(",") if n) * (bits or 0) / 8
    return total


def holds(instruction: Instruction, computations: dict[str, Computation], opcodes: tuple[str, ...]) -> bool:
    """Whether it is a fusion of any of these, or of fusions of them."""
    return instruction.opcode == "fusion" and any(
        inner.opcode in opcodes or holds(inner, computations, opcodes)
        for name in called(instruction)
        if name in computations
        for inner in computations[name].instructions.values()
    )


def group_of(attributes: str) -> tuple[int, ...]:
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
