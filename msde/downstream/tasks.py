"""The named tasks: what is predicted, how it is measured, and the published settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from msde.config.resolve import nearest
from msde.errors import MsdeError

Metric = Literal["roc_auc", "rmse", "mae"]
FORCE_MAE = "force_mae"
METRICS: tuple[str, ...] = (*get_args(Metric), FORCE_MAE)  # of the user's own tasks


@dataclass(frozen=True)
class Task:
    """A property of molecules to predict."""

    name: str
    metric: Metric
    # The labels of the data set that are predicted, in this order. None: all that it has.
    targets: tuple[str, ...] | None = None
    units: dict[str, str] = field(default_factory=dict)  # that the labels are converted to
    stem: str = ""  # of the names of the task's files
    has_forces: bool = False
    settings: dict[str, Any] = field(default_factory=dict)  # defaults of this task, see Settings

    @property
    def is_classification(self) -> bool:
        """Whether the labels are 0 and 1."""
        return self.metric == "roc_auc"


CUSTOM = "custom"
_CLASSES: dict[str, tuple[str, ...] | None] = {
    "bbbp": ("p_np",),
    "tox21": None,
    "toxcast": None,
    "sider": None,
    "clintox": ("FDA_APPROVED", "CT_TOX"),
    "muv": None,
    "hiv": ("HIV_active",),
    "bace": ("Class",),
}
# Label and unit.
_NUMBERS = {
    "esol": ("measured log solubility in mols per litre", "log10(mol/L)"),
    "freesolv": ("expt", "kcal/mol"),
    "lipo": ("exp", ""),
    "malaria": ("activity", ""),
    "cep": ("PCE", "%"),
}
# The label of QM9's table, and the unit of the paper's table. Energies are those of atomisation:
# the atoms' energies are no property of a molecule's structure.
_QM9 = {
    "alpha": ("alpha", "a0^3"),
    "gap": ("gap", "meV"),
    "homo": ("homo", "meV"),
    "lumo": ("lumo", "meV"),
    "mu": ("mu", "D"),
    "cv": ("cv", "cal/mol/K"),
    "g298": ("g298_atom", "meV"),
    "h298": ("h298_atom", "meV"),
    "r2": ("r2", "a0^2"),
    "u298": ("u298_atom", "meV"),
    "u0": ("u0_atom", "meV"),
    "zpve": ("zpve", "meV"),
}
MD17 = (
    "aspirin",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "salicylic_acid",
    "toluene",
    "uracil",
)
_QM9_SETTINGS = {
    "view": "3d",
    "split": "random",
    "split_seed": 42,
    "train": 110_000,
    "valid": 10_000,
    "loss": "l1",
}
_FORCE_SETTINGS = {
    "view": "3d",
    "split": "random",
    "split_seed": 42,
    "loss": "l1",
    "batch_size": 8,
    "lr": 5e-4,
    "dropout": 0.0,
    "patience": 0,
}
_MD17_SETTINGS = _FORCE_SETTINGS | {"train": 1000, "valid": 1000}

TASKS: dict[str, Task] = {
    **{
        name: Task(name, "roc_auc", targets, stem=name, settings={"loss": "bce"})
        for name, targets in _CLASSES.items()
    },
    **{
        name: Task(name, "rmse", (label,), {label: unit}, stem=name)
        for name, (label, unit) in _NUMBERS.items()
    },
    **{
        f"qm9-{name}": Task(
            f"qm9-{name}", "mae", (label,), {label: unit}, "qm9", settings=_QM9_SETTINGS
        )
        for name, (label, unit) in _QM9.items()
    },
    **{
        f"md17-{name}": Task(
            f"md17-{name}",
            "mae",
            ("energy",),
            {"energy": "kcal/mol"},
            name,
            has_forces=True,
            settings=_MD17_SETTINGS,
        )
        for name in MD17
    },
}


def get_task(name: str, targets: Sequence[str] | None = None, metric: str | None = None) -> Task:
    """Return a named task or, as `custom`, one of the user's own.

    Args:
        targets: of `custom`: labels of the data set; None for all of them.
        metric: of `custom`, by default `rmse`; `force_mae`: forces are learnt with the target,
            which is their energy.

    Raises:
        MsdeError: there is no such task or metric, a named task is given targets or a metric, or
            forces have no energy.
    """
    if name != CUSTOM:
        if name not in TASKS:
            raise MsdeError(f"unknown task {name!r}{nearest(name, [*TASKS, CUSTOM])}")
        if targets or metric:
            raise MsdeError(
                f"--targets and --metric are for --task custom; {name} has its own; leave them out"
            )
        return TASKS[name]
    chosen: Any = metric or "rmse"
    if chosen not in METRICS:
        raise MsdeError(f"--metric is {metric!r}, expected one of {', '.join(METRICS)}")
    if chosen == FORCE_MAE:
        if not targets or len(targets) != 1:
            raise MsdeError(f"--metric {FORCE_MAE} needs the label of the energies: --targets NAME")
        return Task(CUSTOM, "mae", tuple(targets), has_forces=True, settings=_FORCE_SETTINGS)
    losses = {"roc_auc": "bce", "rmse": "mse", "mae": "l1"}
    chosen_targets = tuple(targets) if targets else None
    return Task(CUSTOM, chosen, chosen_targets, settings={"loss": losses[chosen]})
