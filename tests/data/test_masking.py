import collections

import networkx
import numpy as np
import pytest
import torch

from fixtures.molecules import NCI, SMILES, make_record
from msde.chem.record import record_from
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.data.masking import drop_hydrogens, mask_columns
from msde.model.relations import relations
from msde.model.score.all_pairs import signed_volumes
from msde.philox import Key


@pytest.fixture
def columns(records):
    return columns_from_records(records)


def graph(record):
    made = networkx.Graph()
    made.add_nodes_from(range(len(record.z)))
    made.add_edges_from(record.bond_index.tolist())
    return made


def extended(record):
    """Both directions of the extended edges as (source, target)."""
    target = np.repeat(np.arange(len(record.z)), record.extended_degree)
    return set(zip(record.extended_source.tolist(), target.tolist(), strict=True))


@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_kept_atoms_are_a_connected_induced_subgraph(columns, records, ratio):
    masked = mask_columns(columns, ratio, Key(0, 0))
    MoleculeBatch.from_columns(masked).validate()
    for number, whole in enumerate(records):
        part = masked.record(number)
        n = len(whole.z)
        assert len(part.z) == min(int(n * (1 - ratio)) + 1, n)
        pieces = networkx.number_connected_components(graph(part))
        assert pieces <= networkx.number_connected_components(graph(whole))
        # Where its atoms are in the whole: distances within a molecule tell.
        atoms = [
            next(
                k
                for k in range(n)
                if np.allclose(whole.pos[0, k] - part.pos[0, a], shift, atol=1e-4)
            )
            for shift in [_shift(whole, part)]
            for a in range(len(part.z))
        ]
        assert (whole.z[atoms] == part.z).all() and (whole.x[atoms] == part.x).all()
        induced = graph(whole).subgraph(atoms)
        assert {frozenset((atoms[i], atoms[j])) for i, j in part.bond_index.tolist()} == {
            frozenset(edge) for edge in induced.edges
        }
        expected = {p for p in extended(whole) if set(p) <= set(atoms)}
        found = {(atoms[i], atoms[j]) for i, j in extended(part)}
        assert found == expected
        assert np.allclose(part.pos.mean(1), 0, atol=1e-5)


def _shift(whole, part):
    """Return the vector between the two centres: the one that fits every atom."""
    for k in range(len(whole.z)):
        shift = whole.pos[0, k] - part.pos[0, 0]
        gaps = np.abs(whole.pos[0][None] - (part.pos[0] + shift)[:, None]).sum(-1).min(1)
        if (gaps < 1e-4).all():
            return shift
    raise AssertionError("the masked atoms are not atoms of the molecule")


def test_the_choice_depends_on_key_and_molecule_alone(columns):
    alone = mask_columns(columns.take(np.array([7])), 0.3, Key(3, 1)).record(0)
    among = mask_columns(columns, 0.3, Key(3, 1)).record(7)
    assert np.array_equal(alone.pos, among.pos)
    next_epoch = mask_columns(columns, 0.3, Key(3, 2)).record(7)
    assert not np.array_equal(alone.pos, next_epoch.pos)


def test_growth_is_uniform():
    """Of F-C(-Cl)-Br three atoms are kept: start anywhere, the carbon comes next, then either."""
    star = columns_from_records([make_record("FC(Cl)Br")])
    kept = [mask_columns(star, 0.5, Key(0, epoch)).record(0).z.tolist() for epoch in range(3000)]
    missing = collections.Counter(({9, 6, 17, 35} - set(z)).pop() for z in kept)
    assert missing.keys() == {9, 17, 35}
    assert all(abs(count / 3000 - 1 / 3) < 0.03 for count in missing.values())


def test_no_masking_changes_nothing(columns):
    assert mask_columns(columns, 0.0, Key(0, 0)) is columns


def test_conformers_are_masked_alike(records):
    import dataclasses

    record = records[7]
    twice = dataclasses.replace(record, pos=np.concatenate([record.pos, 2 * record.pos]))
    masked = mask_columns(columns_from_records([twice, records[2]]), 0.3, Key(0, 0)).record(0)
    assert np.allclose(masked.pos[1], 2 * masked.pos[0], atol=1e-5)


