"""Parsing of SMILES and mol blocks, and the removal of hydrogens."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Callable
from typing import ParamSpec

from rdkit import Chem, rdBase

from msde.chem.stereo import axes, legacy_perception
from msde.chem.vocabulary import MoleculeError

# How tables write a value that is missing, in lower case; none of these is a SMILES.
MISSING = {"", "-", "--", "?", "na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "null"}
MISSING |= {"n.a.", "nd", "n.d.", "n/d", "missing", "#value!", "#div/0!"}

_ISOTOPE = Chem.MolFromSmarts("[!0*]")
_HYDROGEN_ISOTOPE = Chem.MolFromSmarts("[#1!0*]")
_SMILES_SENTENCE = re.compile(r"SMILES Parse Error: (.+?) (?:while parsing|for input)")
_SMILES_POSITION = re.compile(r"around position (\d+)")
_LINES = {
    "an atom": re.compile(r"(\s*[-+\d.eE]+){3}\s*[A-Za-z*]"),
    "a bond": re.compile(r"[ \d]{9}"),
    "a property or M  END": re.compile(r"\S"),
}
_MIXTURES = {
    Chem.StereoGroupType.STEREO_AND: "a mixture of both stereoisomers (racemic)",
    Chem.StereoGroupType.STEREO_OR: "one of two stereoisomers, unknown which (relative)",
}
_SYMBOLS = {(1, 2): "D", (1, 3): "T"}  # by atomic number and isotope
_REMOVED = "_hydrogenIsotopes"  # the property with the hydrogen isotopes that were removed
_NUM_REMOVED = "_numHydrogenIsotopes"


def is_missing(value: object) -> bool:
    """Return whether a cell or an item of a list is no value: None, NaN, "", "NA", ..."""
    return str(value).strip().lower() in MISSING


P = ParamSpec("P")


def _alike_everywhere(parse: Callable[P, Chem.Mol]) -> Callable[P, Chem.Mol]:
    """Let a parser perceive stereochemistry in one way, and its error alone say what is wrong."""

    @functools.wraps(parse)
    def parse_quietly(*arguments: P.args, **options: P.kwargs) -> Chem.Mol:
        with rdBase.BlockLogs(), legacy_perception():
            return parse(*arguments, **options)

    return parse_quietly


@_alike_everywhere
def mol_from_smiles(
    smiles: str,
    keep_hydrogens: bool = False,
    coordinates: bool = False,
    keep_isotopes: bool = False,
) -> Chem.Mol:
    """Parse a SMILES string, alone or with a CXSMILES extension `|...|` after white space.

    Args:
        coordinates: keep a conformer that the extension holds.
        keep_isotopes: keep those of hydrogen, as RDKit does, where other hydrogens are removed.

    Raises:
        MoleculeError: it is missing, holds other white space, or RDKit rejects it.
    """
    if is_missing(smiles):
        raise MoleculeError("no SMILES")
    core, extension = (smiles.strip().split(maxsplit=1) + [""])[:2]
    if extension and not (extension[0] == "|" and extension.find("|", 1) == len(extension) - 1):
        reason = f"white space inside the SMILES: {smiles.strip()[:100]!r}"
        readable = Chem.MolFromSmiles(core, sanitize=False) is not None
        raise MoleculeError(
            reason if readable else f"cannot be parsed: {smiles_syntax(core)}, {reason}"
        )
    if not core.isascii():  # RDKit drops such letters from the end
        raise MoleculeError(f"cannot be parsed: {smiles_syntax(core)}")
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = not keep_hydrogens
    mol = Chem.MolFromSmiles(f"{core} {extension}".strip(), parameters)
    if mol is None:
        raise MoleculeError(_smiles_failure(core, extension))
    if extension and not coordinates:
        mol.RemoveAllConformers()
    return mol if keep_hydrogens or keep_isotopes else _without_hydrogen_isotopes(mol)


def _smiles_failure(core: str, extension: str) -> str:
    """Return why RDKit rejects a SMILES or its CXSMILES extension."""
    raw = Chem.MolFromSmiles(core, sanitize=False)
    if raw is None and re.search("(?<!-)>", core):
        return f"a reaction, expected a molecule: {core[:100]!r}"
    if raw is None:
        return f"cannot be parsed: {smiles_syntax(core)}"
    if not extension or Chem.DetectChemistryProblems(raw):
        return _parse_failure(raw, "SMILES chemistry")
    parameters = Chem.SmilesParserParams()
    parameters.sanitize = parameters.removeHs = False
    raw = Chem.MolFromSmiles(f"{core} {extension}", parameters)
    return _parse_failure(raw, f"CXSMILES extension {extension[:100]}")


def smiles_syntax(smiles: str) -> str:
    """Return what RDKit's parser says of a SMILES that it cannot read, with the position."""
    if not smiles.isascii():
        place = next(place for place, letter in enumerate(smiles, 1) if not letter.isascii())
        return f"SMILES syntax, {smiles[place - 1]!r} at position {place}"
    said = ""
    if hasattr(rdBase, "CaptureErrorLog"):  # since RDKit 2026.03
        with rdBase.CaptureErrorLog() as log:
            Chem.MolFromSmiles(smiles, sanitize=False)
        said = log.messages
    sentence = _SMILES_SENTENCE.search(said)
    position = _SMILES_POSITION.search(said)
    return (
        "SMILES syntax"
        + (f", {sentence[1]}" if sentence else "")
        + (f" at position {position[1]} of {smiles[:100]!r}" if position else "")
    )


