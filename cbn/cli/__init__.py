"""The command ``cbn``, one file a subcommand.

Exit status: 0 done, 1 a check failed, 2 the command could not be run as given, 130 interrupted,
141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from cbn._version import __version__
from cbn.cli._options import CommandError, Parser

__all__ = ["main"]

COMMANDS = ("info", "demo", "check", "normalize", "accuracy", "attack", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the name of the command; ``sys.argv[1:]`` by default.

    Returns
    -------
    int

    Raises
    ------
    SystemExit
        With status 2 for arguments that are wrong, with 0 after ``--help`` and ``--version``.
    """
    try:
        try:
            return _run(sys.argv[1:] if argv is None else list(argv))
        finally:
            print(end="", flush=True)
    except BrokenPipeError:  # cbn accuracy | head
        # Python flushes again as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(argv: list[str]) -> int:
    # The modules of all commands would take 0.1 s of each.
    commands = argv[:1] if argv and argv[0] in COMMANDS else COMMANDS
    parser = _parser(commands)
    options = parser.parse_args(argv)
    if options.run is None:
        parser.print_help()
        return 0
    try:
        return options.run(options)
    except CommandError as error:
        print(f"cbn {options.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cbn {options.command}: interrupted", file=sys.stderr)
        return 130


def _parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    parser = Parser(prog="cbn", description="Batch normalization for NumPy.")
    parser.add_argument("--version", action="version", version=f"cbn {__version__}")
    parser.set_defaults(run=None)
    subparsers = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for name in commands:
        import_module(f"cbn.cli.{name}").register(subparsers)
    return parser
