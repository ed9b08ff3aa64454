"""`python -m tests.fuzz --seconds 1200 [--only NAME] [--seed N]`: all fuzzers in turn, for so many seconds in all.

A fuzzer is a module fuzz_NAME.py beside this file with `run(seconds: float, seed: int) -> dict[str, int]`: counts by
outcome, and AssertionError, naming seed and case, for a fault. The exit status is 1 if one has found a fault.
"""

import argparse
import importlib
import sys
from pathlib import Path

NAMES = sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py"))


def fuzz(name: str, seconds: float, seed: int) -> dict[str, int]:
    """Runs one fuzzer. Raises AssertionError for a fault."""
    return importlib.import_module(f"tests.fuzz.fuzz_{name}").run(seconds, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen, faults = [arguments.only] if arguments.only else NAMES, 0
    for name in chosen:
        try:
            counts = fuzz(name, arguments.seconds / len(chosen), arguments.seed)
            print(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}", flush=True)
        except AssertionError as error:
            faults += 1
            print(f"{name}: FAULT: {error}", flush=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
