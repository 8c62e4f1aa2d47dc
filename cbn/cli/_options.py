"""What the subcommands share: the parser and types of options."""

from __future__ import annotations

import argparse
from typing import NoReturn


class CommandError(Exception):
    """The command cannot be run as given; its text is the one line that the user sees."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, smallest: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = smallest - 1
    if number < smallest:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {smallest}, got {text!r}"
        )
    return number
