"""Packaging of msde; `launch`, `data_tools` and `ds_configs` install inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "msde/__init__.py").read_text())[1]

setup(
    name="msde",
    version=VERSION,
    description="Pretraining of 2D and 3D molecular encoders with MoleculeSDE, scaled by DeepSpeed",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["msde", "msde.*"]),
        *(f"msde.{name}" for name in find_packages(include=["data_tools", "data_tools.*"])),
        "msde.launch",
        "msde.ds_configs",
    ],
    package_dir={
        "msde": "msde",
        "msde.data_tools": "data_tools",
        "msde.launch": "launch",
        "msde.ds_configs": "ds_configs",
    },
    package_data={
        "msde.config": ["*.json"],
        "msde": ["shipped/*.md", "shipped/*/*"],
        "msde.ops": ["csrc/*"],
        "msde.ds_configs": ["*.json"],
    },
    entry_points={"console_scripts": ["msde = msde.__main__:main"]},
    install_requires=[
        "torch>=2.6",
        # The engine's behaviour is pinned down by tests; another release must pass them first.
        "deepspeed==0.19.8",
        "torch-geometric>=2.6",
        "rdkit>=2024.9",
        "lmdb>=1.4",
        "numpy>=1.26",
        "tensorboard>=2.15",
        "torchdiffeq>=0.2.4",
        "scipy>=1.10",
        "safetensors>=0.4",
        "tqdm>=4.60",
        "fsspec",
        "psutil",
        "packaging",
    ],
    extras_require={
        "sklearn": ["scikit-learn>=1.4"],
        "ase": ["ase>=3.24"],
        # Of the readers, GEOM's needs msgpack; databases of ASE, those of its newest version.
        "formats": ["ase>=3.24", "msgpack>=1.0"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ogb>=1.3.6",
            "scikit-learn>=1.4",
            "ase>=3.24",
            "msgpack>=1.0",
            "pyyaml>=6",
            "shtab>=1.7",
            "distributed>=2024.1",
            "matplotlib>=3.8",
            # Its interpreter runs the kernels for GPUs on a CPU.
            "triton>=3.2; platform_system == 'Linux'",
        ],
        # Completion of `msde` in bash and zsh.
        "completion": ["shtab>=1.7"],
        "plot": ["matplotlib>=3.8"],
        # To compare conformers and bonds with other programs.
        "evaluate": ["posebusters>=0.4", "openbabel-wheel>=3.1"],
        "trackers": ["wandb>=0.16", "mlflow-skinny>=2.9"],
        # With Debian's chromium and chromium-driver.
        "browser": ["selenium>=4.20"],
        "dask": ["distributed>=2024.1"],
        "mpi": ["mpi4py>=4"],
        # The API reference imports what it documents.
        "docs": [
            "sphinx>=8",
            "pydata-sphinx-theme>=0.16",
            "myst-parser>=4",
            "scikit-learn>=1.4",
            "ase>=3.24",
        ],
        "dev": ["ruff>=0.12", "mypy>=1.15", "matplotlib>=3.8"],
    },
)
