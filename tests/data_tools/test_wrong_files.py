"""Every format on files that are not its own, cut off or binary: one line that says what is wrong.

Pickles that were changed are never loaded.
"""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import shutil
import tarfile

import pytest

from fixtures.data_sets import run_tool
from fixtures.formats import FLAT, FORMAT_OF, PICKLES, write_valid, write_wrong
from fixtures.readers import TRUST
from msde.chem.vocabulary import MoleculeError
from msde.data.shards import read_manifest
from msde.data_tools.convert import convert
from msde.data_tools.options import AUTO
from msde.data_tools.readers import FORMATS, Options, get_reader
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
ADVICE = ("pickle=", "pickle.load", "allow_pickle", "weights_only", "Traceback")
SUFFIX = {
    "xyz": ".xyz", "ase": ".db", "md17": ".npz", "unimol": ".lmdb", "fairchem": ".aselmdb",
    "pyg": ".pt",
}  # fmt: skip
# Kinds that a format reads, or in which it finds nothing.
QUIET = {
    "xyz": {"empty", "blank", "frames.xyz", "frames.extxyz"},
    "ase": {"rows.db"},
    "md17": {"frames.npz"},
    "unimol": {"ligands.lmdb", "none.mdb"},
    "fairchem": {"rows.aselmdb", "none.mdb"},
    "pyg": {"data_v3.pt"},
}
DAMAGED = {"frames.extxyz": "xyz", "rows.db": "ase", "frames.npz": "md17", "data_v3.pt": "pyg"}
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
        if "\n" in message or any(advice in message for advice in ADVICE):
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


def said_of(path, format):
    """Return what a reader that trusts pickles says of a file; it raises errors for users only."""
    said, reader = [], get_reader(format, TRUST)
    try:
        reader.facts([path])
        for raw in reader.read(path):
            try:
                reader.parse(raw)
            except MoleculeError as error:
                said.append(str(error))
    except MsdeError as error:
        said.append(str(error))
        assert str(path) in str(error)
    assert not [text for text in said if "\n" in text or any(a in text for a in ADVICE)]
    return said


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


@pytest.mark.parametrize("name", PICKLES)
def test_what_is_no_pickle_is_not_called_one(files, tmp_path, name):
    reader = get_reader(FORMAT_OF[name], FLAT)
    for kind, found in {
        "random": "binary",
        "prose": "text, as 'Dear colleague,'",
        "coords.npy": "a NumPy array",
        "gz": "compressed (gzip)",
        "rows.db": "an SQLite database",
        "bytes.mdb": "text, as 'no record'" if name.endswith(".lmdb") else "an LMDB database",
    }.items():
        path = shutil.copy(files[0][kind], tmp_path / name)
        with pytest.raises(MsdeError, match=f"{re.escape(str(path))}.* is {re.escape(found)}"):
            reader.facts([path])
        with pytest.raises(MsdeError, match="holds Python pickles"):
            reader.facts([files[0][name]])


@pytest.mark.parametrize("format", SUFFIX)
def test_readers_that_trust_pickles_say_what_is_wrong(files, tmp_path, format):
    path = tmp_path / f"wrong{SUFFIX[format]}"
    for kind, source in files[0].items():
        content = content_of(source)
        for share in (1, 0.9, 0.5) if content is not None else ():
            path.write_bytes(content[: int(len(content) * share)])
            assert said_of(path, format) or kind in QUIET[format], kind


@pytest.mark.parametrize("name", DAMAGED)
def test_bytes_that_were_changed_anywhere_are_one_line(files, tmp_path, name):
    """LMDB files are in parsing/test_databases.py."""
    content, chance = files[0][name].read_bytes(), random.Random(3)
    path = tmp_path / f"damaged{SUFFIX[DAMAGED[name]]}"
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 3, 30))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        said_of(path, DAMAGED[name])


def packed(path, ending):
    """Return the bytes of a file, compressed, or in an archive of its own."""
    if ending != ".tar.gz":
        return {".gz": gzip, ".bz2": bz2, ".xz": lzma}[ending].compress(path.read_bytes())
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(path, path.name)
    return file.getvalue()


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".tar.gz"])
@pytest.mark.parametrize("name", FORMAT_OF)
def test_compressed_files_are_read_or_have_to_be_unpacked(files, tmp_path, ending, name):
    path, options = tmp_path / (name + ending), Options(conformers=0, trust_pickle=True)
    path.write_bytes(packed(files[0][name], ending))
    for beside in files[1]:
        shutil.copy(beside, tmp_path)
    if name.endswith((".db", ".npz", ".lmdb", ".aselmdb", ".pt")):
        with pytest.raises(MsdeError, match="cannot be read while it is compressed"):
            convert([path], tmp_path / "out", options=options)
        return
    convert([path], tmp_path / "out", options=options)
    convert([files[0][name]], tmp_path / "plain", options=options)
    assert read_manifest(tmp_path / "out") == read_manifest(tmp_path / "plain")


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("coords.npy", "md17", "expected an .npz"),
        ("random", "smiles", "is binary, expected text"),
        ("frames.xyz", "smiles", "begins with a number, as XYZ files do"),
        ("empty", "auto", "it is empty"),
        ("book.xlsx", "auto", "is an Excel workbook"),
        ("table.parquet", "auto", "is a Parquet table"),
        ("table.parquet", "smiles", "is a Parquet table, expected text"),
    ],
)
def test_the_command_ends_with_one_line_and_code_2(files, tmp_path, name, format, expected):
    result = run_tool("convert", files[0][name], "--output", tmp_path / "out", "--format", format)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and expected in result.stderr
    assert "allow_pickle" not in result.stderr
