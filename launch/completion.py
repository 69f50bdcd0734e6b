"""Print the completion of commands, options and values for a shell.

msde completion bash > ~/.local/share/bash-completion/completions/msde
msde completion zsh > _msde, in a folder of $fpath

A new shell then completes `msde` by the Tab key. The package shtab writes the completion.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from msde.__main__ import COMMANDS, summary_of
from msde.cli import OneLineParser, report_errors
from msde.errors import MsdeError


def make_parser() -> OneLineParser:
    """Return the parser of the command line."""
    parser = OneLineParser(description=__doc__, example="msde completion bash")
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="for which shell")
    return parser


def whole_parser() -> OneLineParser:
    """Return one parser of all commands, in which shtab looks for files and folders, too."""
    parser = OneLineParser(prog="msde")
    commands = parser.add_subparsers()
    for name, module in COMMANDS.items():
        own = importlib.import_module(module).make_parser()
        commands.add_parser(name, help=summary_of(module), parents=[own], add_help=False)
        complete_paths(own)
    return parser


def complete_paths(parser: argparse.ArgumentParser) -> None:
    """Let options that take a path complete names of files or folders."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            list(map(complete_paths, action.choices.values()))
        elif action.type is Path:
            action.complete = shtab.DIR if action.metavar == "DIR" else shtab.FILE  # type: ignore


def main() -> None:
    """Parse and print."""
    shell = make_parser().parse_args().shell
    try:
        import shtab
    except ImportError as error:
        raise MsdeError("shtab is missing; pip install 'msde[completion]' installs it") from error
    print(shtab.complete(whole_parser(), shell))


if __name__ == "__main__":
    report_errors(main)
