"""Rules of the source tree: which room may use which, sizes of parts, truth of the documents."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The rooms in layers, lowest first: a room uses those of lower layers, and itself.
LAYERS = [
    {"errors"},
    {"files"},
    {"philox", "config", "cli"},
    {"ops"},
    {"chem", "cluster"},
    {"data"},
    {"model", "monitor"},
    {"checkpoints", "sampling", "evaluation"},
    {"training", "inference"},
    {"downstream"},
    {"sklearn", "ase", "__init__", "__main__"},
    {"data_tools"},
    {"launch"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Each heavy dependency has its place.
PLACES = {
    "rdkit": {"chem", "sampling", "evaluation", "downstream", "data_tools"},
    "lmdb": {"data", "data_tools"},
    "deepspeed": {"training", "checkpoints", "model"},
    "sklearn": {"sklearn", "downstream"},
    "torchdiffeq": {"sampling"},
    "ase": {"ase", "data_tools"},
    "scipy": {"sampling", "downstream"},
    "openbabel": {"evaluation"},
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


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_launch_scripts_only_parse_build_and_call(path):
    assert len(path.read_text().splitlines()) <= 60


TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEST_FOLDERS = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} - {"fixtures"}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_stay_small_and_share_through_fixtures_only(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names = [node.module]
        for name in names:
            first = name.partition(".")[0]
            assert first not in TEST_FOLDERS | {"tests", "conftest"}, f"imports {name}"
            assert not first.startswith("test_"), f"imports {name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_map_lists_every_room_and_module():
    """In docs/design.md a table has the layers, a heading each folder, a line each module."""
    listed, text = {}, (ROOT / "docs/design.md").read_text()
    for line in text.splitlines():
        if line.startswith("#"):
            heading = re.match(r"#+ `([\w/]+)/`", line)
            folder = heading and heading[1]
            if folder:
                assert folder not in listed
                listed[folder] = []
        elif (item := re.match(r"- `(\w+)`: \S", line)) and folder:
            listed[folder].append(item[1])
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    layers = [
        set(re.findall(r"`(\w+)`", rooms)) for _, rooms in sorted(rows, key=lambda r: int(r[0]))
    ]
    assert layers == [rooms - {"__init__"} for rooms in LAYERS]
    there = {str(path.parent.relative_to(ROOT)): [] for path in FILES}
    for path in FILES:
        if path.name != "__init__.py":
            there[str(path.parent.relative_to(ROOT))].append(path.stem)
    assert {folder: sorted(names) for folder, names in listed.items()} == there


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_files_and_tests_that_exist(path):
    """Links, paths in code marks, tests as `file::name`; NAME, MODULE and ROOM stand for others.

    The comment `file: NAME` marks a file that the reader of a worked example makes.
    """
    made = re.findall(r"<!-- file: (\S+) -->", path.read_text())
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / link).exists(), link
    tops = "msde|data_tools|launch|tests|docs|ds_configs|benchmarks|examples"
    for name, test in re.findall(rf"`((?:{tops})/[\w./]+)(?:::(\w+))?`", text):
        if not re.search("NAME|MODULE|ROOM", name):
            assert (ROOT / name).exists() or name in made, name
            assert not test or f"def {test}(" in (ROOT / name).read_text(), f"{name}::{test}"
