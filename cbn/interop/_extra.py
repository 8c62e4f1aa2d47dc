"""What a bridge says when the package at its other end is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the imports of a bridge: a missing package is an ImportError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f'cbn.interop.{name}: {error.name} is not installed: pip install "cbn[{name}]"'
        ) from error