def test_masked_training_streams(shard_dir):
    from msde.config import make_config
    from msde.training.plan import make_plan

    config = make_config(overrides=["data.masking_ratio=0.3", "data.molecules_per_step=32"])
    (batch,) = next(iter(make_plan(config, shard_dir, 1).stream))
    batch.validate()
    whole = make_plan(make_config(overrides=["data.molecules_per_step=32"]), shard_dir, 1).stream
    (other,) = next(iter(whole))
    assert torch.equal(batch.uid, other.uid)
    assert (batch.atoms_per_graph <= other.atoms_per_graph).all()
    assert batch.num_atoms < 0.8 * other.num_atoms


def records_of(smiles, keep_hydrogens):
    made = [make_record(s, n, keep_hydrogens) for n, s in enumerate(smiles, start=1)]
    return columns_from_records(made)


IMINES = ["[H]/N=C(/C)N", "[H]/N=C/C", "C/N=C/C"]  # E or Z refers to the hydrogen of two


@pytest.fixture(scope="module")
def with_and_without():
    """Molecules converted with their hydrogens and without, of the same conformers."""
    lines = NCI.read_text().splitlines()[:400:5]
    stereo = ["C[C@H](N)[C@@H](F)C(=O)O", "C/C(F)=C(/Cl)[C@@H]1CC[C@H](O)CC1"]
    smiles = [
        *SMILES,
        *stereo,
        "[H][H]",
        "[OH3+]",
        "[2H]OC",
        *IMINES,
        *(line.split()[0] for line in lines),
    ]
    return [records_of(smiles, keep_hydrogens) for keep_hydrogens in (True, False)]


def test_without_hydrogens_molecules_are_as_converted_without_them(with_and_without):
    whole, heavy = with_and_without
    dropped = drop_hydrogens(whole, 1.0, Key(0, 0))
    MoleculeBatch.from_columns(dropped).validate()
    assert len(dropped.z) < 0.7 * len(whole.z)
    exact = ("num_atoms", "num_bonds", "num_extended", "z", "x", "cip", "bond_index", "bond_attr")
    for name in (*exact, "extended_source", "extended_degree"):
        assert np.array_equal(getattr(dropped, name), getattr(heavy, name)), name
    assert np.abs(dropped.pos - heavy.pos).max() < 1e-4


def test_a_stereocentre_keeps_its_hand_wherever_its_hydrogen_stood():
    """A tag refers to the order of the bonds, in which the hydrogens of files may come anywhere."""
    smiles = ["C[C@@](F)([H])Cl", "[H][C@](C)(F)Cl", "C[C@](F)(Cl)[H]", "C[C@]([H])(F)Cl"]
    whole, heavy = (
        columns_from_records([record_from(s, False, keep) for s in smiles])
        for keep in (True, False)
    )
    dropped = drop_hydrogens(whole, 1.0, Key(0, 0))
    assert np.array_equal(dropped.x, heavy.x) and np.array_equal(dropped.z, heavy.z)
    for columns in (whole, dropped):
        batch = MoleculeBatch.from_columns(columns)
        related = relations(batch)
        volume, _ = signed_volumes(batch.pos, related)
        signed = (volume * related.sign)[related.sign != 0]
        assert len(signed) == len(smiles) and (signed > 0).all()


def test_a_masked_molecule_has_no_wrong_stereocentres():
    """One that has lost a neighbour is none: its tag refers to the order of all of them."""
    smiles = ["CC[C@](F)(Cl)Br", "O[C@@](C)(CC)N", "CC[S@](=O)C", "CC[C@H](F)Cl"]
    whole, found = records_of(smiles, False), []
    for epoch in range(60):
        batch = MoleculeBatch.from_columns(mask_columns(whole, 0.2, Key(1, epoch)))
        related = relations(batch)
        volume, _ = signed_volumes(batch.pos, related)
        found += (volume * related.sign)[related.sign != 0].tolist()
    assert len(found) > 60 and min(found) > 0


def test_a_share_of_the_molecules_loses_its_hydrogens_anew_in_each_epoch(with_and_without):
    whole, heavy = with_and_without
    lost = []
    for epoch in range(40):
        counts = drop_hydrogens(whole, 0.3, Key(0, epoch)).num_atoms
        assert ((counts == whole.num_atoms) | (counts == heavy.num_atoms)).all()
        lost.append(counts < whole.num_atoms)
    some = np.array(lost)[:, heavy.num_atoms < whole.num_atoms]
    assert 0.27 < some.mean() < 0.33 and some.any(0).all() and not some.all(0).any()
    assert drop_hydrogens(whole, 0.0, Key(0, 0)) is whole
