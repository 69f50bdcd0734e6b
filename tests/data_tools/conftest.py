import pytest

from fixtures.molecules import NCI
from msde.data_tools.convert import convert
from msde.data_tools.pipeline import parts
from msde.data_tools.readers import Options


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(parts, "SHARD_MOLECULES", 128)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """SMILES that are converted without geometry in a second, and their data set."""
    folder = tmp_path_factory.mktemp("flat")
    lines = NCI.read_text().splitlines()[:1500]
    lines[7::50] = ["C(C broken"] * len(lines[7::50])
    (folder / "flat.smi").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SHARD_MOLECULES", 128)
        convert([folder / "flat.smi"], folder / "out", "smiles", options=Options(conformers=0))
    return folder
