"""Shared fixtures: real molecules, small models. Process settings come before torch's threads."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Several processes of pytest-xdist share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

# Before anything imports Triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402

from msde.cluster import process  # noqa: E402

process.prepare()

from fixtures.jobs import TINY  # noqa: E402
from fixtures.launching import ds_config  # noqa: E402
from fixtures.models import make_small  # noqa: E402
from fixtures.molecules import NCI, SMILES, make_record  # noqa: E402
from msde.chem.record import MoleculeRecord  # noqa: E402
from msde.data.batch import MoleculeBatch  # noqa: E402
from msde.data.codec import columns_from_records  # noqa: E402
from msde.data_tools.convert import convert  # noqa: E402
from msde.model import MoleculeSDE  # noqa: E402
from msde.ops.dispatch import OPERATORS  # noqa: E402
from msde.philox import Key  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def conformer_cache(tmp_path_factory) -> Iterator[Path]:
    """The folder where conformers are kept, instead of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msde.data_tools.models.cache.user_cache", lambda: folder)
        yield folder


@pytest.fixture(scope="session")
def records() -> list[MoleculeRecord]:
    """The molecules of SMILES, converted."""
    return [make_record(smiles, line) for line, smiles in enumerate(SMILES, start=1)]


@pytest.fixture(scope="session")
def batch(records: list[MoleculeRecord]) -> MoleculeBatch:
    """The molecules of SMILES, as a batch."""
    made = MoleculeBatch.from_columns(columns_from_records(records), Key(1, 2), slot=3)
    made.validate()
    return made


@pytest.fixture(scope="session")
def shard_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of real molecules in small blocks, so that windows and blocks matter."""
    output = tmp_path_factory.mktemp("data") / "nci"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msde.data.shards.BLOCK_MOLECULES", 16)
        convert([NCI], output, "smiles", processes=2, limit=150)
    return output


@pytest.fixture
def copied(shard_dir, tmp_path):
    """A copy of that data set, to be damaged."""
    data = shutil.copytree(shard_dir, tmp_path / "data")
    (data / "shard-00000.lmdb").chmod(0o644)
    return data


@pytest.fixture(scope="session")
def common(shard_dir, tmp_path_factory):
    """The arguments of a run on two ranks under ZeRO-1, with accumulation and loader threads."""
    path = ds_config(tmp_path_factory.mktemp("config"), 1, slots=4)
    return ["--data", shard_dir, "--deepspeed_config", path, *TINY, "data.workers=2"]


@pytest.fixture
def small_model() -> MoleculeSDE:
    """The paper's network at hidden 32, in evaluation mode."""
    return make_small("paper")


@pytest.fixture(scope="session")
def gpu():
    """The operators with a Triton launch; without a GPU, Triton's interpreter runs the kernels."""
    pytest.importorskip("triton")
    return {name: operator for name, operator in OPERATORS.items() if operator.triton}
