"""Does the suite notice a wrong formula? Perturbs one formula at a time and expects a test to fail.

    python -m tests.mutate [--only PATH] [--list] [--json]

Opt-in: it takes about half an hour. Each mutant of the files in `FIRST` is written into a temporary copy of the
package, never into the working tree, and the tests of the maths run there until one fails. A mutant swaps + and -,
* and /, drops a minus, multiplies a constant by 1.1, exchanges a function for its neighbour (exp and expm1), the times
t and s, or the branches of a conditional expression. Checks, messages, type hints, defaults, indices and shapes are
left alone. A mutant that changes no result is listed in `EQUIVALENT` with the reason, and is not run. Exit status 1
tells of survivors.
"""

import argparse
import ast
import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOLVERS, LOOP, FIRST_ORDER = (f"tests/samplers/test_{name}.py" for name in ("solvers", "loop", "first_order"))
CHAIN, SCHEDULES = "tests/processes/test_discrete.py", "tests/processes/test_schedules.py"
PROCESSES, PREDICTION, GRIDS = "tests/test_processes.py", "tests/test_prediction.py", "tests/samplers/test_grids.py"
LOSSES, BOUND, TIMES = (f"tests/losses/test_{name}.py" for name in ("losses", "bound", "times"))
GUIDANCE, CLASSIFIER_FREE = "tests/test_guidance.py", "tests/test_classifier_free.py"
PUBLISHED = "tests/samplers/test_published.py"
SDE, LANGEVIN, ANALYTIC, ADAPTIVE = (f"tests/samplers/test_{n}.py" for n in ("sde", "langevin", "analytic", "adaptive"))
# Each mutated file, and selections of the tests most likely to fail first. All of `TESTS` follow when those pass.
FIRST = {
    "jdiff/processes/base.py": (PROCESSES, ["flow"]),
    "jdiff/processes/cosine.py": (PROCESSES, ["cosine"]),
    "jdiff/processes/discrete.py": (CHAIN, [""]),
    "jdiff/processes/flow.py": (PROCESSES, ["flow or span"]),
    "jdiff/processes/inner.py": (PROCESSES, ["chain"]),
    "jdiff/processes/learned.py": (PROCESSES, ["learned"]),
    "jdiff/processes/shifted.py": (PROCESSES, ["shifted"]),
    "jdiff/processes/ve.py": (PROCESSES, ["ve"]),
    "jdiff/processes/vp.py": (PROCESSES, ["vp or span"]),
    "jdiff/processes/zero_snr.py": (PROCESSES, ["zero_snr"]),
    "jdiff/prediction.py": (PREDICTION, ["vp", "plain"]),
    "jdiff/losses/base.py": (LOSSES, [""]),
    "jdiff/losses/bound.py": (BOUND, [""]),
    "jdiff/losses/history.py": (TIMES, ["history"]),
    "jdiff/losses/times.py": (TIMES, [""]),
    "jdiff/losses/variational.py": (BOUND, ["loss"]),
    "jdiff/losses/weighted.py": (LOSSES, [""]),
    "jdiff/guidance.py": (GUIDANCE, [""]),
    "jdiff/samplers/ddim.py": (FIRST_ORDER, [""]),
    "jdiff/samplers/ddpm.py": (FIRST_ORDER, ["of_its_name or eta_one"]),
    "jdiff/samplers/deis.py": (PUBLISHED, ["a_method and (deis or lms)"]),
    "jdiff/samplers/dpmpp.py": (PUBLISHED, ["a_method and (dpmpp_2m or 3m or solver_2m)"]),
    "jdiff/samplers/ipndm.py": (PUBLISHED, ["a_method and (ipndm or gradient)"]),
    "jdiff/samplers/multistep.py": (PUBLISHED, ["a_method and (3m or deis or ipndm)", "unipc3 or no_signal and 3m"]),
    "jdiff/samplers/pndm.py": (PUBLISHED, ["a_method and pndm"]),
    "jdiff/samplers/runge_kutta.py": (
        PUBLISHED,
        ["a_method and (dpm_solver_3 or res or dpmpp_2s)", "no_signal and res"],
    ),
    "jdiff/samplers/unipc.py": (PUBLISHED, ["a_method and (unipc2 or unipc3_eps)"]),
    "jdiff/samplers/base.py": (LOOP, ["not_finite or bad_arguments"]),
    "jdiff/samplers/noise.py": (LOOP, ["brownian"]),
    "jdiff/samplers/euler.py": (FIRST_ORDER, ["tangent"]),
    "jdiff/samplers/heun.py": (SOLVERS, ["order_of_ode and heun"]),
    "jdiff/samplers/adaptive.py": (ADAPTIVE, ["flow or moments or counted", ""]),
    "jdiff/samplers/analytic.py": (ANALYTIC, [""]),
    "jdiff/samplers/ancestral.py": (SDE, ["point and ancestral", "no_signal"]),
    "jdiff/samplers/churn.py": (SDE, ["point and (edm or restart) or churn or goes_up", "without_noise or no_signal"]),
    "jdiff/samplers/dpmpp_sde.py": (SDE, ["point and dpmpp or parabolas or without_noise", ""]),
    "jdiff/samplers/er_sde.py": (SDE, ["parabolas"]),
    "jdiff/samplers/langevin.py": (LANGEVIN, [""]),
    "jdiff/samplers/sa_solver.py": (SDE, ["point and sa_solver or parabolas", "sa_solver"]),
    "jdiff/samplers/sde.py": (SOLVERS, ["weak and (euler_maruyama or reverse_diffusion)"]),
    "jdiff/samplers/sde_multistep.py": (SDE, ["point and (sa_solver or er_sde) or parabolas", ""]),
    "jdiff/samplers/seeds.py": (SDE, ["point and (2s_sde or seeds) or parts", "no_signal"]),
    "jdiff/samplers/grids.py": (GRIDS, [""]),
    "jdiff/samplers/loop.py": (LOOP, [""]),
}
TESTS = [
    PROCESSES,
    CHAIN,
    SCHEDULES,
    PREDICTION,
    GRIDS,
    "tests/test_oracles.py",
    LOSSES,
    BOUND,
    TIMES,
    GUIDANCE,
    CLASSIFIER_FREE,
    SDE,
    LANGEVIN,
    ANALYTIC,
    ADAPTIVE,
    PUBLISHED,
    FIRST_ORDER,
    LOOP,
    SOLVERS,
]
TIMEOUT = 900  # seconds; a run that takes longer counts as noticed

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
FUNCTIONS = {
    "exp": "expm1",
    "expm1": "exp",
    "log": "log1p",
    "log1p": "log",
    "sqrt": "square",
    "ones_like": "zeros_like",
}
FUNCTIONS |= {"softplus": "relu", "sigmoid": "tanh"}
CHECKS = {"__post_init__", "check", "require", "is_plain", "match"}
# (file, line before, line after): why no result changes.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "jdiff/samplers/er_sde.py",
        "return stochastic_adams(process, grid, self.memory, self.log_fade(process, grid), lambda at: jnp.exp(-at))",
        "return stochastic_adams(process, grid, self.memory, self.log_fade(process, grid), lambda at: jnp.expm1(-at))",
    ): "polynomials in r and in r - 1 are the same",
    (
        "jdiff/processes/base.py",
        "t = jnp.asarray(t) * 1.0",
        "t = (jnp.asarray(t) / 1.0)",
    ): "only turns integers into floats",
    (
        "jdiff/losses/times.py",
        "least = jnp.nextafter(jnp.asarray(-1, u.dtype), jnp.asarray(0, u.dtype))",
        "least = jnp.nextafter(jnp.asarray(-1, u.dtype), jnp.asarray(0.1, u.dtype))",
    ): "the number next to -1 is the same on the way to any number above it",
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    line: int
    before: str
    after: str
    source: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"


