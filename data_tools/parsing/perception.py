"""Bonds for molecules that come as atoms and positions only.

RDKit joins atoms that are near (rdDetermineBonds, Kim & Kim 2015, doi:10.1002/bkcs.10334), then
finds bond orders and charges that fit. Bond orders depend on the joined pairs and the charge alone,
so they are found once for all frames of a trajectory.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds

from msde.chem.record import Origin
from msde.chem.vocabulary import MoleculeError

from .chemistry import (
    LACKS_HYDROGENS,
    assign_stereo,
    check_radicals,
    implied_hydrogens,
    mol_with_bonds,
    remove_hydrogens,
    set_conformers,
    symbol_of,
)
from .types import Options, Parsed

MAX_ITERATIONS = 10_000  # of the search for bond orders; the molecules that need more are cages
MAX_ELEMENT = 118
CHARGE = "totalCharge"  # the property of a molecule without bonds

MAX_MATCHES = 1000  # ways in which a SMILES fits that are compared
AMBIGUOUS = (
    "its SMILES fits its atoms in several ways: the one that fits the lengths of bonds is kept"
)
ORDERS = {
    Chem.BondType.DOUBLE: 2.0,
    Chem.BondType.TRIPLE: 3.0,
    Chem.BondType.AROMATIC: 1.5,
}  # of bonds that are not single

Bonds = tuple[tuple[int, int], ...]  # pairs of atoms (i, j) with i < j


@dataclass(frozen=True)
class System:
    """Atoms and positions of one molecule, without bond orders."""

    numbers: np.ndarray  # (num_atoms,) atomic numbers
    position: np.ndarray  # (num_atoms, 3) A
    forces: np.ndarray | None = None  # (num_atoms, 3)
    charge: int = 0
    bonds: Bonds | None = None  # None: found from the positions
    isotopes: tuple[tuple[int, int], ...] = ()  # atom, isotope


@dataclass(frozen=True)
class Known:
    """Types of bonds, and charges and hydrogens of atoms, as far as a source states them."""

    kinds: dict[tuple[int, int], Chem.BondType]  # of each pair (i, j) with i < j
    atoms: tuple[tuple[int, int], ...] = ()  # charge and number of hydrogens of each, () if unknown


def connect(numbers: np.ndarray, position: np.ndarray) -> Bonds:
    """Return the pairs of atoms that are near enough to be bonded.

    Args:
        numbers: (num_atoms,) atomic numbers.
        position: (num_atoms, 3) in A.
    """
    if len(numbers) == 0:
        raise MoleculeError("no atoms")
    if numbers.min() < 1 or numbers.max() > MAX_ELEMENT:
        bad = numbers[(numbers < 1) | (numbers > MAX_ELEMENT)][0]
        raise MoleculeError(f"atomic numbers that are not of elements: {bad}")
    mol = mol_with_bonds(numbers, ())
    set_conformers(mol, position[None])
    try:
        rdDetermineBonds.DetermineConnectivity(mol)
    except (RuntimeError, ValueError) as error:
        raise MoleculeError(_failure(error, numbers)) from error
    pairs = ((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds())
    return tuple(sorted((min(pair), max(pair)) for pair in pairs))


def order_bonds(numbers: np.ndarray, bonds: Bonds, charge: int) -> Chem.Mol:
    """Return a sanitised molecule without conformers, given which atoms are joined.

    Raises:
        MoleculeError: no bond orders fit, or the atoms fall into several fragments.
    """
    found = _order_bonds(numbers.astype("u1").tobytes(), bonds, charge)
    if isinstance(found, str):
        raise MoleculeError(found)
    return Chem.Mol(found)


@functools.lru_cache(maxsize=256)
def _order_bonds(numbers: bytes, bonds: Bonds, charge: int) -> Chem.Mol | str:
    """Return the molecule or the reason why there is none; failures are cached, too."""
    atoms = np.frombuffer(numbers, "u1")
    mol = mol_with_bonds(atoms, bonds)
    fragments = Chem.GetMolFrags(mol)
    if len(fragments) > 1:
        formulas = sorted(_formula([atoms[place] for place in part]) for part in fragments)
        return f"perceived bonds leave several fragments: {', '.join(formulas)[:100]}"
    try:
        # RDKit asks for positions, and ignores them where it assigns no stereochemistry.
        set_conformers(mol, np.zeros((1, mol.GetNumAtoms(), 3)))
        rdDetermineBonds.DetermineBondOrders(
            mol, charge=charge, embedChiral=False, maxIterations=MAX_ITERATIONS
        )
        mol = mol.GetMol()
        Chem.SanitizeMol(mol)
    except (RuntimeError, ValueError) as error:
        return _failure(error, atoms, charge)
    mol.RemoveAllConformers()
    return mol


def bonds_of_smiles(
    numbers: np.ndarray,
    bonds: Bonds,
    smiles: str,
    position: np.ndarray | None = None,
    known: Known | None = None,
) -> tuple[Chem.Mol, tuple[str, ...]]:
    """Return a molecule without conformers that has the bond orders and charges of a SMILES.

    The SMILES may list its atoms in another order and leave out hydrogens; it has to describe
    the same graph. Where it fits in several ways that differ, `known` decides, else, of heavy
    atoms, the lengths of bonds.

    Args:
        position: (num_atoms, 3) in A; None: lengths are not asked.

    Returns:
        The molecule, and notes on what had to be chosen.

    Raises:
        MoleculeError: it is broken or describes another molecule.
    """
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    template = Chem.MolFromSmiles(smiles, parameters)
    if template is None:
        raise MoleculeError("its SMILES cannot be parsed")
    template = Chem.AddHs(template) if 1 in numbers else remove_hydrogens(template)[0]
    elements = np.array([atom.GetAtomicNum() for atom in template.GetAtoms()])
    if sorted(elements.tolist()) != sorted(numbers.tolist()):
        raise MoleculeError("its SMILES has other atoms than its geometry")
    stated = Known(
        {
            _pair(b.GetBeginAtomIdx(), b.GetEndAtomIdx()): b.GetBondType()
            for b in template.GetBonds()
        },
        tuple((a.GetFormalCharge(), a.GetTotalNumHs(True)) for a in template.GetAtoms()),
    )
    # Both as elements and lines: then a match says which atom of the SMILES is which.
    pattern = mol_with_bonds(elements, [*stated.kinds])
    target = mol_with_bonds(numbers, bonds)
    if len(bonds) != len(stated.kinds) or not target.HasSubstructMatch(pattern):
        raise MoleculeError("its SMILES has other bonds than its geometry")
    match, notes = _match_of_codes(pattern, stated, target, known) if known else ((), ())
    if not match:
        is_same = np.array_equal(elements, numbers) and stated.kinds.keys() == {*bonds}
        same = tuple(range(len(numbers))) if is_same else ()
        if position is None or 1 in numbers:  # with hydrogens only resonance forms differ
            match = same or target.GetSubstructMatch(pattern)
        else:
            match, note = _match_of_lengths(pattern, stated, target, position, same)
            notes += note
    return Chem.RenumberAtoms(template, np.argsort(match).tolist()), notes


def _match_of_codes(
    pattern: Chem.RWMol, stated: Known, target: Chem.RWMol, known: Known
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the match under which SMILES and codes agree, in atoms too if any does, or ()."""
    for with_atoms in (True, False) if known.atoms else (False,):
        mols = _labelled(target, known, with_atoms), _labelled(pattern, stated, with_atoms)
        if match := mols[0].GetSubstructMatch(mols[1]):
            return match, ()
    return (), (
        "its SMILES has other bond orders than its edge_attr: those of the SMILES are kept",
    )


