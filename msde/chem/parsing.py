"""Parsing of SMILES and mol blocks."""

from __future__ import annotations

from rdkit import Chem, rdBase

from msde.chem.vocabulary import MoleculeError


def mol_from_smiles(smiles: str, keep_hydrogens: bool = False) -> Chem.Mol:
    """Parse a SMILES string, or raise MoleculeError with RDKit's reason."""
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = not keep_hydrogens
    mol = Chem.MolFromSmiles(smiles, parameters)
    if mol is None:
        raw = Chem.MolFromSmiles(smiles, sanitize=False)
        raise MoleculeError(_parse_failure(raw, "SMILES syntax"))
    return mol


def mol_from_molblock(block: str, keep_hydrogens: bool = False) -> Chem.Mol:
    """Parse a mol block, with stereo from its coordinates, or raise MoleculeError."""
    mol = Chem.MolFromMolBlock(block, removeHs=not keep_hydrogens)
    if mol is None:
        raw = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
        raise MoleculeError(_parse_failure(raw, "mol block syntax"))
    return mol


def _parse_failure(raw: Chem.Mol | None, otherwise: str) -> str:
    """Return why RDKit rejects a molecule, which is given unsanitised if it can be read so."""
    problems = Chem.DetectChemistryProblems(raw) if raw is not None else ()
    return f"cannot be parsed: {problems[0].Message() if problems else otherwise}"


def silence_rdkit() -> None:
    """Stop RDKit from writing to the terminal; failures reach users as MoleculeError."""
    rdBase.DisableLog("rdApp.*")
