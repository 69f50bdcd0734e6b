from ogb.utils.features import allowable_features, get_atom_feature_dims, get_bond_feature_dims

from msde.chem.vocabulary import ATOM_SIZES, ATOM_VOCABULARY, BOND_SIZES


def test_vocabulary_sizes_are_those_of_ogb():
    assert get_atom_feature_dims() == ATOM_SIZES
    assert get_bond_feature_dims() == BOND_SIZES
    assert allowable_features["possible_chirality_list"] == ATOM_VOCABULARY["chirality"]
