"""Bonds by rules, to compare with: RDKit and Open Babel.

RDKit's search can take forever (rdkit issues 9227 and 7922), so rules run in a process that is
killed when time is up, and started again for the next molecule.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from msde.chem.conformers import add_conformers
from msde.errors import MsdeError

START_LIMIT = 120.0  # s for a process to import what it needs


def determine_bonds(z: list[int], pos: list[list[float]], charge: int) -> Chem.Mol:
    """Find bonds by RDKit's rdDetermineBonds (Kim & Kim 2015, doi:10.1002/bkcs.10334)."""
    mol = Chem.RWMol()
    for number in z:
        mol.AddAtom(Chem.Atom(number))
    add_conformers(mol, np.array([pos]))
    rdDetermineBonds.DetermineBonds(mol, charge=charge, embedChiral=False)
    Chem.SanitizeMol(mol)  # perceives aromaticity
    return mol.GetMol()


def open_babel(z: list[int], pos: list[list[float]], charge: int) -> Chem.Mol:
    """Find bonds by Open Babel (O'Boyle et al. 2011, doi:10.1186/1758-2946-3-33)."""
    from openbabel import openbabel

    openbabel.obErrorLog.StopLogging()
    mol = openbabel.OBMol()
    mol.BeginModify()
    for number, (x, y, height) in zip(z, pos, strict=True):
        atom = mol.NewAtom()
        atom.SetAtomicNum(number)
        atom.SetVector(x, y, height)
    mol.EndModify()
    mol.SetTotalCharge(charge)
    mol.ConnectTheDots()
    mol.PerceiveBondOrders()
    conversion = openbabel.OBConversion()
    conversion.SetOutFormat("mol")
    found = Chem.MolFromMolBlock(conversion.WriteString(mol), removeHs=False)
    if found is None:
        raise ValueError("RDKit does not accept Open Babel's molecule")
    return found


RULES: dict[str, Callable[..., Chem.Mol]] = {
    "RDKit DetermineBonds": determine_bonds,
    "Open Babel": open_babel,
}


def available_rules() -> list[str]:
    """Return the names of RULES whose package is installed."""
    has_babel = importlib.util.find_spec("openbabel") is not None
    return [name for name in RULES if name != "Open Babel" or has_babel]


def _serve(name: str, connection: Any) -> None:
    """Answer one molecule after another: RDKit's binary form, or nothing where it fails."""
    rdBase.DisableLog("rdApp.*")
    connection.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = RULES[name](**request).ToBinary()
        except (ValueError, RuntimeError):
            answer = b""
        connection.send_bytes(answer)


class RuleProcess:
    """A rule in a process of its own, which is killed when a molecule takes too long."""

    def __init__(self, name: str, time_limit: float) -> None:
        """Choose one of RULES; `time_limit` is in seconds for a molecule."""
        self.name, self.time_limit, self.num_killed = name, time_limit, 0
        self._process: Any = None

    def __call__(self, z: np.ndarray, pos: np.ndarray, charge: int) -> Chem.Mol | None:
        """Return the molecule, or None: the rule fails or its time is up."""
        self.start()
        request = {"z": z.tolist(), "pos": pos.tolist(), "charge": charge}
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            if self._connection.poll(self.time_limit):
                answer = self._connection.recv_bytes()
                return Chem.Mol(answer) if answer else None  # type: ignore[call-overload]
            self.num_killed += 1
        except (EOFError, OSError):  # it crashed
            pass
        self.close()
        return None

    def start(self) -> None:
        """Start the process, if there is none."""
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.name, other), daemon=True)
        self._process.start()
        other.close()
        try:
            if not self._connection.poll(START_LIMIT):
                raise EOFError
            self._connection.recv_bytes()
        except EOFError as error:
            self.close()
            raise MsdeError(f"the process of {self.name} does not start") from error

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None
