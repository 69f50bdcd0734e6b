"""Files of molecules converted once: their shards are kept, and taken while file and options stay.

Fine-tuning keeps them in its output. The conformers that embedding makes are in the user's cache,
in a folder for each file and options.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rdkit import Chem

from msde.chem.record import MAX_ATOMS, molecule_uid
from msde.data.manifest import NAME
from msde.data.shards import ShardDataset
from msde.errors import MsdeError
from msde.files import file_sha256, user_cache, write_json

from ..options import AUTO, Options
from ..parsing.chemistry import set_conformers
from ..parsing.files import source_name
from ..pipeline.conversion import convert
from ..readers import get_reader
from ..reading import Molecules, choose_format

log = logging.getLogger("msde")

SOURCE = "source.json"  # what the shards were made of


def convert_once(inputs: Sequence[Path], cache: Path, format: str, options: Options) -> bool:
    """Convert files to the folder `cache`, unless that was done before; return whether it was not.

    Raises:
        MsdeError: a file cannot be read, or the folder holds other data or options.
    """
    job, made = _job(inputs, format, options), False
    if not (cache / NAME).exists():
        convert(inputs, cache, format, options=options, report=log.info)
        made = True
    if made or not (cache / SOURCE).exists():  # a conversion may be stopped at its very end
        write_json(cache / SOURCE, job)
    elif json.loads((cache / SOURCE).read_text()) != job:
        raise MsdeError(f"{cache} holds other data or options; choose another --output")
    return made


def _job(inputs: Sequence[Path], format: str, options: Options) -> dict[str, Any]:
    reader = get_reader(format, options)
    files = [*inputs, *(other for path in inputs for other in reader.companions(path))]
    job = {
        "inputs": [[source_name(path), file_sha256(path)] for path in files],
        "format": format,
        "options": dataclasses.asdict(options),
    }
    return json.loads(json.dumps(job))


def add_conformers(path: Path, molecules: Molecules, format: str, options: Options) -> None:
    """Give the molecules of a file conformers of the user's cache, and print how many.

    Those that the cache lacks are made and kept there. Geometry of the file stays, and a molecule
    that gets none stays without.
    """
    format = choose_format([path]) if format == AUTO else format
    there = zip(molecules.mols, molecules.lines, strict=True)
    flat = [(m, line) for m, line in there if isinstance(m, Chem.Mol) and not m.GetNumConformers()]
    if "conformers" not in get_reader(format).follows or not flat:
        return
    options = replace(
        options, conformers=1, keep_radicals=True, max_atoms=MAX_ATOMS, label_columns=()
    )
    text = json.dumps(_job([path], format, options))
    try:
        folder = user_cache() / "conformers" / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = convert_once([path], folder, format, options)
        records = {record.uid: record for record in ShardDataset(folder).records()}
    except (OSError, RuntimeError, MsdeError) as error:
        log.warning("conformers are not kept: %s", error)
        return
    found = 0
    for mol, line in flat:
        record = records.get(molecule_uid(source_name(path), line))
        if record is not None and [a.GetAtomicNum() for a in mol.GetAtoms()] == record.z.tolist():
            set_conformers(mol, record.pos)
            found += 1
    read, new = (0, found) if made else (found, 0)
    failed = len(flat) - found
    print(f"conformers: {read} read from the cache, {new} made, {failed} failed; {folder}")
