"""The RDKit molecule of a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdkit import Chem

from msde.chem.conformers import add_conformers
from msde.chem.record import MoleculeRecord, Origin
from msde.chem.stereo import legacy_perception
from msde.chem.vocabulary import ATOM_VOCABULARY, BOND_VOCABULARY, MoleculeError


def mol_from_record(record: MoleculeRecord) -> Chem.Mol:
    """Rebuild the RDKit molecule of a record, conformers included.

    Hydrogens that are no atoms of the record become explicit, so that none is added or lost.
    Records hold no isotopes and no atom maps.

    Raises:
        MoleculeError: a code is "misc", or RDKit rejects the molecule.
    """
    mol = Chem.RWMol()
    for z, codes in zip(record.z.tolist(), record.x.tolist(), strict=True):
        values = _values(ATOM_VOCABULARY, codes)
        atom = Chem.Atom(z)
        atom.SetFormalCharge(values["formal_charge"])
        atom.SetNumRadicalElectrons(values["num_radical_electrons"])
        if values["chirality"] != "misc":  # else the positions define it
            atom.SetChiralTag(Chem.ChiralType.names[values["chirality"]])
        elif record.origin & Origin.NO_GEOMETRY:
            raise MoleculeError("chirality is one that the vocabulary does not list")
        atom.SetIsAromatic(values["is_aromatic"])
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(values["num_hs"])
        mol.AddAtom(atom)
    stereo = {}
    bonds = zip(record.bond_index.tolist(), record.bond_attr.tolist(), strict=True)
    for number, (ends, codes) in enumerate(bonds):
        values = _values(BOND_VOCABULARY, codes)
        mol.AddBond(ends[0], ends[1], Chem.BondType.names[values["type"]])
        mol.GetBondWithIdx(number).SetIsAromatic(values["type"] == "AROMATIC")
        if values["stereo"] != "STEREONONE" and values["type"] == "DOUBLE":
            stereo[number] = Chem.BondStereo.names[values["stereo"]]
    try:
        Chem.SanitizeMol(mol)
    except ValueError as error:
        raise MoleculeError(f"RDKit does not accept it: {' '.join(str(error).split())}") from error
    if not record.origin & Origin.NO_GEOMETRY:
        add_conformers(mol, record.pos)
    if stereo:
        _set_bond_stereo(mol, stereo)
    return mol.GetMol()


def _values(vocabulary: dict[str, list], codes: Sequence[int]) -> dict[str, Any]:
    values = {
        name: listed[code] for (name, listed), code in zip(vocabulary.items(), codes, strict=True)
    }
    for name in ("formal_charge", "num_radical_electrons", "num_hs", "type"):
        if values.get(name) == "misc":
            raise MoleculeError(f"{name} is one that the vocabulary does not list")
    return values


def _set_bond_stereo(mol: Chem.RWMol, stereo: dict[int, Chem.BondStereo]) -> None:
    """Set E and Z, defined by the neighbours of highest rank on each side."""
    with legacy_perception():  # sets _CIPRank
        Chem.AssignStereochemistry(mol, force=True, flagPossibleStereoCenters=True)
    for number, kind in stereo.items():
        bond = mol.GetBondWithIdx(number)
        ends = bond.GetBeginAtom(), bond.GetEndAtom()
        highest = []
        for atom, other in (ends, ends[::-1]):
            around = [n for n in atom.GetNeighbors() if n.GetIdx() != other.GetIdx()]
            if around:
                highest.append(max(around, key=lambda n: n.GetIntProp("_CIPRank")).GetIdx())
        if len(highest) == 2 and kind != Chem.BondStereo.STEREOANY:
            bond.SetStereoAtoms(*highest)
        if len(highest) == 2 or kind == Chem.BondStereo.STEREOANY:
            bond.SetStereo(kind)
    Chem.SetDoubleBondNeighborDirections(mol)  # without them RemoveHs loses E and Z


def mol_or_error(record: MoleculeRecord) -> Chem.Mol | MoleculeError:
    """Return what `mol_from_record` does, or the error with the reason why RDKit has none."""
    try:
        return mol_from_record(record)
    except MoleculeError as error:
        return error


def plain_mol(record: MoleculeRecord) -> Chem.Mol | None:
    """Return the topology of a record as RDKit reads its SMILES, or None where RDKit fails.

    Unlike that of `mol_from_record` its hydrogens are implied, so that one whose side chains are
    removed has no radicals.
    """
    try:
        mol = mol_from_record(record)
        mol.RemoveAllConformers()
        return Chem.MolFromSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol)))
    except (MoleculeError, ValueError, RuntimeError):
        return None
