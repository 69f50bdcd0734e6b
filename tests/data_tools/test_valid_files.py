"""A valid file of each kind is converted as a whole."""

import pytest

from fixtures.formats import FORMAT_OF, write_valid
from msde.data.shards import ShardDataset
from msde.data_tools.convert import convert
from msde.data_tools.options import Options

# One molecule whose atoms are not those of its SMILES, and one that is periodic.
REJECTED = {"ligands.lmdb": 1, "s2ef.lmdb": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_valid(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("name", FORMAT_OF)
def test_every_molecule_of_a_valid_file_is_converted(name, files, tmp_path):
    counts = convert([files[name]], tmp_path / "out", options=Options(trust_pickle=True))
    assert counts["rejected"] == REJECTED.get(name, 0)
    assert len(ShardDataset(tmp_path / "out")) == counts["read"] - counts["rejected"] > 0
