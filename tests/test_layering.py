"""Who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.syntax import FILES, tree_of

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]

# From the top; a room imports from lower rows and from itself, and no file waits for one that waits for it.
ROWS = (
    ("main", "reproduce"),
    ("downstream", "export"),
    ("embed",),
    ("pretrain",),
    ("config", "report"),
    ("train",),
    ("ingest", "losses", "evaluate"),
    ("data", "augment", "models"),
    ("runtime",),
)
HEIGHT = {room: -row for row, rooms in enumerate(ROWS) for room in rooms}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def room_of(module: str) -> str:
    """The folder, or for a module at the top its own name."""
    return module.split(".")[1]


def imports_of(module: str) -> set[str]:
    """Every module that this one names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def inner_imports_of(module: str) -> set[str]:
    """Modules of this package that this one imports, without the packages they lie in."""
    found = imports_of(module) & MODULES.keys()
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)} - {"awcl_jax"}


def names_in(module: str) -> set[str]:
    tree = tree_of(MODULES[module])
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"awcl_jax"}))
def test_imports_go_down(module):
    room = room_of(module)
    beside = {name for name in inner_imports_of(module) if room_of(name) != room}
    assert not {name for name in beside if HEIGHT[room_of(name)] >= HEIGHT[room]}


def test_the_rooms_are_main_and_at_most_fifteen_folders():
    rooms = {room_of(module) for module in MODULES.keys() - {"awcl_jax"}}
    assert rooms == HEIGHT.keys()
    assert len(rooms - {"main"}) <= 15


def test_no_circle():
    left = {module: inner_imports_of(module) - {module} for module in MODULES}
    while free := {module for module, wanted in left.items() if not wanted & left.keys()}:
        left = {module: wanted for module, wanted in left.items() if module not in free}
    assert not left


def test_only_one_module_names_the_mesh_axis():
    (axis,) = (
        node.value.value
        for node in tree_of(MODULES["awcl_jax.runtime.sharding"]).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "AXIS"
    )
    collectives = {"all_gather", "pmean", "psum", "pmax", "pmin", "all_to_all", "ppermute", "psum_scatter"}
    for module in MODULES.keys() - {"awcl_jax.runtime.sharding"}:
        constants = {node.value for node in ast.walk(tree_of(MODULES[module])) if isinstance(node, ast.Constant)}
        assert axis not in constants, module
        assert not collectives & names_in(module), module
        assert not {f"jax.lax.{name}" for name in collectives} & imports_of(module), module


def test_only_one_module_knows_orbax():
    knowing = {module for module in MODULES if any(re.match(r"orbax\b", name) for name in imports_of(module))}
    assert knowing == {"awcl_jax.train.checkpoint"}


def test_only_one_module_knows_the_client_of_buckets():
    knowing = {module for module in MODULES if any(re.match(r"google\.cloud\b", name) for name in imports_of(module))}
    assert knowing == {"awcl_jax.runtime.bucket"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_tensorflow(module):
    assert not [name for name in imports_of(module) if re.match(r"tensorflow(\.|$)", name)]


def test_the_configuration_stops_at_the_door():
    doors = {"awcl_jax.pretrain.runner", "awcl_jax.downstream.runner", "awcl_jax.reproduce.study"}
    knowing = {m for m in MODULES if "ConfigDict" in names_in(m) or "ml_collections.ConfigDict" in imports_of(m)}
    assert {module for module in knowing if room_of(module) != "config"} <= doors


def test_slow_imports_that_are_needed_late_are_deferred():
    late = {"matplotlib", "scipy", "sklearn"}
    rooms = "awcl_jax.downstream, awcl_jax.pretrain, awcl_jax.ingest.phantom"
    program = f"import sys, {rooms}; print({late} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("module", sorted(module for module in MODULES if "jaxtyping" in imports_of(module)))
def test_shapes_are_checked_while_tests_run(module, pytestconfig):
    checked = pytestconfig.getoption("--jaxtyping-packages").split(",")[:-1]
    assert any(module == name or module.startswith(f"{name}.") for name in checked), "see pyproject.toml"


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_tests_share_helpers_and_not_each_other(file):
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert not {name for name in imported if re.match(r"tests\.(?!helpers\b)", name)}
    if file.parent.name != "benchmarks":  # the tests of the benchmarks themselves
        assert not {name for name in imported if re.match(r"benchmarks\b", name)}


def test_each_room_has_tests_and_some_of_them_are_quick():
    for room in HEIGHT:
        files = [ROOT / "tests" / f"test_{room}.py"] if room == "main" else (ROOT / "tests" / room).glob("test_*.py")
        assert any("pytest.mark.quick" in file.read_text() for file in files), room
