"""Time 3D encoders of msde beside those of other packages, on the same molecules and sizes.

python -m venv tmd && tmd/bin/pip install torchmd-net==3.1.0 torch==2.13.0
python -m venv fair && fair/bin/pip install fairchem-core==2.24.0 torch==2.13.0
python benchmarks/encoders_3d.py --input gdb7.sdf.gz --torchmd-net tmd/bin/python
python benchmarks/encoders_3d.py --input gdb7.sdf.gz --fairchem fair/bin/python --size 16

PyTorch Geometric is in the environment of msde. Every side is a process with one thread; they step
in turn on the same batches, and seconds are those of the processor. Of each: an energy's gradients
of the weights (energy), energies and forces (forces), and the gradients of an error of the forces,
which differentiates twice (twice). Pairs of atoms are given to PyTorch Geometric, msde makes them
with the batch, TorchMD-Net and fairchem find them in their networks. No optimizer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDTH = 128  # of every network
BATCHES = 4
PARTS = ("energy", "forces", "twice")
REFERENCE = {
    "pyg schnet": "msde schnet",
    "torchmd-net graph-network": "msde schnet",
    "torchmd-net equivariant-transformer": "msde painn",
    "torchmd-net tensornet": "msde painn",
    "fairchem escn-md": "msde painn",
}
LAYERS = {"schnet": 6, "graph-network": 6, "tensornet": 2}  # of the others 3
CUTOFF = {"schnet": 10.0, "graph-network": 10.0}  # A; of the others 5


class Side(nn.Module):
    """A network of a package; its batches are dicts of NumPy arrays."""

    def __init__(self, kind: str) -> None:
        """Build the network."""
        super().__init__()
        self.kind, self.cutoff = kind, CUTOFF.get(kind, 5.0)
        self.build(LAYERS.get(kind, 3))

    def build(self, layers: int) -> None:
        """Make the modules."""
        raise NotImplementedError

    def batch(self, arrays: dict[str, np.ndarray]) -> Any:
        """Return what the network needs of a batch; not timed."""
        raise NotImplementedError

    def energy(self, batch: Any, pos: Tensor) -> Tensor:
        """Return the energy of each molecule."""
        raise NotImplementedError


class Msde(Side):
    """An encoder with a linear head, as fine-tuning has it; the batch is made in every step."""

    def build(self, layers: int) -> None:
        """Make the encoder and the head."""
        from msde.config import PaiNNConfig, SchNetConfig
        from msde.model.encoders import ENCODERS_3D

        schnet = SchNetConfig(layers, WIDTH, num_gaussians=50, cutoff=self.cutoff)
        painn = PaiNNConfig(layers, num_gaussians=20, cutoff=self.cutoff)
        self.encoder = ENCODERS_3D[self.kind](WIDTH, schnet if self.kind == "schnet" else painn)
        self.head = nn.Linear(WIDTH, 1)

    def batch(self, arrays: dict[str, np.ndarray]) -> Any:
        """Return columns of molecules without bonds."""
        from msde.chem.record import record_of_atoms
        from msde.data.codec import columns_from_records

        parts = enumerate(of_each(arrays))
        return columns_from_records([record_of_atoms(z, p, uid=n) for n, (z, p) in parts])

    def energy(self, batch: Any, pos: Tensor) -> Tensor:
        """Assemble the batch and predict."""
        from msde.data.batch import MoleculeBatch

        batch = MoleculeBatch.from_columns(batch)
        return self.head(self.encoder.readout(self.encoder(batch, pos), batch))


class Pyg(Side):
    """SchNet of PyTorch Geometric, its pairs given."""

    def build(self, layers: int) -> None:
        """Make the network; its own search for pairs would need pyg-lib."""
        from torch_geometric.nn import SchNet

        self.net = SchNet(WIDTH, WIDTH, layers, 50, self.cutoff, interaction_graph=self.graph)

    def graph(self, pos: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        """Return the given pairs and their distances."""
        row, col = self.edge_index
        return self.edge_index, (pos[row] - pos[col]).norm(dim=-1)

    def batch(self, arrays: dict[str, np.ndarray]) -> Any:
        """Return elements, molecules of the atoms, and pairs."""
        return {"z": of(arrays["z"]), "batch": molecules(arrays), "pairs": pairs(arrays, 10.0)}

    def energy(self, batch: Any, pos: Tensor) -> Tensor:
        """Predict."""
        self.edge_index = batch["pairs"]
        return self.net(batch["z"], pos, batch["batch"])


class TorchMDNet(Side):
    """A network of TorchMD-Net with its scalar head."""

    def build(self, layers: int) -> None:
        """Make it as the package's examples do, in our sizes."""
        from torchmdnet.models.model import create_model

        radial = {"num_rbf": 50 if self.kind == "graph-network" else 20, "rbf_type": "expnorm"}
        radial |= {"trainable_rbf": False, "cutoff_lower": 0.0, "cutoff_upper": self.cutoff}
        heads = {"attn_activation": "silu", "num_heads": 8, "distance_influence": "both"}
        graph = {"aggr": "add", "neighbor_embedding": True, "equivariance_invariance_group": "O(3)"}
        head = {"output_model": "Scalar", "reduce_op": "add", "prior_model": None}
        rest = {"max_z": 100, "max_num_neighbors": 64, "activation": "silu", "precision": 32}
        rest |= {"model": self.kind, "num_layers": layers, "embedding_dimension": WIDTH}
        rest |= {"derivative": False, "atom_filter": -1}
        self.net = create_model({**rest, **radial, **heads, **graph, **head})

    def batch(self, arrays: dict[str, np.ndarray]) -> Any:
        """Return elements and molecules of the atoms."""
        return of(arrays["z"]), molecules(arrays)

    def energy(self, batch: Any, pos: Tensor) -> Tensor:
        """Predict, with the search for pairs."""
        return self.net(batch[0], pos, batch[1])[0]


