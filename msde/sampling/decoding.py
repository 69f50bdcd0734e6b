"""The likeliest molecule under valences and a total charge, from probabilities of bonds.

An integer linear program. An aromatic bond is single or double in the Kekule structure that is
chosen, so that the orders of an atom's bonds add up to one of its valences exactly; RDKit then
perceives aromaticity anew. This gives the valences by aromatic count and others (GEOM-Drugs
Revisited) without a table of them. Valences are RDKit's own, by which it sanitises: those of the
element with the same number of electrons, for a formal charge.
"""

from __future__ import annotations

import functools
from collections import defaultdict

import numpy as np
from rdkit import Chem

from msde.chem.vocabulary import ATOM_SIZES, MoleculeError

# Columns of log p and the order in the Kekule structure of each choice for a bond.
CHOICES = ((1, 1), (2, 2), (3, 3), (4, 1), (4, 2))
ORDERS = np.array([order for _, order in CHOICES])
IS_DOUBLE = np.array([0, 1, 0, 0, 1])
IS_AROMATIC = np.array([0, 0, 0, 1, 1])
MIN_PROBABILITY = 1e-4  # of any bond, for a pair to be considered; no class counts as less likely
# Nats that a formal charge costs: (atomic number, charge); others cost UNUSUAL.
CHARGE_COST = {(7, 1): 0.2, (8, -1): 0.2, (5, -1): 1.0, (16, -1): 1.5, (15, 1): 2.0, (7, -1): 2.0}
CHARGE_COST |= {(z, -1): 1.5 for z in (9, 17, 35, 53)} | {(z, 1): 0.5 for z in (3, 11, 19)}
UNUSUAL = 8.0
VIOLATION = 60.0  # nats for each unit of valence or charge that does not fit
# Without hydrogens several molecules fit. A nitro group, whose classes are an even mixture of
# single and double, is no N(OH)2, and the sulfur of thiophene no SH.
DOUBLE_BONUS = 0.5  # nats
HYPERVALENCE_COST = 2.0  # nats for each step above the lowest valence
CARRIERS = {5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 53}  # elements that imply hydrogens
MAX_NUMBER = ATOM_SIZES[0] - 1  # of an element
TIME_LIMIT = 10.0  # s


@functools.cache
def valences(z: int, charge: int) -> tuple[int, ...]:
    """Return the valences of an element with a formal charge; () where any will do, as of metals.

    Raises:
        ValueError: there is no element with as many electrons.
    """
    if not charge < z <= MAX_NUMBER + charge:
        if z == charge == 1:
            return (0,)
        raise ValueError(f"element {z} cannot have charge {charge}")
    listed = Chem.GetPeriodicTable().GetValenceList(z - charge)
    return tuple(valence for valence in listed if valence >= 0)  # -1: any


class _Program:
    """A growing linear program: costs, bounds and rows of constraints."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.upper: list[float] = []
        self.integer: list[int] = []
        self._entries: list[tuple[int, int, float]] = []  # row, column, coefficient
        self._limits: list[tuple[float, float]] = []

    def add(self, cost: float, upper: float = 1.0, integer: int = 1) -> int:
        """Add a variable in [0, upper] and return its column."""
        self.costs.append(cost)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.costs) - 1

    def require(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        """Add the row low <= sum of coefficients times variables <= high."""
        row = len(self._limits)
        self._entries += [(row, column, value) for column, value in terms]
        self._limits.append((low, high))

    def solve(self) -> np.ndarray:
        """Return the values of all variables at the least cost.

        Raises:
            MoleculeError: it is not proven within TIME_LIMIT.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # takes a second
        from scipy.sparse import coo_array

        rows, columns, values = map(np.array, zip(*self._entries, strict=True))
        shape = (len(self._limits), len(self.costs))
        low, high = map(np.array, zip(*self._limits, strict=True))
        found = milp(
            np.array(self.costs),
            integrality=np.array(self.integer),
            bounds=Bounds(0, np.array(self.upper)),
            constraints=LinearConstraint(coo_array((values, (rows, columns)), shape), low, high),
            options={"time_limit": TIME_LIMIT},
        )
        if found.status:  # at the limit x is the best so far, or None
            raise MoleculeError(f"not decided within {TIME_LIMIT:g} s which bonds are likeliest")
        return found.x


