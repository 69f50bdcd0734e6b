"""Sampled conformers: symmetry, independence, repetition, stereochemistry and bad input."""

import dataclasses

import numpy as np
import pytest
from rdkit import Chem

from fixtures.conformers import embedded, sampling_model
from msde.chem.clusters import with_conformers
from msde.chem.stereo import count_stereo
from msde.chem.vocabulary import MoleculeError
from msde.errors import MsdeError
from msde.inference.pretrained import Pretrained
from msde.sampling.conformer_likelihood import log_likelihoods
from msde.sampling.conformers import ConformerOptions, sample_batch, sample_conformers
from msde.sampling.samplers import SAMPLERS

SMILES = ["C[C@H](F)Cl", "CC(=O)Oc1ccccc1C(=O)O", "C/C=C/C", "N[C@@H](C)C(=O)O", "CCO"]
NOISE = ConformerOptions(num=2, start="noise", steps=6)
ETKDG = ConformerOptions(num=2, steps=6)
CHOSEN = ConformerOptions(num=2, steps=6, candidates=3)


@pytest.fixture(scope="module")
def model():
    return sampling_model()


def heavy(sampled):
    """The positions without hydrogens of all conformers, (num, num_atoms, 3)."""
    mol = Chem.RemoveHs(sampled.mol)
    return np.stack([c.GetPositions() for c in mol.GetConformers()])


@pytest.mark.parametrize("options", [NOISE, ETKDG, CHOSEN], ids=["noise", "etkdg", "chosen"])
def test_a_sample_does_not_depend_on_batch_mates(model, options):
    together = list(sample_conformers(model, SMILES, options))
    for smiles, found in zip(SMILES, together, strict=True):
        alone = next(sample_conformers(model, [smiles], options))
        assert np.abs(heavy(alone) - heavy(found)).max() < 1e-4


@pytest.mark.parametrize("options", [NOISE, ETKDG], ids=["noise", "etkdg"])
def test_a_sample_does_not_depend_on_how_many_are_made(model, options):
    more = dataclasses.replace(options, num=3)
    both = (list(sample_conformers(model, SMILES, o)) for o in (options, more))
    for few, many in zip(*both, strict=True):
        assert np.abs(heavy(few) - heavy(many)[: options.num]).max() < 1e-4


@pytest.mark.parametrize("options", [NOISE, ETKDG, CHOSEN], ids=["noise", "etkdg", "chosen"])
def test_a_seed_repeats_all_samples_to_the_bit(model, options):
    first, second = (list(sample_conformers(model, SMILES, options)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(heavy(a), heavy(b))
    other = ConformerOptions(**{**vars(options), "seed": 1})
    third = next(sample_conformers(model, SMILES, other))
    assert np.abs(heavy(third) - heavy(first[0])).max() > 1e-2


def test_samples_of_a_molecule_differ(model):
    a, b = heavy(next(sample_conformers(model, SMILES[1:2], NOISE)))
    assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_works_with_the_network(model, sampler):
    options = ConformerOptions(num=1, start="noise", steps=4, sampler=sampler)
    found = next(sample_conformers(model, ["C[C@H](F)Cl"], options))
    assert np.isfinite(heavy(found)).all()


def test_hydrogens_are_added_and_names_of_atoms_keep_their_order(model):
    found = next(sample_conformers(model, ["C[C@H](F)Cl"], NOISE))
    assert [a.GetSymbol() for a in found.mol.GetAtoms()][:4] == ["C", "C", "F", "Cl"]
    assert found.mol.GetNumAtoms() == 8 and found.mol.GetNumConformers() == 2
    assert Chem.MolToSmiles(Chem.RemoveHs(found.mol)) == Chem.CanonSmiles("C[C@H](F)Cl")


def test_conformers_of_the_input_are_not_used(model):
    plain = Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O")
    with_conformer = next(sample_conformers(model, [plain], ETKDG)).mol
    again = next(sample_conformers(model, [with_conformer], ETKDG))
    first = next(sample_conformers(model, [plain], ETKDG))
    assert np.array_equal(heavy(again), heavy(first))


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("xx", "cannot be parsed"),
        ("", "no SMILES"),
        ("[Na+].[Cl-]", "2 fragments"),
        ("C" * 201, "201 heavy atoms, at most 200"),
        ("C(C)(C)(C)(C)C", "valence"),
        (Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False), "valence for atom # 0 C, 5"),
    ],
)
def test_bad_molecules_have_one_line_and_the_others_are_done(model, smiles, reason):
    first, bad, last = sample_conformers(model, ["CCO", smiles, "CCN"], NOISE)
    assert bad.mol is None and reason in bad.reason and "\n" not in bad.reason
    assert first.mol.GetNumConformers() == last.mol.GetNumConformers() == 2