def _labelled(mol: Chem.RWMol, known: Known, with_atoms: bool) -> Chem.RWMol:
    """Return a copy with kinds of bonds and, as isotopes, what is known of the atoms."""
    mol = Chem.RWMol(mol)
    for (i, j), kind in known.kinds.items():
        mol.GetBondBetweenAtoms(i, j).SetBondType(kind)
    if with_atoms:
        for atom, (charge, hydrogens) in zip(mol.GetAtoms(), known.atoms, strict=True):
            atom.SetIsotope(1 + 32 * (charge + 16) + hydrogens)
    return mol


def _match_of_lengths(
    pattern: Chem.RWMol, stated: Known, target: Chem.RWMol, position: np.ndarray, same: tuple
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the match that makes the shortest bonds the multiple ones, and a note if it chose.

    Args:
        same: the match that keeps the order of atoms, () if it is none; of equals it is taken.
    """
    ways: dict[tuple, tuple[int, ...]] = {}
    found = target.GetSubstructMatches(pattern, uniquify=False, maxMatches=MAX_MATCHES)
    for match in (*((same,) if same else ()), *found):
        kinds = sorted((_pair(match[i], match[j]), kind) for (i, j), kind in stated.kinds.items())
        atoms = [stated.atoms[place] for place in np.argsort(match)]
        ways.setdefault((*kinds, *atoms), match)

    def length(match: tuple[int, ...]) -> float:
        """Return the sum of the lengths of bonds, each times its order."""
        ends = position[np.array([(match[i], match[j]) for i, j in stated.kinds])]
        orders = [ORDERS.get(kind, 1.0) for kind in stated.kinds.values()]
        return round(float(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) @ orders), 3)

    if len(ways) == 1:
        return next(iter(ways.values())), ()
    best = min(ways.values(), key=length)
    return best, () if best == same else (AMBIGUOUS,)


def _pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)


def parse_system(
    system: System, options: Options, y: tuple[float, ...] = (), notes: tuple[str, ...] = ()
) -> Parsed:
    """Find the bonds of a system, unless the options say otherwise, and finish the molecule."""
    if not options.perceive_bonds:
        mol = mol_with_bonds(system.numbers, ())
        mol.SetIntProp(CHARGE, system.charge)
        set_conformers(mol, system.position[None])
        return Parsed(mol, y, notes=notes)
    bonds = connect(system.numbers, system.position) if system.bonds is None else system.bonds
    mol = order_bonds(system.numbers, bonds, system.charge)
    for atom, isotope in system.isotopes:
        mol.GetAtomWithIdx(atom).SetIsotope(isotope)
    forces = None if system.forces is None else system.forces[None]
    parsed = parsed_geometry(mol, system.position[None], options, y, forces)
    return replace(parsed, notes=notes) if notes else parsed


def parsed_geometry(
    mol: Chem.Mol,
    positions: np.ndarray,
    options: Options,
    y: tuple[float, ...],
    forces: np.ndarray | None,
    origin: Origin = Origin.BONDS_PERCEIVED,
) -> Parsed:
    """Put conformers on a molecule, take stereochemistry from them and remove hydrogens if wanted.

    Args:
        mol: bonds without conformers.
        positions: (num_conformers, num_atoms, 3) in A, `forces` alike.
        options: those of a reader, which knows the default for hydrogens.

    Raises:
        MoleculeError: it has radicals, or lacks hydrogens that are to be kept.
    """
    if not options.keep_radicals:
        check_radicals(mol)
    if options.keep_hydrogens and implied_hydrogens(mol):
        raise MoleculeError(LACKS_HYDROGENS)
    set_conformers(mol, positions)
    assign_stereo(mol)
    if not options.keep_hydrogens:
        mol, forces = remove_hydrogens(mol, forces)
    return Parsed(mol, y, forces, origin)


def _failure(error: Exception, numbers: np.ndarray, charge: int = 0) -> str:
    """Return why RDKit finds no bonds: its first sentence, with the symbols of atoms it names."""
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), type(error).__name__).partition(". ")[0]
    if "molecular charge" in text:  # the charge that it says it found is not to be relied upon
        text = (
            f"no bond orders fit {_formula(numbers)} with charge {charge}; --charge states others"
        )

    def named(match: re.Match) -> str:
        place = int(match[1])
        return f"{match[0]} ({symbol_of(numbers[place])})" if place < len(numbers) else match[0]

    text = re.sub(r"with atomic number \d+ and (?=\d+ bonds)", "with ", text)
    text = re.sub(r" with atomic number \d+", "", text)
    text = re.sub(r"\b[Aa]tom (\d+)", named, text.rstrip(" ."))
    return f"bonds cannot be perceived: {text}"


def _formula(numbers: Sequence[int] | np.ndarray) -> str:
    """Return the molecular formula of atoms, carbon and hydrogen first."""
    counts = collections.Counter(symbol_of(number) for number in numbers)
    first = ("C", "H") if "C" in counts else ()
    order = [*(s for s in first if s in counts), *sorted(counts.keys() - {*first})]
    return "".join(f"{s}{counts[s] if counts[s] > 1 else ''}" for s in order)