def decode(z: np.ndarray, pairs: np.ndarray, log_p: np.ndarray, charge: int = 0) -> Chem.Mol:
    """Return the likeliest molecule, sanitised and without a conformer.

    With all hydrogens among the atoms, the orders of an atom's bonds are one of its valences;
    without, at most that, and RDKit's implied hydrogens are the rest. Files without hydrogens may
    keep those of N, O and S: all are there if one is on another element.

    Args:
        z: (num_atoms,) atomic numbers.
        pairs: (num_near, 2) atoms; others have no bond.
        log_p: (num_near, 5) log-probabilities of none, single, double, triple and aromatic.
        charge: the sum of formal charges.

    Raises:
        MoleculeError: no molecule fits, and which atom fails; RDKit rejects it; or the likeliest
            one is not found within TIME_LIMIT.
    """
    is_complete = _has_all_hydrogens(z, pairs, log_p)
    likely = log_p[:, 0] < np.log1p(-MIN_PROBABILITY)
    pairs, log_p = pairs[likely], log_p[likely].clip(np.log(MIN_PROBABILITY))
    program = _Program()
    bonds, incident = _add_bonds(program, pairs, log_p, 0.0 if is_complete else DOUBLE_BONUS)
    states, slack = _add_atoms(program, z, incident, is_complete, charge)
    _add_aromatic_rules(program, z, pairs, bonds, incident)
    x = program.solve()
    chosen = [
        (int(i), int(j), int(order))
        for (i, j), columns in zip(pairs, bonds, strict=True)
        for column, order in zip(columns, ORDERS, strict=True)
        if x[column] > 0.5
    ]
    charges = [next(q for column, q, _ in of if x[column] > 0.5) for of in states]
    _check_fit(z, chosen, charges, x, slack, charge)
    return _molecule(z, chosen, charges, is_complete)


def _has_all_hydrogens(z: np.ndarray, pairs: np.ndarray, log_p: np.ndarray) -> bool:
    """Return whether a hydrogen is likeliest bonded to something else than N, O and S."""
    for atom in np.flatnonzero(z == 1):
        own = np.flatnonzero((pairs == atom).any(1))
        if len(own):
            likeliest = pairs[own[log_p[own, 0].argmin()]]
            if z[likeliest.sum() - atom] not in (7, 8, 16):
                return True
    return False


def _add_bonds(
    program: _Program, pairs: np.ndarray, log_p: np.ndarray, bonus: float
) -> tuple[list[list[int]], dict[int, list[tuple[int, int]]]]:
    """Add at most one choice for each pair; return the columns, and (column, choice) by atom."""
    bonds: list[list[int]] = []
    incident: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (i, j), log in zip(pairs.tolist(), log_p, strict=True):
        columns = []
        for choice, (column_of_log, _) in enumerate(CHOICES):
            gain = log[column_of_log] - log[0] + bonus * IS_DOUBLE[choice]
            columns.append(program.add(-float(gain)))
            incident[i].append((columns[-1], choice))
            incident[j].append((columns[-1], choice))
        program.require([(column, 1.0) for column in columns], 0, 1)
        bonds.append(columns)
    return bonds, incident


