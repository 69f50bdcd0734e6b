"""Shared fixtures: real molecules, small models. Process settings come before torch's threads."""

import os
from pathlib import Path

# Several processes of pytest-xdist share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

# Before anything imports Triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402
from rdkit import RDConfig  # noqa: E402

from msde.cluster import process  # noqa: E402

process.prepare()

from msde.data_tools.convert import convert  # noqa: E402
from msde.data_tools.pipeline.chunks import Task, convert_one  # noqa: E402
from msde.data_tools.readers import Options, RawMolecule  # noqa: E402

from msde.chem.parsing import MoleculeRecord, silence_rdkit  # noqa: E402
from msde.config import make_config  # noqa: E402
from msde.data.batch import MoleculeBatch  # noqa: E402
from msde.data.codec import columns_from_records  # noqa: E402
from msde.model import MoleculeSDE  # noqa: E402
from msde.philox import Key  # noqa: E402

NCI = Path(RDConfig.RDDataDir) / "NCI/first_5K.smi"

# One atom, two atoms, a ring with stereo, a salt, charges, a stereo double bond, linear, larger.
SMILES = [
    "C",
    "CO",
    "C[C@H](N)C(=O)O",
    "CC(=O)[O-].[Na+]",
    "C[N+](C)(C)CC(=O)[O-]",
    "C/C=C/Cl",
    "C#C",
    "O=C(O)c1ccccc1-c1c2ccc(=O)c(Br)c-2oc2c(Br)c(O)ccc12",
    "Nc1ccc2c(c1)C(=O)c1ccccc1C2=O",
    "CC1=CC(=O)C=CC1=O",
]


def make_record(smiles: str, line: int = 1, keep_hydrogens: bool = False) -> MoleculeRecord:
    """Convert one SMILES as the converter does; failures are errors here."""
    silence_rdkit()
    task = Task("smiles", Options(keep_hydrogens=keep_hydrogens))
    record = convert_one(RawMolecule("test.smi", line, "", smiles), task)
    assert isinstance(record, MoleculeRecord), record
    return record


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


# Small models of every kind: the published network, ours, and each with the other variants.
SMALL = ["model.hidden_dim=32", "model.conformer.hidden_dim=32", "model.conformer.basis_dim=64"]
KINDS = {
    "paper": ("paper", []),
    "paper, frame": ("paper", ["model.conformer.edges=frame", "model.gin.readout=sum"]),
    "paper, PaiNN": ("paper", ["model.encoder_3d=painn", "model.gin.readout=max"]),
    "base": ("base", ["model.schnet.num_filters=32"]),
    "base, PaiNN, frame": ("base", ["model.encoder_3d=painn", "model.conformer.edges=frame"]),
    "base, concat": ("base", ["model.gin.readout=concat", "model.schnet.num_filters=32"]),
}


def make_small(kind: str, *overrides: str) -> MoleculeSDE:
    """Build a small model of one of KINDS, in evaluation mode."""
    preset, variants = KINDS[kind]
    return MoleculeSDE.from_seed(
        make_config(preset, overrides=[*SMALL, *variants, *overrides])
    ).eval()


@pytest.fixture
def small_model() -> MoleculeSDE:
    """The paper's network at hidden 32, in evaluation mode."""
    return make_small("paper")
