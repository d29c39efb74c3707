"""Who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.syntax import FILES, tree_of

ROOT = Path(__file__).parents[1]

# From the top; a module may import those of lower layers, and of its own where that makes no circle.
LAYERS = (
    ("main",),
    (
        *(
            "pretrain",
            "downstream",
            "harness",
            "build",
            "encoder_init",
            "ingest",
            "ingest_own",
            "ingest_own_flags",
            "embed",
            "embedding",
        ),
        *("trained_encoder", "export", "reproduce", "report"),
    ),
    ("exporters", "downstream_tasks", "study", "study_tables", "report_page"),
    (
        *("pictures", "loop", "checkpoint", "run_folder", "bad_steps", "drawing", "feature_tables", "evaluation"),
        *("config", "config_file", "downstream_config", "downstream_pictures", "contact_sheet", "curves", "flat_map"),
        *("frame_map", "results_table", "spool"),
    ),
    ("evaluators", "step", "first_state", "downstream_step", "encode", "neighbours"),
    ("train_state",),
    ("data.selection",),
    ("data.pipeline", "data.sampler", "data.sources", "data.frames", "data.unreadable"),
    ("data.scans",),
    ("data.records",),
    ("data.datasets", "data"),
    ("augment", "augment_options", "models", "losses", "supervised_losses", "ring", "momentum", "optim"),
    ("anatomy", "blockwise", "pallas_denominators", "positives", "sharding", "metrics"),
    (
        *("processes", "cli", "cache", "errors", "whole_files", "interruption", "supervision", "watchdog", "storage"),
        *("host_memory", "hidden_modules"),
    ),
)


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def layer_of(module: str) -> int:
    """0 at the top; that of the longest name in LAYERS that the module is or lies in."""
    inside = module.removeprefix("awcl_jax").lstrip(".")
    found = [
        (len(name), depth)
        for depth, names in enumerate(LAYERS)
        for name in names
        if inside == name or inside.startswith(f"{name}.")
    ]
    assert found, f"{module} has no layer yet: put it into LAYERS"
    return max(found)[1]


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
    upwards = {name for name in inner_imports_of(module) if layer_of(name) < layer_of(module)}
    assert not upwards


def test_no_circle():
    left = {module: inner_imports_of(module) - {module} for module in MODULES}
    while free := {module for module, wanted in left.items() if not wanted & left.keys()}:
        left = {module: wanted for module, wanted in left.items() if module not in free}
    assert not left


def test_only_one_module_names_the_mesh_axis_and_speaks_to_other_devices():
    (axis,) = (
        node.value.value
        for node in tree_of(MODULES["awcl_jax.sharding"]).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "AXIS"
    )
    collectives = {"all_gather", "pmean", "psum", "pmax", "pmin", "all_to_all", "ppermute", "psum_scatter"}
    for module in MODULES.keys() - {"awcl_jax.sharding"}:
        constants = {node.value for node in ast.walk(tree_of(MODULES[module])) if isinstance(node, ast.Constant)}
        assert axis not in constants, module
        assert not collectives & names_in(module), module
        assert not {f"jax.lax.{name}" for name in collectives} & imports_of(module), module


def test_only_one_module_knows_orbax():
    knowing = {module for module in MODULES if any(re.match(r"orbax\b", name) for name in imports_of(module))}
    assert knowing == {"awcl_jax.checkpoint"}


def test_only_one_module_knows_the_client_of_buckets():
    knowing = {module for module in MODULES if any(re.match(r"google\.cloud\b", name) for name in imports_of(module))}
    assert knowing == {"awcl_jax.storage"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_tensorflow(module):
    assert not [name for name in imports_of(module) if re.match(r"tensorflow(\.|$)", name)]


def test_the_configuration_stops_at_the_door():
    doors = {
        f"awcl_jax.{name}"
        for name in ("config", "config_file", "downstream_config", "build", "pretrain", "downstream", "study")
    }
    knowing = {m for m in MODULES if "ConfigDict" in names_in(m) or "ml_collections.ConfigDict" in imports_of(m)}
    assert knowing <= doors


def test_what_is_needed_late_and_takes_seconds_to_import_is_not_waited_for():
    late = {"matplotlib", "scipy", "sklearn"}
    rooms = "awcl_jax.downstream, awcl_jax.pretrain, awcl_jax.data.datasets.phantom"
    program = f"import sys, {rooms}; print({late} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
