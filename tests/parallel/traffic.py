"""What a compiled program sends between devices, read from its text: bytes that a device receives, by operation.

Of an array of n bytes over X devices: all-gather and all-to-all n (X - 1) / X, reduce-scatter the same of its operand,
all-reduce both, collective-permute n. What a loop holds counts as often as it goes round.
"""

import re
from collections import Counter

WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
KINDS = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
SENT = re.compile(rf" = (?P<shape>.*?) (?P<kind>{KINDS})(?P<start>-start)?\((?P<rest>.*)")
CALLED = re.compile(
    r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)|branch_computations={(.*?)}"
)


def size(shape: str) -> list[int]:
    """Bytes of each array that a type names."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    lengths = [[int(length) for length in dims.split(",") if length] for _, dims in found]
    return [WIDTH[kind] * _product(dims) for (kind, _), dims in zip(found, lengths, strict=True)]


def _product(lengths: list[int]) -> int:
    result = 1
    for length in lengths:
        result *= length
    return result


def group(rest: str) -> int:
    """Of how many devices the groups of an operation are."""
    if listed := re.search(r"replica_groups={{([\d,]*)}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(counted[2])
    named = re.search(r"replica_groups=mesh\[(.*?)\] {(.*?)}", rest)
    assert named, rest
    axes = {name: int(length) for name, length in re.findall(r"('\w+')=(\d+)", named[1])}
    # A part of an axis is 'name':(what comes before)length.
    return _product([int(part or axes[name]) for name, part in re.findall(r"('\w+')(?::\(\d+\)(\d+))?", named[2])])


def received(kind: str, started: bool, shape: str, rest: str) -> float:
    """By each device, in bytes."""
    sizes = size(shape)
    if kind == "collective-permute":
        return sizes[0]
    devices = group(rest)
    # What has been started is a pair of operand and result; several arrays may be sent as one.
    result = sum(sizes[len(sizes) // 2 :]) if started and kind != "all-reduce" else sum(sizes)
    share = (devices - 1) / devices
    return result * share * {"all-reduce": 2, "reduce-scatter": devices}.get(kind, 1)


def traffic(text: str) -> Counter[str]:
    """Bytes that a device receives in one run of a program, by kind of operation."""
    bodies: dict[str, list[str]] = {}
    for line in text.splitlines():
        if opened := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*{$", line):
            name = "ENTRY" if opened[1] else opened[2]
            bodies[name] = []
        elif line.startswith("  "):
            bodies[name].append(line)

    def of(name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for line in bodies[name]:
            if sent := SENT.search(line):
                total[sent["kind"]] += received(sent["kind"], bool(sent["start"]), sent["shape"], sent["rest"])
                continue
            times = 1
            if " while(" in line:
                counted = re.search(r'known_trip_count"?:{"?n"?:"?(\d+)', line)
                assert counted, f"a loop of unknown length: {line}"
                times = int(counted[1])
            for one, several in CALLED.findall(line):
                for called in [one] if one else re.findall(r"[\w.\-]+", several):
                    for kind, count in of(called).items():
                        total[kind] += times * count
        return total

    return of("ENTRY")