class Fairchem(Side):
    """The backbone of UMA and eSEN without experts and data set embeddings, degree 2."""

    def build(self, layers: int) -> None:
        """Make backbone and head."""
        from fairchem.core.models.uma.escn_md import Linear_Energy_Head, eSCNMDBackbone

        graph = {"otf_graph": True, "always_use_pbc": False, "cutoff": self.cutoff}
        rest = {"direct_forces": False, "use_dataset_embedding": False}
        self.net = eSCNMDBackbone(sphere_channels=WIDTH, num_layers=layers, **graph, **rest)
        self.head = Linear_Energy_Head(self.net)

    def batch(self, arrays: dict[str, np.ndarray]) -> Any:
        """Return the package's batch."""
        from ase import Atoms
        from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch

        found = [Atoms(z, p) for z, p in of_each(arrays)]
        return atomicdata_list_to_batch([AtomicData.from_ase(a, task_name="omol") for a in found])

    def energy(self, batch: Any, pos: Tensor) -> Tensor:
        """Predict, with the search for pairs."""
        self.net.regress_config.forces = pos.requires_grad
        batch = batch.clone()
        batch["pos"] = pos
        return self.head(batch, self.net(batch))["energy"]


SIDES: dict[str, type[Side]] = {
    "msde": Msde, "pyg": Pyg, "torchmd-net": TorchMDNet, "fairchem": Fairchem,
}  # fmt: skip


def of(array: np.ndarray) -> Tensor:
    """Return whole numbers as a tensor."""
    return torch.from_numpy(np.asarray(array, np.int64))


