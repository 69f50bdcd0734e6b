"""The commands of the how-to pages; worked examples are made in a copy of the project."""

import gzip
import io
import shlex
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import torch
import torch.distributed.run
from deepspeed.launcher import runner
from rdkit import Chem

from fixtures.commands import run_here
from fixtures.downstream import smiles, write_table
from fixtures.launching import free_port
from fixtures.pages import blocks, run_block, run_page
from fixtures.paths import PARITY, ROOT
from fixtures.readers import embedded, sd_record

HOWTO = ROOT / "docs/howto"
EXAMPLES = ["add-encoder", "add-reader", "add-sde"]
INSIDE = ("data_tools", "launch", "ds_configs")  # these install inside the package


def diffs(name):
    return [block.text for block in blocks(HOWTO / f"{name}.md") if block.language == "diff"]


def git_apply(folder, diff, *options):
    return subprocess.run(
        ["git", "apply", *options, "-"], cwd=folder, input=diff, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path):
    """A copy of the project that is imported instead of it."""
    for name in ("msde", "tests", "docs", *INSIDE):
        ignored = shutil.ignore_patterns("__pycache__", "_build", *INSIDE)
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in INSIDE:
        (tmp_path / "msde" / name).symlink_to(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_changes_of_a_worked_example_fit_the_source(name):
    assert diffs(name)
    for diff in diffs(name):
        done = git_apply(ROOT, diff, "--check")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_worked_example_runs_in_a_copy_of_the_project(name, copy, shard_dir):
    (copy / "data").symlink_to(shard_dir)
    for diff in diffs(name):
        done = git_apply(copy, diff)
        assert done.returncode == 0, done.stderr
    run_page(HOWTO / f"{name}.md", copy, PYTHONPATH=str(copy))


def commands(block):
    """The commands of a block as lists of words, with continued lines joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def launched(words):
    """What a launcher starts, as the launcher's own parser finds it; else the words themselves."""
    if words[0] == "deepspeed":
        found = runner.parse_args(words[1:])
    elif words[0] == "torchrun":
        found = torch.distributed.run.get_args_parser().parse_args(words[1:])
    else:
        return words
    script = found.user_script if words[0] == "deepspeed" else found.training_script
    rest = found.user_args if words[0] == "deepspeed" else found.training_script_args
    return ["python", script, *rest]


def folder_for(tmp_path, shard_dir):
    """A folder in which commands that name files of the checkout can be run."""
    for name in INSIDE:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").symlink_to(shard_dir)
    return tmp_path


@pytest.mark.slow
@pytest.mark.launcher
def test_a_run_on_one_machine_goes_as_the_page_of_clusters_says(tmp_path, shard_dir):
    run_page(HOWTO / "clusters.md", folder_for(tmp_path, shard_dir))
    assert (tmp_path / "run/DONE").exists()


@pytest.mark.slow
def test_the_commands_for_clusters_start_runs_that_a_dry_run_accepts(
    tmp_path, shard_dir, monkeypatch
):
    folder_for(tmp_path, shard_dir)
    monkeypatch.chdir(tmp_path)
    exempt = [block for block in blocks(HOWTO / "clusters.md") if block.note]
    started = [launched(words) for block in exempt for words in commands(block)]
    runs = [words for words in started if words[1] == "launch/pretrain.py"]
    assert len(runs) == 3  # those of a hostfile, of no ssh and of torchrun
    for words in runs:
        done = run_here("msde.launch.pretrain", *words[2:], "--dry-run")
        assert done.returncode == 0, done.stderr
    (batch,) = (words for words in started if "sbatch" in words)
    script, *overrides = batch[batch.index("sbatch") + 1 :]
    subprocess.run(["bash", "-n", script], check=True)
    done = run_here("msde.launch.pretrain", "--data=data", "--output=run", "--dry-run", *overrides)
    assert done.returncode == 0, done.stderr


def write_pcqm4mv2(folder, count=40):
    """Write the two files that the download leaves, with real molecules."""
    folder.mkdir()
    mols = [Chem.RemoveHs(embedded(text)) for text in smiles(count)]
    sdf = "".join(map(sd_record, mols)).encode()
    with tarfile.open(folder / "pcqm4m-v2-train.sdf.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("pcqm4m-v2-train.sdf")
        entry.size = len(sdf)
        archive.addfile(entry, io.BytesIO(sdf))
    with gzip.open(folder / "data.csv.gz", "wt") as file:
        file.write("idx,smiles,homolumogap\n")
        file.writelines(f"{i},{Chem.MolToSmiles(mol)},{i}.5\n" for i, mol in enumerate(mols))


@pytest.mark.slow
@pytest.mark.launcher
def test_pcqm4mv2_goes_from_the_downloaded_files_to_embeddings(tmp_path, shard_dir):
    folder_for(tmp_path, shard_dir)
    (tmp_path / "data").unlink()  # this page makes its own
    write_pcqm4mv2(tmp_path / "pcqm4mv2")
    small = "run.epochs=1 model.hidden_dim=32"
    for block in filter(lambda block: block.is_run, blocks(HOWTO / "pcqm4mv2.md")):
        changes = [("run.epochs=10", small)] if "run.epochs=10" in block.text else []
        if "deepspeed " in block.text:
            start = f"deepspeed --num_accelerators 1 --master_port {free_port()} "
            changes.append(("deepspeed ", start))
        run_block(block, tmp_path, changes)
    with np.load(tmp_path / "embeddings.npz") as found:
        assert list(found["label_names"]) == ["homolumogap"] and np.isfinite(found["h_2d"]).all()


@pytest.mark.slow
def test_a_published_checkpoint_is_used_as_its_page_says(tmp_path, shard_dir):
    folder_for(tmp_path, shard_dir)
    shutil.copy(PARITY / "model_complete.pth", tmp_path)
    path = write_table(tmp_path / "activities.csv", 60)
    path.write_text(path.read_text().replace("logp", "activity"))
    run_page(HOWTO / "published.md", tmp_path)
    one, other = (torch.load(tmp_path / n) for n in ("model_complete.pth", "again.pth"))
    assert one.keys() == other.keys()
    for part in one:
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
