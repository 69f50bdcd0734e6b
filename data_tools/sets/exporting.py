"""A data set as an SD file: names as titles, every conformer a record, labels as properties.

Molecules without geometry are drawn in 2D, so that stereochemistry is kept.
"""

from __future__ import annotations

import collections
import gzip
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDepictor
from tqdm import tqdm

from msde.chem.parsing import silence_rdkit
from msde.chem.rebuild import mol_from_record
from msde.chem.record import MoleculeRecord, Origin, outside_vocabulary
from msde.chem.vocabulary import MoleculeError
from msde.data.shards import ShardDataset
from msde.errors import MsdeError
from msde.files import disk_full_as_error, write_atomically, write_text

MAX_V2000 = 999  # atoms and bonds that the older format can count
LINE_ENDS = re.compile(r"[\r\n\0]+")  # and the byte that marks a file as binary


def export(root: Path, output: Path, limit: int | None = None) -> collections.Counter[str]:
    """Write the molecules of `root` to an SD file.

    Returns:
        How many molecules were `written`, and how many were skipped, by reason.

    Raises:
        MsdeError: the data set is missing or damaged, or the file's name is not that of an SD file.
    """
    check_sd_name(output)
    if limit is not None and limit < 1:
        raise MsdeError("--limit must be at least 1")
    if not output.parent.is_dir():
        raise MsdeError(f"--output {output}: its folder does not exist")
    silence_rdkit()
    dataset = ShardDataset(root)
    labels = _property_names(label["name"] for label in dataset.manifest["labels"])
    counts: collections.Counter[str] = collections.Counter()
    skipped: list[str] = []

    def write(temporary: Path) -> None:
        counts.clear()
        skipped.clear()
        records = itertools.islice(dataset.records(), limit)
        total = min(len(dataset), limit or len(dataset))
        with open_sd_file(temporary, is_compressed=output.suffix == ".gz") as file:
            shown = tqdm(records, total=total, unit=" molecules", disable=None)
            for number, record in enumerate(shown, start=1):
                try:
                    text = "".join(sdf_records(record, labels))
                except MoleculeError as error:
                    counts[str(error)] += 1
                    reason = ", ".join([str(error), *outside_vocabulary(record)])
                    one = {"number": number, "name": record.name, "reason": reason}
                    skipped.append(json.dumps(one) + "\n")
                    continue
                file.write(text.encode())
                counts["written"] += 1

    with disk_full_as_error(output, sum(shard["bytes"] for shard in dataset.manifest["shards"])):
        write_atomically(output, write)
        beside = skipped_path(output)
        if skipped:
            write_text(beside, "".join(skipped))
        else:
            beside.unlink(missing_ok=True)
    return counts


def left_out(root: Path, limit: int | None = None) -> Iterator[str]:
    """Yield what the first `limit` molecules have and an SD file does not hold, with counts."""
    dataset = ShardDataset(root)
    if dataset.manifest["forces_unit"] is not None:
        counts = np.concatenate([block.num_forces for block in dataset.blocks()])[:limit]
        if forces := np.count_nonzero(counts):
            yield f"forces of {forces} molecules"
    labels = dataset.manifest["labels"]
    units = [f"{label['name']} [{label['unit']}]" for label in labels if label["unit"]]
    if units:
        yield f"units of {len(units)} labels: {', '.join(units)[:300]}"


def skipped_path(output: Path) -> Path:
    """Return where the molecules are listed that an SD file does not hold."""
    return output.with_name(f"{output.name}.skipped.jsonl")


def _property_names(labels: Iterable[str]) -> list[str]:
    """Return names of labels as properties: without line ends, none empty, all different."""
    names: list[str] = []
    for place, label in enumerate(labels, start=1):
        name = LINE_ENDS.sub(" ", label).strip() or f"label {place}"
        names.append(f"{name} ({place})" if name in names else name)
    return names


def check_sd_name(output: Path) -> None:
    """Raise an MsdeError unless the name is that of an SD file."""
    if not output.name.endswith((".sdf", ".sdf.gz")):
        raise MsdeError(f"--output {output} should end in .sdf or .sdf.gz")


def open_sd_file(path: Path, is_compressed: bool) -> IO[bytes]:
    """Open an SD file for writing."""
    # Without name and time in the header the bytes depend on the data alone.
    return gzip.GzipFile(path, "wb", 6, mtime=0) if is_compressed else open(path, "wb")


def sdf_records(record: MoleculeRecord, labels: list[str]) -> Iterator[str]:
    """Yield the record of each conformer of a molecule.

    Raises:
        MoleculeError: the molecule cannot be rebuilt.
    """
    mol = mol_from_record(record)
    set_title(mol, record.name)
    if record.origin & Origin.NO_GEOMETRY:
        rdDepictor.Compute2DCoords(mol)
        Chem.WedgeMolBonds(mol, mol.GetConformer())
        # Ranks of atoms, without which RDKit marks double bonds as `either` that have no E and Z.
        Chem.AssignStereochemistry(mol, force=True, flagPossibleStereoCenters=True)
    properties = "".join(
        f">  <{name}>\n{float(value)!r}\n\n"
        for name, value in zip(labels, record.y, strict=True)
        if not np.isnan(value)
    )
    is_large = max(mol.GetNumAtoms(), mol.GetNumBonds()) > MAX_V2000
    for conformer in mol.GetConformers():
        block = Chem.MolToMolBlock(mol, confId=conformer.GetId(), forceV3000=is_large)
        if not record.origin & Origin.NO_GEOMETRY:
            block = _without_crossed_bonds(block, mol)
        yield f"{block}{properties}$$$$\n"


def set_title(mol: Chem.Mol, name: str) -> None:
    """Set the title of a molecule's records to its name, on one line."""
    title = LINE_ENDS.sub(" ", name)
    # A blank before it is no part of the name; without it the record would end here.
    mol.SetProp("_Name", f" {title}" if title.startswith("$$$$") else title)


def _without_crossed_bonds(block: str, mol: Chem.Mol) -> str:
    """Remove the mark `either` from double bonds whose stereochemistry the positions give."""
    lines = block.split("\n")
    is_large = lines[3].endswith("V3000")
    first = lines.index("M  V30 BEGIN BOND") + 1 if is_large else 4 + mol.GetNumAtoms()
    for bond in mol.GetBonds():
        line = lines[at := first + bond.GetIdx()]
        if bond.GetStereo() == Chem.BondStereo.STEREOANY:
            continue
        if is_large:
            lines[at] = line.removesuffix(" CFG=2") if line.split()[3] == "2" else line
        elif line[6:12] == "  2  3":
            lines[at] = f"{line[:9]}  0{line[12:]}"
    return "\n".join(lines)
