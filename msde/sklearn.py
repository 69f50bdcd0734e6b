"""Pretrained representations as a step of a scikit-learn pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from msde.config.schema import Readout
from msde.errors import MsdeError
from msde.inference.pretrained import Pretrained, View, load, views_of


class MoleculeEmbedding(TransformerMixin, BaseEstimator):
    """Turn molecules into vectors of a pretrained model, one row a molecule.

    `fit` learns nothing; it loads the model, so the transformer can be cloned and searched over.

    Args:
        checkpoint: folder of weights, as for `msde.load`; None: those that come with msde.
        view: `2d`, `3d` or `both`, as for `Pretrained.embed`.
        readout: layers of the 2D encoder, as for `msde.load`.
        on_failure: `raise` an error for a molecule that cannot be read, or return a row of `nan`.
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
            molecules: SMILES strings, RDKit Mols or PyTorch Geometric Data.

        Raises:
            MsdeError: molecules could not be read, and `on_failure` is `raise`.
        """
        check_is_fitted(self)
        found = self.model_.encode(molecules, self.view)
        if found.reasons and self.on_failure == "raise":
            number, reason = next(iter(found.reasons.items()))
            raise MsdeError(
                f"{len(found.reasons)} molecules could not be embedded, the first is number "
                f"{number}: {reason}; on_failure='nan' leaves them empty"
            )
        return found.side_by_side()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return a name for each column: view and number."""
        check_is_fitted(self)
        names = [f"msde_{v}_{k}" for v in views_of(self.view) for k in range(self.model_.width(v))]
        return np.array(names, dtype=object)