def test_a_molecule_that_etkdg_cannot_embed_starts_from_noise(model, monkeypatch):
    monkeypatch.setattr("msde.sampling.conformers.embed", lambda *_: [])
    found = next(sample_conformers(model, ["CCO"], ETKDG))
    assert found.mol.GetNumConformers() == 2
    assert found.notes == ["ETKDG finds no conformer: sampled from noise"]


def test_a_loaded_model_samples_with_the_same_options(model):
    expected = list(sample_conformers(model, SMILES[:2], NOISE))
    found = list(Pretrained(model).conformers(SMILES[:2], num=2, start="noise", steps=6))
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(heavy(a), heavy(b))
    for name in ("num", "candidates"):
        with pytest.raises(MsdeError, match=f"{name} must be at least 1"):
            Pretrained(model).conformers(["CCO"], **{name: 0})


@pytest.mark.parametrize("options", [NOISE, ETKDG], ids=["noise", "etkdg"])
def test_conformers_are_chosen_among_the_samples_that_are_made_without_choice(model, options):
    every = list(sample_conformers(model, SMILES, dataclasses.replace(options, num=6)))
    few = dataclasses.replace(options, num=2, candidates=3)
    for all_of, found in zip(every, sample_conformers(model, SMILES, few), strict=True):
        (note,) = (note for note in found.notes if note.startswith("chosen of 6 candidates: "))
        numbers = [int(number) - 1 for number in note.partition(": ")[2].split(", ")]
        remade = [f"sample {k + 1} was made" in "; ".join(all_of.notes) for k in numbers]
        for place, is_remade in enumerate(remade, start=1):
            assert is_remade == (f"sample {place} was made" in "; ".join(found.notes))
        assert len(numbers) == 2
        assert np.abs(heavy(all_of)[numbers] - heavy(found)).max() < 1e-4


def test_the_first_molecules_come_before_the_last_are_sampled(model, monkeypatch):
    made = []

    def counted(model, batch, *rest, **named):
        made.extend(batch.uid.tolist())
        return sample_batch(model, batch, *rest, **named)

    monkeypatch.setattr("msde.sampling.conformers.CHUNK", 2)
    monkeypatch.setattr("msde.sampling.conformers.sample_batch", counted)
    found = sample_conformers(model, ["CCO", "no molecule", "CCCO", "C", "CCN"], ETKDG)
    assert next(found).mol is not None and len(made) == ETKDG.num
    assert [one.mol is None for one in found] == [True, False, False, False]
    assert len(made) == 4 * ETKDG.num


def test_of_relaxed_candidates_the_one_of_low_energy_is_first(model, monkeypatch):
    def relax(mol, notes):
        return [9.0, 9.0, 0.0, 9.0]

    monkeypatch.setattr("msde.sampling.conformers.relax", relax)
    options = ConformerOptions(num=1, start="noise", steps=4, candidates=4, relax=True)
    found = next(sample_conformers(model, ["CCCO"], options))
    assert found.notes == ["chosen of 4 candidates: 3"] and found.mol.GetNumConformers() == 1


