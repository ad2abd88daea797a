"""Imports go one way, what reads results starts without torch, and the top-level names are ours."""

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The stages of the data flow, in order (docs/architecture.md). A room imports only rooms above it.
ROOMS = (
    "kernels",
    "models",
    "sweep.common",
    "sweep.data",
    "sweep.config",
    "sweep.runs",
    "sweep.plan",
    "sweep.train",
    "sweep.workers",
    "sweep.fit",
    "sweep.report",
    "sweep.tracking",
    "slurm",
    "sweep.verbs",
    "sweep.cli",
    "hydra_plugins",
    "tools",
)
FOLDERS = ("kernels", "models", "sweep", "slurm", "hydra_plugins", "tools")
AT_THE_TOP = {"__init__.py", "__main__.py", "cli.py"}  # of sweep/
FROM_RESULTS = ("runs.collect", "common.expressions", "fit.fit", "fit.frontier", "fit.predictions", "report.report")
SLOW = ("torch", "models", "wandb", "datasets")


def room_of(module: str) -> str | None:
    """The room that a module lies in; None for what is outside of all, such as the package `sweep` itself."""
    return next((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), None)


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) of every import in a file, at its top or inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; name the module in full"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_there_are_modules_to_look_at():
    assert {"kernels.attention", "models.gpt", "sweep.train.loop", "sweep.verbs.plan"} <= modules().keys()
    assert {room_of(module) for module in modules()} - {None} == set(ROOMS)
    outside = {module for module in modules() if room_of(module) is None}
    assert outside == {"sweep", "sweep.__main__"}


def test_little_lies_at_the_top_of_sweep():
    assert {path.name for path in (ROOT / "sweep").glob("*.py")} == AT_THE_TOP


def test_a_room_imports_only_rooms_above_it():
    wrong = []
    for module, path in modules().items():
        for name, line in imports(path):
            mine, other = room_of(module), room_of(name)
            if mine and other and ROOMS.index(other) > ROOMS.index(mine):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_tests_mirror_the_rooms():
    """A test file lies in the folder of its room, or in tests/system where it starts processes."""
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {room.removeprefix("sweep.") for room in ROOMS} | {"system", "benchmarks"}
    assert {path.name for path in (ROOT / "tests").glob("test_*.py")} == {Path(__file__).name}


def test_no_test_file_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        for name, line in imports(path):
            assert ".test_" not in f".{name}", f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_no_module_imports_itself_by_way_of_others():
    """Imports for types and inside functions included: they only hide a cycle from Python."""
    graph = {module: ours(path) - {module} for module, path in modules().items()}
    assert "sweep.train.stack" in graph["sweep.workers.attempt"]
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_optimized_kernels_do_not_lean_on_their_reference():
    """Only the files that offer it as a backend, by name, import it."""
    leaning = set()
    for module, path in modules().items():
        if any(name.startswith("kernels.reference") for name, _ in imports(path)):
            leaning.add(module)
            assert '"reference": reference.' in path.read_text(), path
    assert "kernels.attention" in leaning


def test_only_tracking_knows_wandb():
    """So that nothing else can wait for it, or fail by it."""
    knowing = {
        module
        for module, path in modules().items()
        if any(name.partition(".")[0].startswith("wandb") for name, _ in imports(path))
        or 'import_module("wandb' in path.read_text()
    }
    assert knowing
    assert all(module.startswith("sweep.tracking.") for module in knowing), knowing


def test_no_module_that_others_import_is_run_as_a_script():
    imported = {name for path in modules().values() for name, _ in imports(path)}
    imported |= {name.rpartition(".")[0] for name in imported}
    scripts = set()
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
                scripts.add(module)
    assert "sweep.__main__" in scripts
    assert not scripts & imported


