"""--help of every command: an example, every option with a text, allowed values and defaults."""

import argparse
import importlib
import shlex
import subprocess
import sys

import pytest

from fixtures.commands import run_here
from msde.__main__ import COMMANDS
from msde.config import choices
from msde.data_tools.options import FORMATS
from msde.downstream.settings import Settings
from msde.downstream.tasks import TASKS
from msde.sampling.samplers import SAMPLERS

HEAVY = ("torch", "numpy", "rdkit", "deepspeed", "scipy", "lmdb", "tensorboard")
INSIDE = dict.fromkeys(("sample", "evaluate_samples"), ["conformers", "bonds"])
ALL = [[name, *rest] for name in COMMANDS for rest in ([], *([p] for p in INSIDE.get(name, [])))]


def parser_of(name, *parts):
    parser = importlib.import_module(COMMANDS[name]).make_parser()
    for part in parts:
        (inside,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = inside.choices[part]
    return parser


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_ends_with_an_example_that_the_parser_accepts(words):
    found = run_here("msde.__main__", *words, "--help")
    assert found.returncode == 0 and found.stdout.startswith(f"usage: msde {words[0]}")
    before, after = found.stdout.rsplit("\nexample:\n", 1)
    command, name, *arguments = shlex.split(after)
    assert (command, name) == ("msde", words[0]) and after.count("\n") == 1
    parser = parser_of(name)
    inside = any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
    parse = parser.parse_args if inside or name == "supervise" else parser.parse_intermixed_args
    parse(arguments)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_has_a_text_with_its_values_and_its_default(words):
    parser = parser_of(*words)
    shown = " ".join(parser.format_help().split())
    for action in parser._actions:
        name = (action.option_strings or [action.metavar or action.dest])[-1]
        assert action.help, name
        if action.help is argparse.SUPPRESS:
            continue
        for value in action.choices or ():
            assert str(value) in shown, f"{name} {value}"
        if isinstance(action.default, (int, float)) and action.default is not False:
            assert "default" in parser._get_formatter()._get_help_string(action), name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["finetune"], [*TASKS, "custom", "roc_auc, rmse, mae", "scaffold|deepchem", *FORMATS]),
        (["finetune"], [f"{name} " for name in Settings.__annotations__]),
        (["sample", "conformers"], [*SAMPLERS, "default: dpm_solver_2m", "Angstrom"]),
        (["sample", "bonds"], [*SAMPLERS, "default: classifier"]),
        (["plan"], ["A100-40GB", "default: H100"]),
        (["pretrain"], ["paper, base", "default: base"]),
    ],
)
def test_help_lists_what_an_option_takes(words, expected):
    shown = " ".join(run_here("msde.__main__", *words, "--help").stdout.split())
    for text in expected:
        assert text in shown


def test_the_names_that_help_lists_are_those_of_the_samplers():
    assert tuple(SAMPLERS) == choices.SAMPLERS


@pytest.mark.parametrize("words", [[], *ALL], ids=" ".join)
def test_help_imports_nothing_that_takes_long(words):
    script = f"""
import sys
from msde.__main__ import main
sys.argv = ["msde", *{words}, "--help"]
try:
    main()
except SystemExit:
    pass
print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "", done.stderr
