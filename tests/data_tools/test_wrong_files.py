"""Every format on files that are not its own, cut off or binary: one line that says what is wrong.

Pickles that were changed are never loaded.
"""

import gzip
import json
import shutil

import pytest

from fixtures.data_sets import run_tool
from fixtures.formats import FLAT, FORMAT_OF, PICKLES, write_valid, write_wrong
from msde.data_tools.convert import convert
from msde.data_tools.options import AUTO
from msde.data_tools.readers import FORMATS, Options
from msde.data_tools.verify import verify
from msde.errors import MsdeError

TABLES = {"table.csv", "esol.csv", "cx.csv"}
SD_FILES = {"mols.sdf", "gdb9.sdf", "pcqm4m-v2-train.sdf"}
XYZ = {"frames.xyz", "frames.extxyz"}
# Files that are also what another format reads.
READABLE = {
    "smiles": TABLES | {"lines.smi"},
    "moleculenet": TABLES,
    **dict.fromkeys(("sdf", "qm9", "pcqm4mv2"), SD_FILES),
}
BESIDE = ("gdb9.sdf.csv", "data.csv.gz")  # tables that lie beside SD files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of every kind, by name."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "wrong").mkdir()
    valid = write_valid(folder)
    return {**valid, **write_wrong(folder / "wrong")}, [folder / name for name in BESIDE]


@pytest.fixture
def attempt(files, tmp_path):
    """Convert a file under some name; return the fault in how that ends, or None."""

    def attempt(content, name, format, options=FLAT, may_convert=False):
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for path in files[1]:
            shutil.copy(path, work)
        if content is None:
            (work / name).mkdir()
        else:
            (work / name).write_bytes(content)
        fault = outcome([work / name], work / "out", format, options, may_convert)
        return fault and f"{name}, --format {format}: {fault}"

    return attempt


def outcome(inputs, output, format, options, may_convert):
    try:
        convert(inputs, output, format, options=options)
    except MsdeError as error:
        message = str(error)
        if "\n" in message or "pickle=" in message or "pickle.load" in message:
            return message
        if (output / "manifest.json").exists():
            return "an error, and a manifest"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        if not may_convert:
            return "it was converted"
        if problems := list(verify(output)):
            return problems[0]
    if (output / "rejects.jsonl").exists():
        reasons = [json.loads(line)["reason"] for line in open(output / "rejects.jsonl")]
        return next(
            (f"reason: {r}" for r in reasons if r.partition(":")[0].endswith("Error")), None
        )
    return None


def content_of(path):
    return None if path.is_dir() else path.read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_another_kind_are_one_line(files, attempt, format):
    own = [name for name, its in FORMAT_OF.items() if its == format]
    faults = []
    for kind, path in files[0].items():
        if FORMAT_OF.get(kind) == format:
            continue
        may_convert = kind in READABLE.get(format, ())
        for name in (kind, own[0]):
            faults.append(attempt(content_of(path), name, format, may_convert=may_convert))
    assert not list(filter(None, faults))


@pytest.mark.parametrize("name", [name for name in FORMAT_OF if name not in PICKLES])
def test_files_that_are_cut_off_are_one_line_or_lose_their_last_molecule(files, attempt, name):
    content, format = files[0][name].read_bytes(), FORMAT_OF[name]
    faults = []
    for share in (0.3, 0.6, 0.9):
        part = content[: int(share * len(content))]
        faults.append(
            attempt(part, name, format, may_convert=name in TABLES | SD_FILES | {"lines.smi"})
        )
        part = gzip.compress(content)
        faults.append(attempt(part[: int(share * len(part))], f"{name}.gz", format))
    assert not list(filter(None, faults))


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused_and_what_is_none_is_one_line(files, attempt, name):
    format, trust = FORMAT_OF[name], Options(conformers=0, trust_pickle=True)
    own = files[0][name].read_bytes()
    faults = [attempt(own, name, format), attempt(own, name, AUTO)]
    faults += [attempt(content, name, format, trust) for content in (b"", b"hello\n", None)]
    for kind in ("coords.npy", "other.npz", "other.mdb", "bytes.mdb", "none.mdb", "rows.db"):
        faults.append(attempt(files[0][kind].read_bytes(), name, format, trust))
    assert not list(filter(None, faults))


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("coords.npy", "md17", "expected an .npz"),
        ("random", "smiles", "is binary, expected text"),
        ("frames.xyz", "smiles", "begins with a number, as XYZ files do"),
        ("empty", "auto", "it is empty"),
    ],
)
def test_the_command_ends_with_one_line_and_code_2(files, tmp_path, name, format, expected):
    result = run_tool("convert", files[0][name], "--output", tmp_path / "out", "--format", format)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and expected in result.stderr
    assert "allow_pickle" not in result.stderr
