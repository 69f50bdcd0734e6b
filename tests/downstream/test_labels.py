"""Labels in the units of the task, and what a data set says of its molecules."""

import json
import logging

import numpy as np
import pytest

from fixtures.downstream import finetune, save_checkpoint, smiles, write_table, write_trajectory
from msde.data_tools.convert import convert
from msde.data_tools.merge import merge
from msde.data_tools.models.finetuning import task_shards
from msde.data_tools.models.prediction import predict_file
from msde.data_tools.options import Options
from msde.downstream.labels import read_task_data
from msde.downstream.settings import make_settings
from msde.downstream.splits import known_from_training, make_split
from msde.downstream.tasks import get_task
from msde.errors import MsdeError

EV_PER_KCAL_MOL = 0.0433641


def convert_table(path, header, cells, columns, **options):
    lines = [f"{text},{cells(n)}" for n, text in enumerate(smiles(12))]
    path.write_text("\n".join([f"smiles,{header}", *lines]) + "\n")
    given = Options(conformers=0, label_columns=columns, **options)
    convert([path], path.with_suffix(""), options=given)
    return path.with_suffix("")


def test_labels_of_shards_are_in_the_units_of_the_task(tmp_path, caplog):
    root = convert_table(tmp_path / "q.csv", "gap", lambda n: 0.1 + n, ("gap=Ha",))
    with caplog.at_level(logging.INFO, "msde"):
        data = read_task_data(root, get_task("qm9-gap"))
    assert data.units == ("meV",)
    assert data.y[:, 0] == pytest.approx(27211.386 * (0.1 + np.arange(12)), rel=1e-6)
    assert "label gap is converted from Ha to meV" in caplog.text


@pytest.mark.parametrize("columns, size", [(("gap=Ha",), 27211.386), (("gap",), 1), (None, 1)])
def test_labels_of_a_file_are_in_the_unit_that_the_user_states(tmp_path, columns, size, caplog):
    lines = [f"{text},{0.1 + n}" for n, text in enumerate(smiles(12))]
    (tmp_path / "q.csv").write_text("\n".join(["smiles,gap", *lines]) + "\n")
    task = get_task("qm9-gap")
    given = (make_settings(task, ["view=2d"]), "auto", Options(label_columns=columns))
    with caplog.at_level(logging.INFO, "msde"):
        root = task_shards(task, tmp_path / "q.csv", tmp_path / "data", *given).root
        data = read_task_data(root, task)
    assert data.units == ("meV",)
    assert data.y[:, 0] == pytest.approx(size * (0.1 + np.arange(12)), rel=1e-6)
    assert ("unit of gap is not stated" in caplog.text) == (size == 1)


def test_energies_that_the_user_states_in_ev_are_converted_with_their_forces(tmp_path):
    path, task = write_trajectory(tmp_path / "e.npz"), get_task("md17-ethanol")
    given = (make_settings(task, []), "auto", Options(label_columns=("energy=eV",)))
    data = read_task_data(task_shards(task, path, tmp_path / "data", *given).root, task)
    arrays = np.load(path)
    assert data.y[:, 0] * EV_PER_KCAL_MOL == pytest.approx(arrays["E"], rel=1e-5)
    assert data.columns.forces * EV_PER_KCAL_MOL == pytest.approx(
        arrays["F"].reshape(-1, 3), rel=1e-4, abs=1e-4
    )


def test_options_of_files_are_refused_where_the_data_are_shards(tmp_path):
    root = convert_table(tmp_path / "q.csv", "gap", lambda n: n, ("gap=eV",))
    task = get_task("qm9-gap")
    options = Options(label_columns=("gap=Ha",))
    with pytest.raises(MsdeError, match="--label-columns is of no use for .*folder of shards"):
        task_shards(
            task, root, tmp_path / "data", make_settings(task, ["view=2d"]), "auto", options
        )


def test_a_unit_of_another_kind_is_refused(tmp_path):
    root = convert_table(tmp_path / "q.csv", "gap", lambda n: n, ("gap=D",))
    with pytest.raises(MsdeError, match="label gap is in D, expected meV or a unit of that kind"):
        read_task_data(root, get_task("qm9-gap"))


