"""The first import of the compiled part: a folder without it, such as a clone, says so."""

from __future__ import annotations

from pathlib import Path
from sys import version_info

try:
    import cbn._core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "cbn._core":
        raise
    raise ImportError(
        f"{Path(__file__).parent} has no compiled part for Python {version_info.major}."
        f"{version_info.minor}: leave this folder to import the cbn that is installed, or run "
        "`pip install -e .` in it to build it"
    ) from None