def _add_atoms(
    program: _Program,
    z: np.ndarray,
    incident: dict[int, list[tuple[int, int]]],
    is_complete: bool,
    charge: int,
) -> tuple[list[list[tuple[int, int, int]]], list[int]]:
    """Add one state, (column, charge, valence), for each atom, and the sum of charges.

    Returns:
        The states of each atom, and the columns of what does not fit.
    """
    states: list[list[tuple[int, int, int]]] = []
    slack: list[int] = []
    for atom, element in enumerate(z.tolist()):
        own = []
        for q in (0, 1, -1, 2):
            if q == 2 and element not in (4, 12, 20, 38, 56) or element == 1 and q == -1:
                continue
            if element - q > MAX_NUMBER:  # it has no valences
                continue
            cost = CHARGE_COST.get((element, q), UNUSUAL) * bool(q)
            for step, valence in enumerate(valences(element, q) or range(9)):
                more = 0.0 if is_complete else HYPERVALENCE_COST * step
                own.append((program.add(cost + more), q, valence))
        program.require([(column, 1.0) for column, _, _ in own], 1, 1)
        over, under = (program.add(VIOLATION, np.inf, 0) for _ in range(2))
        slack += [over, under]
        terms = [(column, float(ORDERS[choice])) for column, choice in incident[atom]]
        terms += [(column, -float(valence)) for column, _, valence in own]
        is_exact = is_complete or element not in CARRIERS
        program.require([*terms, (over, -1.0), (under, 1.0)], 0 if is_exact else -np.inf, 0)
        states.append(own)
    over, under = (program.add(VIOLATION, np.inf, 0) for _ in range(2))
    slack += [over, under]
    charged = [(column, float(q)) for own in states for column, q, _ in own if q]
    program.require([*charged, (over, -1.0), (under, 1.0)], charge, charge)
    return states, slack


def _add_aromatic_rules(
    program: _Program,
    z: np.ndarray,
    pairs: np.ndarray,
    bonds: list[list[int]],
    incident: dict[int, list[tuple[int, int]]],
) -> None:
    """Allow an atom one aromatic double bond; require a double bond at each aromatic carbon.

    Without the second, an aromatic carbon whose hydrogens are left out could be taken for CH2.
    """
    for choices in incident.values():
        doubles = [(c, 1.0) for c, choice in choices if IS_AROMATIC[choice] and IS_DOUBLE[choice]]
        program.require(doubles, 0, 1)
    for (i, j), columns in zip(pairs.tolist(), bonds, strict=True):
        aromatic = [(c, 1.0) for c, kind in zip(columns, IS_AROMATIC, strict=True) if kind]
        for atom in (i, j):
            if z[atom] == 6:
                doubles = [(c, -1.0) for c, choice in incident[atom] if IS_DOUBLE[choice]]
                both: dict[int, float] = defaultdict(float)
                for column, value in aromatic + doubles:
                    both[column] += value
                program.require(list(both.items()), -np.inf, 0)


def _check_fit(
    z: np.ndarray,
    chosen: list[tuple[int, int, int]],
    charges: list[int],
    x: np.ndarray,
    slack: list[int],
    charge: int,
) -> None:
    """Raise a MoleculeError that names the atoms or the charge that fit no valence."""
    wrong = [k for k, column in enumerate(slack) if x[column] > 0.5]
    if not wrong:
        return
    symbol = Chem.GetPeriodicTable().GetElementSymbol
    total = np.zeros(len(z), int)
    for i, j, order in chosen:
        total[[i, j]] += order
    atoms = sorted({k // 2 for k in wrong if k // 2 < len(z)})
    named = [f"atom {a} ({symbol(int(z[a]))}) has valence {total[a]}" for a in atoms[:3]]
    if not named:
        raise MoleculeError(f"formal charges add up to {sum(charges)}, expected {charge}")
    more = f" and {len(atoms) - 3} more" if len(atoms) > 3 else ""
    raise MoleculeError(f"no valences fit total charge {charge}: {', '.join(named)}{more}")


def _molecule(
    z: np.ndarray, chosen: list[tuple[int, int, int]], charges: list[int], is_complete: bool
) -> Chem.Mol:
    """Return the sanitised molecule of these Kekule bonds and charges."""
    mol = Chem.RWMol()
    for element, q in zip(z.tolist(), charges, strict=True):
        atom = Chem.Atom(element)
        atom.SetFormalCharge(q)
        atom.SetNoImplicit(is_complete)
        mol.AddAtom(atom)
    for i, j, order in chosen:
        mol.AddBond(i, j, Chem.BondType.values[order])
    try:
        Chem.SanitizeMol(mol)
    except ValueError as error:
        raise MoleculeError(f"RDKit does not accept it: {' '.join(str(error).split())}") from error
    return mol.GetMol()
