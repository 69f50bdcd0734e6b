"""One command for all: msde COMMAND ..., or python -m msde COMMAND ..."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from msde.cli import report_errors
from msde.config import nearest
from msde.errors import MsdeError

# In the order of a project: data, pretraining, use.
TOOLS = ("convert", "verify", "describe", "split", "merge", "reshard", "export")
LAUNCHED = ("doctor", "plan", "pretrain", "supervise", "convert_checkpoint", "embed", "finetune",
            "predict", "suite", "sample", "evaluate_samples", "completion")  # fmt: skip
COMMANDS = {
    **{name: f"msde.data_tools.{name}" for name in TOOLS},
    **{name: f"msde.launch.{name}" for name in LAUNCHED},
}


def main() -> None:
    """Run the command that the first argument names, or list all."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stdout.write("usage: msde COMMAND ...; msde COMMAND --help tells more\n\n")
        lines = (f"  {name:<20}{summary_of(module)}\n" for name, module in COMMANDS.items())
        sys.stdout.writelines(lines)
        return
    report_errors(_run)


def _run() -> None:
    name = sys.argv[1].replace("-", "_")
    if name not in COMMANDS:
        raise MsdeError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    sys.argv = [f"msde {name}", *sys.argv[2:]]
    importlib.import_module(COMMANDS[name]).main()


def summary_of(module: str) -> str:
    """Return the first line of a module's docstring; the module is not run."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(found.origin).read_text())) or ""
    return docstring.splitlines()[0]


if __name__ == "__main__":
    main()
