"""Parsing of SMILES and mol blocks."""

from __future__ import annotations

from rdkit import Chem, rdBase

from msde.chem.vocabulary import MoleculeError

# How tables write a value that is missing, in lower case; none of these is a SMILES.
MISSING = {"", "-", "--", "?", "na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "null"}


def is_missing(value: object) -> bool:
    """Return whether a cell or an item of a list is no value: None, NaN, "", "NA", ..."""
    return str(value).strip().lower() in MISSING


def mol_from_smiles(
    smiles: str, keep_hydrogens: bool = False, coordinates: bool = False
) -> Chem.Mol:
    """Parse a SMILES string, alone or with a CXSMILES extension `|...|` after white space.

    Args:
        coordinates: keep a conformer that the extension holds.

    Raises:
        MoleculeError: it is missing, holds other white space, or RDKit rejects it.
    """
    if is_missing(smiles):
        raise MoleculeError("no SMILES")
    core, extension = (smiles.strip().split(maxsplit=1) + [""])[:2]
    if extension and not (extension[0] == "|" and extension.find("|", 1) == len(extension) - 1):
        reason = f"white space inside the SMILES: {smiles.strip()[:100]!r}"
        readable = Chem.MolFromSmiles(core, sanitize=False) is not None
        raise MoleculeError(reason if readable else f"cannot be parsed: SMILES syntax, {reason}")
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = not keep_hydrogens
    mol = Chem.MolFromSmiles(f"{core} {extension}".strip(), parameters)
    if mol is None:
        raise MoleculeError(_smiles_failure(core, extension))
    if extension and not coordinates:
        mol.RemoveAllConformers()
    return mol


def _smiles_failure(core: str, extension: str) -> str:
    """Return why RDKit rejects a SMILES or its CXSMILES extension."""
    raw = Chem.MolFromSmiles(core, sanitize=False)
    if not extension or raw is None or Chem.DetectChemistryProblems(raw):
        return _parse_failure(raw, "SMILES syntax")
    parameters = Chem.SmilesParserParams()
    parameters.sanitize = parameters.removeHs = False
    raw = Chem.MolFromSmiles(f"{core} {extension}", parameters)
    return _parse_failure(raw, f"CXSMILES extension {extension[:100]}")


def stereo_note(mol: Chem.Mol) -> str:
    """Return what the enhanced stereo of a molecule says that its one drawing does not, or ""."""
    kinds = {
        Chem.StereoGroupType.STEREO_AND: "a mixture of both stereoisomers (racemic)",
        Chem.StereoGroupType.STEREO_OR: "one of two stereoisomers, unknown which (relative)",
    }
    groups = [(g.GetGroupType(), g.GetAtoms()) for g in mol.GetStereoGroups()]
    return "; ".join(
        f"{kinds[kind]} at atom {', '.join(str(atom.GetIdx()) for atom in atoms)}: read as drawn"
        for kind, atoms in groups
        if kind in kinds and len(atoms)
    )


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
