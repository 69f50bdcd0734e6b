import random

import pytest

from fixtures.pickled import unimol
from fixtures.readers import TRUST, recognised
from msde.data_tools.readers import get_reader
from msde.errors import MsdeError


@pytest.mark.parametrize("format", ["unimol", "fairchem"])
def test_files_that_are_not_lmdb_are_an_error(tmp_path, format):
    path = tmp_path / "a.lmdb"
    path.write_bytes(b"nothing of the kind" * 1000)
    assert recognised(path) is None
    with pytest.raises(MsdeError, match="cannot be read as LMDB"):
        get_reader(format, TRUST).facts([path])


def outcome(path):
    """The number of molecules, or the error's text; all in this process."""
    reader = get_reader("unimol", TRUST)
    try:
        reader.facts([path])
        return sum(1 for _ in reader.read(path))
    except MsdeError as error:
        return str(error)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_files_that_are_cut_off_are_one_line(tmp_path, share):
    path = unimol(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    found = outcome(path)
    assert isinstance(found, str) and "cannot be read as LMDB" in found and "\n" not in found


def test_damaged_pages_do_not_end_the_process(tmp_path):
    path = unimol(tmp_path)
    whole, random_numbers = path.read_bytes(), random.Random(5)
    found = []
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(30):
            damaged[random_numbers.randrange(len(damaged))] = random_numbers.randrange(256)
        path.write_bytes(damaged)
        found.append(outcome(path))
    errors = [text for text in found if isinstance(text, str)]
    assert errors and all(str(path) in text and "\n" not in text for text in errors)