@pytest.fixture(scope="module")
def loaded():
    """Module names in memory after importing what works on results, one process for all of them."""
    names = [*FROM_RESULTS, *(f"verbs.{name}" for name in ("collect", "fit", "report"))]
    code = (
        "import importlib, json, sys\n"
        f"for name in {names}: importlib.import_module('sweep.' + name)\n"
        "print(json.dumps([sorted(sys.modules), {n: sys.modules[n].__file__ for n in ('sweep',)}]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout)[0])


def test_what_reads_results_imports_nothing_that_trains(loaded):
    assert "sweep.runs.collect" in loaded
    assert not [name for name in loaded if name.partition(".")[0] in SLOW]


def test_what_reads_results_says_so_in_its_source_too():
    """Also inside functions, and in whatever of ours it imports."""
    for name in FROM_RESULTS:
        for module in reachable(f"sweep.{name}"):
            for imported, line in imports(modules()[module]):
                assert imported.partition(".")[0] not in SLOW, f"{name} reaches {module}:{line}, {imported}"


def reachable(module: str) -> set[str]:
    """Our modules that a module imports, at last."""
    found, left = set(), [module]
    while left:
        one = left.pop()
        if one in found:
            continue
        found.add(one)
        left += ours(modules()[one])
    return found


def ours(path: Path) -> set[str]:
    """Our modules that a file imports: what it names is one, or is in one."""
    found = ((name if name in modules() else name.rpartition(".")[0]) for name, _ in imports(path))
    return {name for name in found if name in modules()}


def test_the_names_are_ours():
    """`kernels` is also a distribution on the index."""
    import kernels
    import models
    import slurm
    import sweep

    for package in (kernels, models, slurm, sweep):
        assert Path(package.__path__[0]).resolve() == ROOT / package.__name__


def test_the_training_code_hash_covers_what_trains():
    """Each place that it lists exists, and every module of the rooms that decide bits is in it."""
    from sweep.runs.environment import TRAINING_CODE, training_files

    absent = [name for name in TRAINING_CODE if not (ROOT / name).exists()]
    assert not absent, absent
    found = {path.relative_to(ROOT) for path in training_files()}
    trains = {p.relative_to(ROOT) for m, p in modules().items() if room_of(m) in ("sweep.train", "models", "kernels")}
    assert not trains - found, trains - found
    others = {"kernels/configurations.json", "sweep/data/tokens.py", "sweep/plan/schedule.py"}
    assert {str(path) for path in found - trains} == others


# What the code that trains imports from elsewhere, and why a change there cannot change a loss.
NOT_HASHED = {
    "sweep.common.artefacts": "reads typed files",
    "sweep.common.devices": "names the device and frees its memory",
    "sweep.common.errors": "an exception",
    "sweep.common.files": "writes files",
    "sweep.config.schema": "the types of options; what decides rounding among them is in the execution class",
    "sweep.data.placeholder": "stands in for tokens in a plan, before there is anything to train on",
    "sweep.plan.packing": "refuses a micro-batch; the size that is taken is in the execution class",
    "sweep.plan.speeds": "remembers how fast a trial was, for the next plan",
    "sweep.plan.trial": "the type of a trial; its values are its identity",
    "sweep.runs.environment": "describes the execution class, and makes this hash",
    "sweep.runs.metrics": "the type of a row",
    "sweep.runs.progress": "what is told of a trial",
    "sweep.runs.record": "the type of a result",
    "sweep.runs.rundir": "where the files of a run lie",
}


def test_the_code_that_trains_leans_on_nothing_that_its_hash_leaves_out():
    from sweep.runs.environment import training_files

    hashed = set(training_files())
    missing = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in hashed
        if path.suffix == ".py"
        for name in ours(path)
        if modules()[name] not in hashed and name not in NOT_HASHED and room_of(name) is not None
    }
    assert not missing, missing
    imported = set().union(*(ours(path) for path in hashed if path.suffix == ".py"))
    assert not NOT_HASHED.keys() - imported, "no longer imported: take them off the list"


def test_every_verb_has_its_two_parts_and_a_line_in_the_list():
    from sweep.cli import HIDDEN, VERBS

    files = {path.stem for path in (ROOT / "sweep" / "verbs").glob("*.py")} - {"__init__"}
    assert files == {*VERBS, *HIDDEN}
    for verb in files:
        tree = ast.parse((ROOT / "sweep" / "verbs" / f"{verb}.py").read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {"add_arguments", "run"} <= names, verb
        assert ast.get_docstring(tree), verb
    assert all(VERBS.values())


def test_every_verb_starts_without_what_takes_long():
    """Their files import at the top what they use; but torch, W&B and plotting only where it comes to that."""
    from sweep.cli import HIDDEN, VERBS

    code = "".join(f"import sweep.verbs.{verb}\n" for verb in (*VERBS, *HIDDEN))
    code = f"import sys\n{code}print({{'torch', 'wandb', 'datasets', 'matplotlib', 'plotly'}} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout == "set()\n", ended.stderr