def test_candidates_with_wrong_labels_are_not_chosen_while_there_are_right_ones(model):
    smiles = ["C/C(F)=C(\\CC)c1ccccc1", "C[C@H](F)[C@@H](O)CC"]
    options = ConformerOptions(num=12, start="noise", steps=4, repair=False)
    few = dataclasses.replace(options, num=4, candidates=3)
    every, chosen = (sample_conformers(model, smiles, o) for o in (options, few))
    for all_of, found in zip(every, chosen, strict=True):
        right, kept = (
            [count_stereo(s.mol, c.GetId()).is_right for c in s.mol.GetConformers()]
            for s in (all_of, found)
        )
        assert 0 < sum(right) < 12, "this untrained model makes no wrong label: take another seed"
        assert sum(kept) == min(4, sum(right)) and kept == sorted(kept, reverse=True)


def test_likelihoods_do_not_depend_on_place_and_batch_mates(model):
    mols = [
        Chem.RemoveHs(next(sample_conformers(model, [s], ETKDG)).mol)
        for s in ("C[C@H](F)Cl", "CCO")
    ]
    few = {"steps": 1, "num_probes": 9}  # as many as there are dimensions: the result is exact
    values = log_likelihoods(model, mols, **few)
    assert np.isfinite(values).all() and values[0] != values[1]
    moved = [Chem.Mol(mol) for mol in mols]
    turned = Chem.Mol(mols[0])
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    for mol, matrix in [(m, np.eye(3)) for m in moved] + [(turned, turn * np.linalg.det(turn))]:
        mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() @ matrix + 2)
    assert np.allclose(log_likelihoods(model, moved, **few), values, atol=1e-2)
    assert np.array_equal(log_likelihoods(model, mols[1:], **few), values[1:])
    for mol, seed in ((mols[0], 1), (turned, 0)):
        assert np.allclose(log_likelihoods(model, [mol], **few, seed=seed), values[:1], atol=1e-2)


def test_likelihoods_are_of_first_conformers(model):
    mols = [embedded(smiles, num=4) for smiles in ("CCCCO", "CCCCN", "CC(C)CCF")]
    first = [with_conformers(mol, [0]) for mol in mols]
    few = {"steps": 1, "num_probes": 1}
    assert np.array_equal(log_likelihoods(model, mols, **few), log_likelihoods(model, first, **few))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("CCO", {"steps": 0}, "^steps must be at least 1"),
        ("CCO", {"num_probes": 0}, "^num_probes must be at least 1"),
        ("C[NH3+].CC(=O)[O-]", {}, "^molecule 1: 2 fragments; give each alone"),
        ("C" * 201, {}, "^molecule 1: 201 heavy atoms, at most 200"),
        (Chem.MolFromSmiles("CCO"), {}, "^molecule 1: no 3D conformer"),
        (Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False), {}, "^molecule 1: Explicit valence"),
    ],
)
def test_what_has_no_likelihood_is_named(model, given, options, message):
    mol = embedded(given) if isinstance(given, str) and len(given) < 99 else given
    mol = Chem.MolFromSmiles(mol) if isinstance(mol, str) else mol
    with pytest.raises((MsdeError, MoleculeError), match=message):
        log_likelihoods(model, [embedded("CCO"), mol], **options)


def test_noise_on_etkdg_is_of_no_interest_where_samples_start_from_noise(model, caplog):
    plain = ConformerOptions(num=1, start="noise", steps=2)
    expected = heavy(next(sample_conformers(model, SMILES[:1], plain)))
    for std in (1e-3, 1e3):
        options = dataclasses.replace(plain, std=std)
        assert np.array_equal(heavy(next(sample_conformers(model, SMILES[:1], options))), expected)
    assert caplog.text == ""
    with pytest.raises(MsdeError, match="std is 0.001 A, expected more than"):
        next(sample_conformers(model, SMILES[:1], ConformerOptions(std=1e-3)))


def test_isotopes_and_mixtures_that_samples_do_not_show_are_noted(model):
    smiles = ["[2H]CCO", "C[C@H](F)Cl |&1:1|"]
    expected = [
        ["hydrogen isotopes are removed like hydrogens: 1 D"],
        ["a mixture of both stereoisomers (racemic) at atom 1: read as drawn"],
    ]
    options = dataclasses.replace(NOISE, num=1, steps=2, repair=False)
    for given in (smiles, [Chem.MolFromSmiles(text) for text in smiles]):
        assert [found.notes for found in sample_conformers(model, given, options)] == expected
