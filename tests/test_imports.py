"""The arrows of CONTRIBUTING.md: who may import whom, read from the source with `ast`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MATHS = [
    "typing",
    "rng",
    "pytree",
    "processes",
    "prediction",
    "losses",
    "guidance",
    "samplers",
    "likelihood",
    "oracles",
]
_MATHS = set(MATHS)
# What every room may import besides.
FOR_ALL = {"json_files", "atomic_files", "locks", "terminal"}
# Room: the rooms that it may import. A file of its own right inside a room is a room of its own name.
MAY = {
    "typing": set(),
    "rng": {"typing"},
    "pytree": set(),
    "terminal": set(),
    "processes": {"typing", "rng", "pytree"},
    "prediction": {"typing", "pytree", "processes"},
    "losses": {"typing", "rng", "processes", "prediction"},
    "guidance": {"typing", "processes", "prediction"},
    "samplers": {"typing", "rng", "pytree", "processes", "prediction"},
    "likelihood": {"typing", "rng", "pytree", "processes", "prediction"},
    "oracles": {"typing", "pytree", "processes", "prediction"},
    "lab": {"typing", "pytree", "rng", "processes", "prediction", "samplers", "oracles"},
    "models": {"typing"},
    "text": {"typing"},
    "data": {"typing", "rng"},
    "parallel": {"typing"},
    "interop": _MATHS | {"models"},
    "pictures": set(),
    "json_files": set(),
    "atomic_files": set(),
    "locks": {"json_files"},
    "pipelines": _MATHS | {"models", "parallel", "interop", "text"},
    "evaluate": _MATHS | {"models"},
    "train.optimizer": {"typing"},
    "train.ema": {"typing"},
    "train.faults": {"typing"},
    "train.keep": set(),
    "config": set(),
    "experiment": _MATHS
    | {
        "config",
        "models",
        "data",
        "parallel",
        "pipelines",
        "train.ema",
        "train.optimizer",
        "train.faults",
        "train.keep",
    },
    "train": _MATHS
    | {
        "models",
        "interop",
        "data",
        "parallel",
        "pictures",
        "pipelines",
        "config",
        "terminal",
        "experiment",
        "train.ema",
        "train.optimizer",
        "train.faults",
        "train.keep",
    },
    "plan": {"models", "parallel", "experiment", "train"},
    "cli": _MATHS
    | {
        "lab",
        "interop",
        "models",
        "data",
        "parallel",
        "pictures",
        "pipelines",
        "evaluate",
        "config",
        "experiment",
        "plan",
        "train",
        "train.optimizer",
    },
}
# Package: where alone it may be imported.
ONLY = {
    "duckdb": "jdiff/data/",
    "flax": "jdiff/models/",
    "grain": "jdiff/data/",
    "orbax": "jdiff/train/checkpoint.py",
    "pyarrow": "jdiff/data/",
    "safetensors": "jdiff/interop/",
    "tokenizers": "jdiff/text/",
    "tyro": "jdiff/cli/",
}


def module_of(path):
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted((ROOT / "jdiff").rglob("*.py"))}


def imports(module):
    """The dotted names that a module imports, wherever in the file; of ours, the module and not what is in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[module]}:{node.lineno}: imports by its whole name, please"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & FILES.keys() or {node.module}
    return found


def room(module):
    """The room of one of our modules."""
    name = module.removeprefix("jdiff.")
    return name if name in MAY else name.partition(".")[0]


@pytest.mark.parametrize("module", [module for module in FILES if module != "jdiff"])
def test_a_module_imports_only_what_lies_below_it(module):
    assert room(module) in MAY, f"{module} is in no room that this table knows"
    ours = {room(other) for other in imports(module) if other.startswith("jdiff.")}
    assert ours - {room(module)} <= MAY[room(module)] | (set() if room(module) in FOR_ALL else FOR_ALL)


@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_imported_in_its_own_place_alone(package):
    users = {
        path.relative_to(ROOT).as_posix()
        for module, path in FILES.items()
        if any(name.partition(".")[0] == package for name in imports(module))
    }
    assert users
    assert [user for user in users if not user.startswith(ONLY[package])] == []


def test_rooms_have_an_order():
    """The table itself has no cycle, so neither have the rooms."""
    done = []
    while len(done) < len(MAY):
        ready = [name for name in MAY if name not in done and MAY[name] <= set(done)]
        assert ready, f"a cycle among {sorted(MAY.keys() - set(done))}"
        done += ready


def test_modules_have_an_order():
    """No two modules import each other, not even through others."""
    graph = {module: {name for name in imports(module) if name in FILES} - {module} for module in FILES}
    while leaves := {module for module, needed in graph.items() if not needed}:
        graph = {module: needed - leaves for module, needed in graph.items() if module not in leaves}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_nobody_imports_the_command_line_or_a_recipe():
    for module in FILES:
        for name in imports(module):
            assert not name.startswith(("experiments", "tests")), module
            assert not name.startswith("jdiff.cli") or module.startswith("jdiff.cli"), module


def loaded(statement, *packages):
    """Which of the packages a fresh Python has loaded after a statement."""
    code = f"{statement}; import sys; print(*[name for name in {packages!r} if name in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_the_package_alone_does_not_load_jax():
    assert loaded("import jdiff; jdiff.__version__", "jax", "flax") == []
    assert loaded("import jdiff.cli", "jax", "flax") == []


def test_the_extra_of_data_is_loaded_by_what_needs_it_alone():
    assert loaded("import jdiff.data, jdiff.experiment, jdiff.cli.data", "pyarrow", "duckdb") == []


def test_the_maths_loads_no_network_data_or_checkpoint_library():
    statement = "import jdiff." + ", jdiff.".join(MATHS)
    # optax is not named: diffrax's root finder brings it.
    assert loaded(statement, "jax", "flax", "grain", "orbax", "tyro") == ["jax"]