def test_forces_are_in_the_unit_of_the_energies(tmp_path):
    """A file in eV and one in kcal/mol hold the same: the network sees the same numbers."""
    task, found = get_task("md17-ethanol"), []
    for unit, size in (("kcal/mol", 1.0), ("eV", EV_PER_KCAL_MOL)):
        path = tmp_path / f"{unit[:2]}.npz"
        write_trajectory(path)
        arrays = dict(np.load(path))
        arrays |= {"E": arrays["E"] * size, "F": arrays["F"] * size, "e_unit": unit}
        np.savez(path, **arrays)
        convert([path], path.with_suffix(""))
        found.append(read_task_data(path.with_suffix(""), task))
    kcal, ev = found
    assert ev.units == kcal.units == ("kcal/mol",) and ev.forces_unit == "kcal/mol/A"
    assert ev.y == pytest.approx(kcal.y, rel=1e-5)
    assert ev.columns.forces == pytest.approx(kcal.columns.forces, rel=1e-4, abs=1e-4)


def test_the_column_that_divides_the_molecules_is_no_target(tmp_path):
    root = convert_table(tmp_path / "t.csv", "y,part", lambda n: f"{n},{n % 3}", ("y", "part"))
    assert read_task_data(root, get_task("custom"), split_column="part").targets == ("y",)
    with pytest.raises(MsdeError, match="part cannot be a target"):
        read_task_data(root, get_task("custom", ["part"]), split_column="part")


def test_merged_data_sets_have_the_hydrogens_of_their_parts(tmp_path):
    parts = [
        convert_table(tmp_path / f"{name}.csv", "y", lambda n: n, ("y",), keep_hydrogens=keep)
        for name, keep in (("with", True), ("more", True), ("without", False))
    ]
    merge(parts[:2], tmp_path / "all")
    assert read_task_data(tmp_path / "all", get_task("custom")).hydrogens
    merge(parts[1:], tmp_path / "mixed")
    with pytest.raises(MsdeError, match="kept in some of the merged data sets and removed in"):
        read_task_data(tmp_path / "mixed", get_task("custom"))


def test_shards_with_other_hydrogens_than_in_training_are_not_predicted(tmp_path):
    root = convert_table(tmp_path / "h.csv", "y", lambda n: n, ("y",), keep_hydrogens=True)
    save_checkpoint(tmp_path / "checkpoint")
    finetune(write_table(tmp_path / "t.csv", 30), tmp_path / "checkpoint", tmp_path / "tuned")
    with pytest.raises(MsdeError, match="hydrogens are atoms in .*was trained without them"):
        predict_file(tmp_path / "tuned", root, tmp_path / "out.csv")


def test_copies_of_training_molecules_are_counted(tmp_path):
    lines = ["smiles,y"] + [f"{text},{n}" for n in range(2) for text in smiles(20)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    convert([tmp_path / "t.csv"], tmp_path / "d", options=Options(conformers=0))
    task = get_task("custom", ["y"])
    data = read_task_data(tmp_path / "d", task)
    split = make_split(data, make_settings(task, ["split=random", "train=20", "valid=10"]), task)
    found = known_from_training(data, split)
    train = set(split.train % 20)
    assert found["test"] == sum(place % 20 in train for place in split.test) > 0
    assert json.dumps(found)  # counts are plain numbers
    scaffolds = make_split(data, make_settings(task, ["split=random_scaffold"]), task)
    assert not any(known_from_training(data, scaffolds).values())


def test_stereoisomers_of_training_molecules_are_told_unless_the_split_keeps_them(tmp_path, caplog):
    """Scaffolds with chirality divide them."""
    rings = [f"C1O{'C' * n}CC[C{at}H]1{end}" for n in range(12) for at in ("@", "@@") for end in
             ("N1CCCCC1", "N1CCOCC1")]  # fmt: skip
    rows = [f"{text},{n}" for n, text in enumerate(rings)]
    (tmp_path / "t.csv").write_text("\n".join(["smiles,y", *rows]) + "\n")
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    for split, told in (("random_scaffold", True), ("deepchem", False)):
        caplog.clear()
        with caplog.at_level("INFO", "msde"):
            finetune(tmp_path / "t.csv", checkpoint, tmp_path / split, "epochs=1",
                     f"split={split}", targets=["y"])  # fmt: skip
        assert ("test molecules are copies or stereoisomers of training" in caplog.text) == told
