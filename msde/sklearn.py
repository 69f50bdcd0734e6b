"""Pretrained representations as a step of a scikit-learn pipeline."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from msde.config.schema import Readout
from msde.errors import MsdeError
from msde.inference.pretrained import Pretrained, View, load, views_of

log = logging.getLogger("msde")


class MoleculeEmbedding(TransformerMixin, BaseEstimator):
    """Turn molecules into vectors of a pretrained model, one row a molecule.

    `fit` learns nothing; it loads the model, so the transformer can be cloned and searched over.

    Args:
        checkpoint: folder of weights, as for `msde.load`; None: those that come with msde.
        view: `2d`, `3d` or `both`, as for `Pretrained.embed`.
        readout: layers of the 2D encoder, as for `msde.load`.
        on_failure: `raise` an error for a molecule that lacks a view, or leave that view `nan`.
    """

    def __init__(
        self,
        checkpoint: Path | str | None = None,
        view: View = "2d",
        readout: Readout = "concat",
        on_failure: Literal["raise", "nan"] = "raise",
    ) -> None:
        """Keep the parameters unchecked, as scikit-learn requires; `fit` loads the model."""
        self.checkpoint = checkpoint
        self.view = view
        self.readout = readout
        self.on_failure = on_failure

    def fit(self, molecules: Iterable[Any], y: Any = None) -> MoleculeEmbedding:
        """Load the model; molecules and targets are ignored."""
        if self.view not in get_args(View) or self.on_failure not in ("raise", "nan"):
            raise MsdeError(
                f"view is {self.view!r} and on_failure {self.on_failure!r}, expected 2d, 3d or "
                "both and raise or nan"
            )
        self.model_: Pretrained = load(self.checkpoint, readout=self.readout)
        return self

    def transform(self, molecules: Iterable[Any]) -> np.ndarray:
        """Return (num_molecules, width) float32.

        Args:
            molecules: SMILES strings, RDKit Mols or PyTorch Geometric Data, as a list, a Series, or
                a table or 2D array of one column.

        Raises:
            MsdeError: there are several columns; or molecules could not be read, or have no
                conformer for the 3D view, and `on_failure` is `raise`.
        """
        check_is_fitted(self)
        found = self.model_.encode(molecules, self.view)
        vectors, said = found.side_by_side(), found.notes | found.reasons
        failed = np.flatnonzero(np.isnan(vectors).any(1)).tolist()
        if failed:
            first = f"number {failed[0]}: {said.get(failed[0], 'a view is missing')}"
            message = f"{len(failed)} molecules could not be embedded, the first is {first}"
            if self.on_failure == "raise":
                raise MsdeError(f"{message}; on_failure='nan' leaves them empty")
            log.warning(message)
        if noted := sorted(found.notes.keys() - set(failed)):
            first = f"number {noted[0]}: {found.notes[noted[0]]}"
            log.warning("%d molecules have notes, the first is %s", len(noted), first)
        return vectors

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return a name for each column: view and number."""
        check_is_fitted(self)
        names = [f"msde_{v}_{k}" for v in views_of(self.view) for k in range(self.model_.width(v))]
        return np.array(names, dtype=object)