def of_each(arrays: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield elements and positions of each molecule."""
    cuts = arrays["ptr"][1:-1]
    return zip(np.split(arrays["z"], cuts), np.split(arrays["pos"], cuts), strict=True)


def molecules(arrays: dict[str, np.ndarray]) -> Tensor:
    """Return the molecule of each atom."""
    return of(np.repeat(np.arange(len(arrays["ptr"]) - 1), np.diff(arrays["ptr"])))


def pairs(arrays: dict[str, np.ndarray], cutoff: float) -> Tensor:
    """Return all pairs within the cutoff, both ways, (2, num_pairs), sorted by the first atom."""
    found = []
    for first, end in zip(arrays["ptr"], arrays["ptr"][1:], strict=False):
        pos = arrays["pos"][first:end]
        near = np.linalg.norm(pos[:, None] - pos[None], axis=-1) < cutoff
        found.append(np.argwhere(near & ~np.eye(len(pos), dtype=bool)) + first)
    return of(np.concatenate(found).T).contiguous()


def step(side: Side, part: str, batch: Any, pos: Tensor) -> float:
    """Return the seconds of a step."""
    side.zero_grad()
    start = time.process_time()
    if part == "energy":
        side.energy(batch, pos).square().mean().backward()
    else:
        pos = pos.detach().clone().requires_grad_()
        energy = side.energy(batch, pos).sum()
        (forces,) = torch.autograd.grad(energy, pos, create_graph=part == "twice")
        if part == "twice":
            forces.square().mean().backward()
    return time.process_time() - start


def work(name: str, path: Path) -> None:
    """Step whenever a line with a batch and a part comes; print the seconds."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    package, kind = name.split(" ")
    side = SIDES[package](kind)
    with np.load(path) as file:
        arrays = [{k: file[f"{k}_{n}"] for k in ("z", "pos", "ptr")} for n in range(BATCHES)]
    batches = [(side.batch(part), torch.from_numpy(part["pos"])) for part in arrays]
    print("RESULT", sum(p.numel() for p in side.parameters()), flush=True)
    for line in sys.stdin:
        number, part = line.split()
        print("RESULT", step(side, part, *batches[int(number)]), flush=True)


class Worker:
    """A side in a process of its own."""

    def __init__(self, name: str, python: str, path: Path) -> None:
        """Start it and wait until it is built."""
        command = [python, __file__, "--worker", name, "--input", path]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.parameters = int(self.result())
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}

    def result(self) -> str:
        """Return the next result, past what packages print."""
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return line.split()[1]
        raise SystemExit("a side ended early; its error is above")

    def step(self, number: int, part: str) -> float:
        """Have it do a step."""
        self.process.stdin.write(f"{number} {part}\n")
        self.process.stdin.flush()
        return float(self.result())


def write_batches(source: Path, path: Path, size: int) -> float:
    """Draw molecules with hydrogens from a file; return their mean number of atoms."""
    from step import make_columns, make_task

    from msde.data_tools.reading import choose_format

    task = make_task(choose_format([source]), keep_hydrogens=True)
    columns = make_columns(source, task, size, None)
    order = np.random.RandomState(0).permutation(len(columns))[:BATCHES]
    arrays: dict[str, np.ndarray] = {}
    for number, place in enumerate(order):
        part = columns[place]
        ptr = np.concatenate([[0], np.cumsum(part.num_atoms, dtype=np.int64)])
        arrays |= {f"z_{number}": part.z, f"pos_{number}": part.pos, f"ptr_{number}": ptr}
    np.savez(path, **arrays)
    return sum(len(arrays[f"z_{n}"]) for n in range(BATCHES)) / BATCHES / size


def measure(workers: dict[str, Worker], turns: int) -> None:
    """Have all sides step in turn, after one step each that is not counted."""
    for part in PARTS:
        for turn in range(-1, turns):
            for worker in workers.values():
                seconds = worker.step(turn % BATCHES, part)
                worker.seconds[part] += [seconds] * (turn >= 0)


def main() -> None:
    """Run a side, or all of them in turn, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="molecules with hydrogens")
    parser.add_argument("--torchmd-net", metavar="PYTHON")
    parser.add_argument("--fairchem", metavar="PYTHON")
    parser.add_argument("--size", type=int, default=128, help="molecules of a batch")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--json", type=Path, help="file for the seconds of all steps")
    parser.add_argument("--worker", choices=[*REFERENCE, *REFERENCE.values()])
    given = parser.parse_args()
    if given.worker:
        return work(given.worker, given.input)
    pythons = {"msde": sys.executable, "pyg": sys.executable}
    pythons |= {"torchmd-net": given.torchmd_net, "fairchem": given.fairchem}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "molecules.npz"
        print(f"{write_batches(given.input, path, given.size):.1f} atoms a molecule")
        names = [*dict.fromkeys(REFERENCE.values()), *REFERENCE]
        chosen = {name: pythons[name.split(" ")[0]] for name in names}
        workers = {name: Worker(name, python, path) for name, python in chosen.items() if python}
        measure(workers, given.turns)
    for name, worker in workers.items():
        cells = [f"{name}, {worker.parameters:,} weights"]
        for part in PARTS:
            best = statistics.median(worker.seconds[part])
            ours = statistics.median(workers[REFERENCE.get(name, name)].seconds[part])
            cells.append(f"{part} {given.size / best:.4g}/s, {best / ours:.2f} times msde's time")
        print("; ".join(cells))
    if given.json:
        given.json.write_text(json.dumps({n: w.seconds for n, w in workers.items()}))


if __name__ == "__main__":
    main()
