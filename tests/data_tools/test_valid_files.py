"""A valid file of each kind is converted as a whole."""

import pytest

from fixtures.formats import FLAT, FORMAT_OF, write_valid
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.options import Options


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_valid(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("name", FORMAT_OF)
def test_every_molecule_of_a_valid_file_is_converted(name, files, tmp_path):
    options = Options(trust_pickle=True, conformers=0 if name in FLAT else 1)
    counts = convert([files[name]], tmp_path / "out", options=options)
    assert counts["converted"] == counts["read"] > 0 and counts["rejected"] == 0
    assert len(ShardDataset(tmp_path / "out")) == counts["converted"]