def stereo_note(mol: Chem.Mol) -> str:
    """Return what the enhanced stereo of a molecule says that its one drawing does not, or ""."""
    groups = [(g.GetGroupType(), g.GetAtoms()) for g in mol.GetStereoGroups()]
    return "; ".join(
        f"{_MIXTURES[kind]} at atom {', '.join(str(atom.GetIdx()) for atom in atoms)}: "
        "read as drawn"
        for kind, atoms in groups
        if kind in _MIXTURES and len(atoms)
    )


def axis_notes(mol: Chem.Mol) -> list[str]:
    """Return a note on each hindered bond whose M or P records do not hold."""
    ends = ((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in axes(mol))
    return [f"M or P of the bond of atoms {i} and {j} is not stored" for i, j in ends]


@_alike_everywhere
def mol_from_molblock(block: str, keep_hydrogens: bool = False) -> Chem.Mol:
    """Parse a mol block, with stereo from its coordinates, or raise MoleculeError."""
    mol = Chem.MolFromMolBlock(block, removeHs=not keep_hydrogens)
    if mol is None:
        raw = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
        where = _line_of_atom(raw, block)
        raise MoleculeError(_parse_failure(raw, f"mol block syntax{_where_broken(block)}") + where)
    return mol if keep_hydrogens else _without_hydrogen_isotopes(mol)


def _line_of_atom(raw: Chem.Mol | None, block: str) -> str:
    """Return the line of the first atom whose chemistry is impossible, or ""."""
    problems = Chem.DetectChemistryProblems(raw) if raw is not None else ()
    if not problems or not hasattr(problems[0], "GetAtomIdx") or "V3000" in block[:500]:
        return ""
    return f", line {problems[0].GetAtomIdx() + 5} of the record"


def _where_broken(block: str) -> str:
    """Return the first line of a mol block that is not as it should be, "" if none is found."""
    lines = [line.rstrip() for line in block.rstrip().split("\n")]
    counts = lines[3] if len(lines) > 3 else ""
    if "V3000" in counts:
        return ""
    if not (counts[:3].strip().isdecimal() and counts[3:6].strip().isdecimal()):
        return f", line 4 has {counts[:40]!r}, expected numbers of atoms and bonds"
    num_atoms, num_bonds = int(counts[:3]), int(counts[3:6])
    number, line = 4, counts
    for number, line in enumerate(lines[4:], start=5):
        if line.startswith(("M  END", "$$$$", ">")):
            break
        kind = "an atom" if number < 5 + num_atoms else "a bond"
        kind = kind if number < 5 + num_atoms + num_bonds else "a property or M  END"
        if not line or not _LINES[kind].match(line):
            found = repr(line[:40]) if line else "blank"
            return f", line {number} of the record is {found}, expected {kind}"
    if number <= 4 + num_atoms + num_bonds:
        return f", it ends before its {num_atoms} atoms and {num_bonds} bonds"
    return "" if line.startswith("M  END") else ", there is no M  END"


def remove_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """Return the molecule without hydrogens; deuterium and tritium are hydrogens, too.

    RDKit keeps a few, such as those of H2 and those that make a double bond E or Z.
    """
    return _without_hydrogen_isotopes(Chem.RemoveHs(mol))


def _without_hydrogen_isotopes(mol: Chem.Mol) -> Chem.Mol:
    """Remove those hydrogens that RDKit keeps because they are isotopes."""
    if not mol.HasSubstructMatch(_HYDROGEN_ISOTOPE):  # of most molecules; takes microseconds
        return mol
    parameters = Chem.RemoveHsParameters()
    parameters.removeIsotopes = True
    reduced = Chem.RemoveHs(mol, parameters)
    Chem.AssignStereochemistry(reduced, cleanIt=True, force=True)  # -CHD- is no stereocentre now
    removed = _count_isotopes(mol) - _count_isotopes(reduced)
    if removed:
        reduced.SetProp(_REMOVED, _listed(removed))
        reduced.SetIntProp(_NUM_REMOVED, sum(removed.values()))
    return reduced


def num_removed_isotopes(mol: Chem.Mol) -> int:
    """Return how many hydrogens were removed from a molecule that were isotopes."""
    return mol.GetIntProp(_NUM_REMOVED) if mol.HasProp(_NUM_REMOVED) else 0


def removed_note(mol: Chem.Mol) -> str:
    """Return a note on the hydrogen isotopes that were removed from a molecule, or ""."""
    if not mol.HasProp(_REMOVED):
        return ""
    return f"hydrogen isotopes are removed like hydrogens: {mol.GetProp(_REMOVED)}"


def forget_isotopes(mol: Chem.Mol) -> tuple[str, ...]:
    """Make every atom one of the natural mixture; stereocentres by isotopes alone vanish.

    Returns:
        Notes on the isotopes that are lost, and on those that were removed as hydrogens.
    """
    notes = [note] if (note := removed_note(mol)) else []
    if mol.HasSubstructMatch(_ISOTOPE):
        notes.append(f"isotopes are not stored: {_listed(_count_isotopes(mol))}")
        for atom in mol.GetAtoms():
            atom.SetIsotope(0)
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return tuple(notes)


def _count_isotopes(mol: Chem.Mol) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for atom in mol.GetAtoms():
        if isotope := atom.GetIsotope():
            name = f"{isotope}{atom.GetSymbol()}"
            found[_SYMBOLS.get((atom.GetAtomicNum(), isotope), name)] += 1
    return found


def _listed(isotopes: collections.Counter[str]) -> str:
    return ", ".join(f"{count} {symbol}" for symbol, count in sorted(isotopes.items()))


def _parse_failure(raw: Chem.Mol | None, otherwise: str) -> str:
    """Return why RDKit rejects a molecule, which is given unsanitised if it can be read so."""
    problems = Chem.DetectChemistryProblems(raw) if raw is not None else ()
    return f"cannot be parsed: {problems[0].Message() if problems else otherwise}"


def silence_rdkit() -> None:
    """Stop RDKit from writing to the terminal; failures reach users as MoleculeError."""
    rdBase.DisableLog("rdApp.*")