def replacements(node: ast.expr, times: set[str]) -> Iterator[ast.expr]:
    """What may stand in the place of an expression; `times` holds t and s where a function knows both."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(round(node.value * 1.1, 6) if node.value else 0.1)
    elif isinstance(node, ast.Attribute) and node.attr in FUNCTIONS:
        yield ast.Attribute(node.value, FUNCTIONS[node.attr], ast.Load())
    elif isinstance(node, ast.Name) and node.id in times:
        yield ast.Name(*(times - {node.id}), ast.Load())
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)


def about_shapes(node: ast.AST) -> bool:
    """Whether an expression computes with shapes."""
    return any(isinstance(part, ast.Attribute) and part.attr in ("shape", "ndim", "dtype") for part in ast.walk(node))


def formulas(node: ast.AST, times: frozenset[str] = frozenset()) -> Iterator[tuple[ast.expr, frozenset[str]]]:
    """The expressions under a node that compute values."""
    skipped = ast.Raise | ast.Compare | ast.JoinedStr | ast.Subscript | ast.AnnAssign | ast.keyword
    if isinstance(node, skipped) or (isinstance(node, ast.FunctionDef) and node.name in CHECKS):
        if isinstance(node, ast.Subscript):
            yield from formulas(node.value, times)
        return
    if isinstance(node, ast.BinOp) and about_shapes(node) and not isinstance(node.op, ast.Mult | ast.Div):
        return
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
        return
    if isinstance(node, ast.FunctionDef):
        both = frozenset({"s", "t"} & {argument.arg for argument in node.args.args})
        for statement in node.body:
            yield from formulas(statement, both if len(both) == 2 else frozenset())
        return
    if isinstance(node, ast.ClassDef):
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                yield from formulas(statement)
        return
    if isinstance(node, ast.expr):
        yield node, times
    for child in ast.iter_child_nodes(node):
        yield from formulas(child, times)


def mutants(file: str) -> list[Mutant]:
    """Every change of one file, in the order of its lines."""
    source = (ROOT / file).read_text()
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    found = []
    for definition in tree.body:
        if not isinstance(definition, ast.FunctionDef | ast.ClassDef):
            continue
        for node, times in formulas(definition):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            for new in replacements(node, set(times)):
                after = ast.unparse(ast.fix_missing_locations(copy.deepcopy(new)))
                after = f"({after})" if isinstance(new, ast.BinOp | ast.IfExp) else after
                text = (source.encode()[:begin] + after.encode() + source.encode()[end:]).decode()
                changed = text.splitlines()[node.lineno - 1].strip()
                found.append(Mutant(file, node.lineno, source.splitlines()[node.lineno - 1].strip(), changed, text))
    return sorted(found, key=lambda mutant: mutant.line)


def fails(folder: Path, arguments: list[str]) -> bool:
    """Whether pytest fails in the copy. Raises RuntimeError where it could not say."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    # Keep what compiles fast, too: all mutants but one share each of these programs.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--numprocesses", "0", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(
            f"pytest {arguments} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode != 0


def survives(folder: Path, mutant: Mutant, selections: list[list[str]]) -> bool:
    """Whether the tests of every selection pass with this change."""
    target = folder / mutant.file
    original = target.read_text()
    target.write_text(mutant.source)
    try:
        return not any(fails(folder, selection) for selection in selections)
    finally:
        target.write_text(original)


def first(file: str) -> list[list[str]]:
    """Pytest's arguments for the selections of `FIRST`."""
    tests, names = FIRST[file]
    return [[tests, "-k", name] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutate only the files whose path contains this")
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    arguments = parser.parse_args()
    files = [file for file in FIRST if arguments.only in file]
    if not files:
        parser.error(f"--only {arguments.only} matches none of {', '.join(FIRST)}")
    everything = [mutant for file in files for mutant in mutants(file)]
    equivalent = [m for m in everything if (m.file, m.before, m.after) in EQUIVALENT]
    todo = [m for m in everything if m not in equivalent]
    if arguments.list:
        print("\n".join(map(str, todo)))
        print(f"{len(todo)} mutants, and {len(equivalent)} that change nothing")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("jdiff", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for selection in (selection for file in files for selection in first(file)):
            if fails(folder, selection):
                raise RuntimeError(f"pytest {selection} fails without any change")
        suspects, survivors = [], []
        for mutant in todo:
            alive = survives(folder, mutant, first(mutant.file))
            suspects += [mutant] * alive
            print(f"{'alive ' if alive else 'killed'} {mutant}", flush=True)
        for mutant in suspects:
            alive = survives(folder, mutant, [TESTS])
            survivors += [mutant] * alive
            print(f"{'SURVIVED' if alive else 'killed by the rest'} {mutant}", flush=True)
    figures = {file: {"total": sum(m.file == file for m in todo)} for file in files}
    for file, figure in figures.items():
        figure["killed"] = figure["total"] - sum(m.file == file for m in survivors)
    killed, total = len(todo) - len(survivors), len(todo)
    for file, figure in figures.items():
        print(f"{file}: {figure['killed']} of {figure['total']}")
    print(f"{killed} of {total} killed, {len(equivalent)} equivalent, {len(survivors)} survived")
    for mutant in survivors:
        print(f"survivor {mutant}")
    if arguments.json:
        summary = {"killed": killed, "total": total, "equivalent": len(equivalent), "files": figures}
        print(json.dumps(summary | {"survivors": [str(mutant) for mutant in survivors]}))
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
