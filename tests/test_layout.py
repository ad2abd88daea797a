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
ROOMS = ("kernels", "models", "sweep", "slurm", "hydra_plugins")
# What each room may import of the others.
BELOW = {
    "kernels": set(),
    "models": {"kernels"},
    "sweep": {"kernels", "models"},
    "slurm": {"kernels", "models", "sweep"},
    "sweep.verbs": {"kernels", "models", "sweep", "slurm"},
    "hydra_plugins": {"kernels", "models", "sweep", "slurm"},
}
# And the packages inside sweep/ of each other; its own modules are below them all.
INSIDE = {
    "data": set(),
    "fitting": set(),
    "reporting": {"fitting"},
    "tracking": {"fitting", "reporting"},
    "training": {"data", "fitting", "tracking"},
}
FROM_RESULTS = ("collect", "where", "fitting.fit", "fitting.frontier", "fitting.predict", "reporting.report")
SLOW = ("torch", "models", "kernels", "wandb", "datasets")


def room_of(module: str) -> str:
    return "sweep.verbs" if module.startswith("sweep.verbs") else module.partition(".")[0]


def package_of(module: str) -> str:
    """The package inside sweep/ that a module or a name belongs to."""
    return module.removeprefix("sweep.").partition(".")[0] if module.startswith("sweep.") else ""


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
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
    assert {"kernels.attention", "models.gpt", "sweep.training.loop", "sweep.verbs.plan"} <= modules().keys()
    assert {room_of(module) for module in modules()} == BELOW.keys()


@pytest.mark.parametrize(("place_of", "below"), [(room_of, BELOW), (package_of, INSIDE)])
def test_rooms_and_packages_import_only_what_is_below_them(place_of, below):
    wrong = []
    for module, path in modules().items():
        mine = place_of(module)
        for name, line in imports(path):
            other = place_of(name)
            if mine in below and other in below and other not in {mine, *below[mine]}:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others():
    """Imports for types and inside functions included: they only hide a cycle from Python."""
    graph = {module: ours(path) - {module} for module, path in modules().items()}
    assert "sweep.training.stack" in graph["sweep.training.attempt"]
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
    assert "sweep.collect" in loaded
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


def test_the_code_that_trains_is_where_its_hash_looks_for_it():
    from sweep.environment import TRAINING_CODE

    assert all(any(ROOT.glob(pattern)) for pattern in TRAINING_CODE), TRAINING_CODE


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
