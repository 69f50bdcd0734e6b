"""Rules of the source tree: which room may use which, and how large its parts may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The rooms in layers, lowest first: a room uses those of lower layers, and itself.
LAYERS = [
    {"errors"},
    {"files", "philox", "config", "cli"},
    {"ops"},
    {"chem", "cluster"},
    {"data"},
    {"model", "monitor"},
    {"checkpoints"},
    {"training", "inference"},
    {"sklearn", "__init__"},
    {"data_tools"},
    {"launch"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Each heavy dependency has its place.
PLACES = {
    "rdkit": {"chem", "data_tools"},
    "lmdb": {"data", "data_tools"},
    "deepspeed": {"training", "checkpoints", "model"},
    "sklearn": {"sklearn"},
}
FILES = {
    path: path.relative_to(ROOT).with_suffix("").parts
    for folder in ("msde", "data_tools", "launch")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def room_of(parts):
    """The room of a module: the folder or file below msde, or data_tools or launch."""
    return parts[1] if parts[0] == "msde" else parts[0]


def module_name(parts):
    """The name that others import: `launch` and `data_tools` install inside the package."""
    name = ".".join(parts if parts[0] == "msde" else ("msde", *parts))
    return name.removesuffix(".__init__")


MODULES = {module_name(parts): path for path, parts in FILES.items()}


def imports(path):
    """The modules of ours and the packages of others that a file names in its imports."""
    name = module_name(FILES[path])
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*base, node.module or ""]).strip(".") if node.level else node.module
            for alias in node.names:
                below = f"{source}.{alias.name}"
                yield below if below in MODULES else source


def paths(ids=lambda path: str(path.relative_to(ROOT))):
    return pytest.mark.parametrize("path", FILES, ids=ids)


@paths()
def test_rooms_use_only_lower_rooms(path):
    room = room_of(FILES[path])
    for imported in imports(path):
        package, _, rest = imported.partition(".")
        if imported in MODULES:
            other = room_of(FILES[MODULES[imported]])
            assert other == room or LEVEL[other] < LEVEL[room], f"{room} imports {imported}"
        elif package in PLACES:
            assert room in PLACES[package], f"{room} imports {imported}"


def test_every_room_has_its_layer():
    assert {room_of(parts) for parts in FILES.values()} == set(LEVEL)


def test_no_circle_of_files():
    uses = {name: {i for i in imports(path) if i in MODULES} for name, path in MODULES.items()}
    while free := [name for name, used in uses.items() if not used & uses.keys() - {name}]:
        for name in free:
            del uses[name]
    assert not uses, f"these import each other: {', '.join(uses)}"


@paths()
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} has more than 60 lines"


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=str)
def test_folders_stay_small(folder):
    files = [path for path in folder.iterdir() if path.is_file()]
    assert len(files) <= (8 if folder == ROOT / "msde" else 20)
