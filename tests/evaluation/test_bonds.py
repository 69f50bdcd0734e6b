"""Scores of bonds, and the rules to compare with."""

import os
import signal

import pytest
from rdkit import Chem

from fixtures.bonds import geometry
from msde.evaluation.bond_rules import RULES, RuleProcess, available_rules
from msde.evaluation.bonds import compare_graphs, graph_smiles


def full(smiles):
    return Chem.AddHs(Chem.MolFromSmiles(smiles))


def test_scores_of_known_answers():
    truth = [full("CC=O"), full("C"), full("CO")]
    single = Chem.RWMol(truth[0])  # the order of one bond of six is wrong
    single.GetBondBetweenAtoms(1, 2).SetBondType(Chem.BondType.SINGLE)
    found = compare_graphs([single, truth[1], None], truth)
    assert found.is_exact.tolist() == [False, True, False] and found.exact == pytest.approx(1 / 3)
    assert found.has_failed.tolist() == [False, False, True]
    assert found.f1 == pytest.approx(2 * 10 / (10 + 15))
    assert found.f1_with_orders == pytest.approx(2 * 9 / (10 + 15))


def test_a_graph_knows_neither_stereochemistry_nor_kekule_structures():
    assert graph_smiles(full("C[C@H](F)Cl")) == graph_smiles(full("C[C@@H](F)Cl"))
    kekule = full("Cc1ccccc1C")
    Chem.Kekulize(kekule, clearAromaticFlags=True)
    assert graph_smiles(kekule) == graph_smiles(full("Cc1ccccc1C"))


@pytest.mark.parametrize("name", RULES)
def test_rules_find_easy_molecules_and_are_killed_when_time_is_up(name):
    if name not in available_rules():
        pytest.skip("pip install openbabel-wheel")
    rule, easy = RuleProcess(name, 30.0), geometry("CC(=O)O")
    assert graph_smiles(rule(easy.z, easy.pos, 0)) == "CC(=O)O"
    os.kill(rule._process.pid, signal.SIGSTOP)  # it does not answer
    rule.time_limit = 0.1
    assert rule(easy.z, easy.pos, 0) is None and rule.num_killed == 1
    rule.time_limit = 30.0
    assert graph_smiles(rule(easy.z, easy.pos, 0)) == "CC(=O)O"  # started again
    rule.close()
