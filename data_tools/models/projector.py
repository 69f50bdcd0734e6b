"""Embeddings as a run of TensorBoard's projector: points with structures, names and properties.

The folder holds `h_2d.tsv` and `h_3d.tsv`, a point a line; `metadata.tsv` with SMILES, name, labels
and RDKit's properties, by which points are coloured; `sprite.png` with a thumbnail of each
structure; `projector_config.pbtxt`; and an event file, by which TensorBoard finds the folder.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image
from rdkit import Chem
from rdkit.Chem import Crippen, Descriptors, rdMolDescriptors
from rdkit.Chem.Draw import rdMolDraw2D
from tensorboard.plugins.projector.metadata import PROJECTOR_FILENAME
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import SummaryWriter

from msde.chem.parsing import remove_hydrogens
from msde.errors import MsdeError
from msde.files import write_atomically, write_text

POINTS = 5000  # at most: more are slow in a browser, and the sprite has a largest size
SIDE = 80  # pixels of a thumbnail
PROPERTIES = {
    "atoms": Chem.Mol.GetNumHeavyAtoms,
    "weight": Descriptors.MolWt,
    "logP": Crippen.MolLogP,
    "polar_surface": rdMolDescriptors.CalcTPSA,
    "rings": rdMolDescriptors.CalcNumRings,
    "rotatable_bonds": rdMolDescriptors.CalcNumRotatableBonds,
}


def write_projector(
    folder: Path,
    mols: Sequence[Chem.Mol | None],
    names: Sequence[str],
    h: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
) -> int:
    """Write a projector's folder.

    Args:
        mols: the molecules, None where there is none to draw; those and rows with NaN are left out,
            and of more than POINTS some, evenly.
        names: of the molecules.
        h: embeddings by name, (num_molecules, width).
        labels: further properties by name, (num_molecules,), NaN where missing.

    Returns:
        The number of points.

    Raises:
        MsdeError: there is no point, or the folder cannot be made.
    """
    finite = np.all([np.isfinite(array).all(1) for array in h.values()], axis=0)
    rows = np.array([i for i, mol in enumerate(mols) if mol is not None and finite[i]], int)
    if not len(rows):
        raise MsdeError(f"--projector {folder}: no molecule has an embedding")
    rows = rows[np.linspace(0, len(rows) - 1, min(POINTS, len(rows))).round().astype(int)]
    shown = [remove_hydrogens(mols[row]) for row in rows]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MsdeError(f"--projector {folder} cannot be made: {error.strerror}") from error
    table = [
        [Chem.MolToSmiles(mol), names[row], *(f"{labels[name][row]:g}" for name in labels)]
        + [f"{f(mol):.4g}" for f in PROPERTIES.values()]
        for mol, row in zip(shown, rows.tolist(), strict=True)
    ]
    header = ["SMILES", "name", *labels, *PROPERTIES]
    write_atomically(folder / "metadata.tsv", lambda path: _write_tsv(path, [header, *table]))
    write_atomically(folder / "sprite.png", lambda path: _sprite(shown).save(path, format="PNG"))
    config = ProjectorConfig()
    for name, array in h.items():
        points = array[rows]
        write_atomically(
            folder / f"{name}.tsv",
            lambda path, points=points: np.savetxt(path, points, fmt="%.6g", delimiter="\t"),
        )
        embedding = config.embeddings.add(
            tensor_name=name, tensor_path=f"{name}.tsv", metadata_path="metadata.tsv"
        )
        embedding.tensor_shape.extend(points.shape)
        embedding.sprite.image_path = "sprite.png"
        embedding.sprite.single_image_dim.extend([SIDE, SIDE])
    text = text_format.MessageToString(config)
    write_text(folder / PROJECTOR_FILENAME, text)
    if not list(folder.glob("events.out.tfevents.*")):
        SummaryWriter(str(folder)).close()
    return len(rows)


def _write_tsv(path: Path, table: list[list[str]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in table:
            cells = (" ".join(cell.split()) or "-" for cell in row)  # no tabs, no line ends
            file.write("\t".join(cells) + "\n")


def _sprite(mols: Sequence[Chem.Mol]) -> Image.Image:
    """Return all thumbnails in one picture, row by row, as many in a row as rows."""
    columns = math.ceil(math.sqrt(len(mols)))
    sprite = Image.new("RGB", (SIDE * columns, SIDE * columns), "white")
    for number, mol in enumerate(mols):
        row, column = divmod(number, columns)
        sprite.paste(_thumbnail(mol), (SIDE * column, SIDE * row))
    return sprite


def _thumbnail(mol: Chem.Mol) -> Image.Image:
    drawer = rdMolDraw2D.MolDraw2DCairo(SIDE, SIDE)
    drawer.drawOptions().padding = 0.04
    try:
        rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
    except (RuntimeError, ValueError):  # a structure that RDKit cannot draw stays white
        return Image.new("RGB", (SIDE, SIDE), "white")
    drawer.FinishDrawing()
    return Image.open(io.BytesIO(drawer.GetDrawingText()))
