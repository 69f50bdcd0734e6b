"""Rules of the source tree itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Along the data's path: a module imports only from those above it.
ORDER = [
    "errors",
    "files",
    "ranks",
    "orphans",
    "preemption",
    "philox",
    "presets",
    "config",
    "engine_config",
    "cpu",
    "features",
    "native",
    "molecule",
    "codec",
    "masking",
    "integrity",
    "staging",
    "shards",
    "mixture",
    "partition",
    "compact",
    "filler",
    "resident",
    "ops",
    "geometry",
    "batch",
    "sidestream",
    "stream",
    "plan",
    "layers",
    "encoders",
    "sde",
    "score",
    "losses",
    "contrastive",
    "model",
    "replay",
    "recompute",
    "published",
    "weights",
    "pretrained",
    "sklearn",
    "monitor",
    "flops",
    "profiling",
    "ema",
    "snapshots",
    "checkpoint",
    "engine",
    "statistics",
    "guard",
    "validation",
    "watchdog",
    "train",
]
# Each heavy dependency has its place.
PLACES = {
    "rdkit": {"features", "molecule"},
    "lmdb": {"shards"},
    "deepspeed": {"engine", "checkpoint", "ema", "guard", "validation"},
    "sklearn": {"sklearn"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    for path in sorted((ROOT / "msde").rglob("*.py")):
        name = path.relative_to(ROOT / "msde").parts[0].removesuffix(".py")
        if name != "__init__":
            yield pytest.param(name, path, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize(("name", "path"), modules())
def test_modules_import_only_from_those_above(name, path):
    above = set(ORDER[: ORDER.index(name) + 1])
    for imported in imports(path):
        package, _, rest = imported.partition(".")
        if package == "msde" and rest:
            assert rest.split(".")[0] in above, f"{name} imports {imported}"
        elif package in PLACES:
            assert name in PLACES[package], f"{name} imports {imported}"


def test_every_module_is_in_the_order():
    found = {parameter.values[0] for parameter in modules()}
    assert found == set(ORDER)


def test_functions_and_files_stay_small():
    for path in [*(ROOT / "msde").rglob("*.py"), *(ROOT / "data_tools").rglob("*.py")]:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= (120 if node.name == "pretrain" else 60), f"{path}: {node.name}"
