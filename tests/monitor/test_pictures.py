"""Pictures are files that a viewer opens, whatever is drawn."""

import numpy as np
import pytest
from PIL import Image

from msde.errors import MsdeError
from msde.monitor import pictures
from msde.monitor.pictures import Cell, Structure, draw_structures, new_figure, save_figure

ETHER = Structure(np.array([6, 8, 6]), np.eye(3), np.array([[0, 1], [1, 2]]))
ATOM = Structure(np.array([18]), np.zeros((1, 3)), np.zeros((0, 2), int))


def ink(path, colour):
    """Number of pixels of about this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.abs(pixels - colour).sum(-1) < 30).sum()


def test_references_are_grey_and_atoms_have_colours(tmp_path):
    oxygen, grey = [0xD2, 0x3B, 0x2F], [0xC3, 0xC8, 0xCE]
    moved = Structure(ETHER.numbers, ETHER.pos + [0, 0, 1], ETHER.bonds)
    save_figure(draw_structures([Cell(ETHER)]), tmp_path / "alone.png")
    save_figure(draw_structures([Cell(ETHER, "0.1 A", moved)]), tmp_path / "over.png")
    assert ink(tmp_path / "alone.png", oxygen) > 20 and ink(tmp_path / "over.png", oxygen) > 20
    # Smoothed edges have some grey, too.
    assert ink(tmp_path / "over.png", grey) > 4 * ink(tmp_path / "alone.png", grey)


def test_one_atom_and_many_cells_are_drawn(tmp_path):
    save_figure(draw_structures([Cell(ATOM)] * 7, columns=3, title="argon"), tmp_path / "p.png")
    width, height = Image.open(tmp_path / "p.png").size
    assert width < height * 1.1  # three columns, three rows and a title


def test_without_matplotlib_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MsdeError, match=r"pip install 'msde\[plot\]'"):
        new_figure(1, 1)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert not pictures.has_matplotlib()
