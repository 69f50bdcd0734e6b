"""What several benchmarks share; torch is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rdkit import RDConfig

ROOT = Path(__file__).resolve().parent.parent
NCI = Path(RDConfig.RDDataDir) / "NCI/first_5K.smi"


def convert_nci(output: Path, limit: int) -> None:
    """Convert the first molecules of NCI to shards, in a process of its own."""
    command = [sys.executable, "-m", "data_tools.convert", "--format", "smiles", NCI]
    command += ["--limit", limit, "--output", output]
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, stdout=sys.stderr)


def peak_memory_mb() -> float:
    """Return this process's peak memory; getrusage would begin with that of who started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
