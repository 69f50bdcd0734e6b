import pytest

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
