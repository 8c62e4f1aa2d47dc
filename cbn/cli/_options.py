"""What the subcommands share: the parser and types of options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
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


def some_of(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Make a reader of some of the words, with commas between them."""

    def words(text: str) -> list[str]:
        found = list(dict.fromkeys(text.split(",")))
        if not set(found) <= set(choices):
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(choices)} with commas between them, got {text!r}"
            )
        return found

    return words


def add_words(
    parser: argparse.ArgumentParser, option: str, choices: Iterable[str], default: str = "all"
) -> None:
    """Add an option that takes some of the words, all of them or others by default."""
    choices = list(choices)
    parser.add_argument(
        option,
        type=some_of(choices),
        default=choices if default == "all" else default,
        metavar="LIST",
        help=f"of {', '.join(choices)} (default: {default})",
    )


def thread_counts(text: str) -> list[int | None]:
    """Read numbers of threads with commas between them; None for `all`."""
    return [None if word == "all" else positive(word) for word in text.split(",")]


def check_writable(option: str, path: Path) -> None:
    """Raise CommandError unless a file can be written there."""
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise CommandError(f"{option}: cannot write {str(path)!r}: {error.strerror}") from None
    if not existed:
        path.unlink()


def check_plot(path: Path) -> None:
    """Raise CommandError unless the picture can be written; matplotlib must be installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if path.suffix[1:].lower() not in FigureCanvasAgg.get_supported_filetypes():
        raise CommandError(
            f"--plot: expected a name that ends in .png, .pdf, .svg or another of matplotlib's "
            f"formats, got {str(path)!r}"
        )
    check_writable("--plot", path)
