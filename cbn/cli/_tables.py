"""Tables of errors, as text or as Markdown, and their figures."""

from __future__ import annotations

from collections.abc import Sequence


def figure(units: float) -> str:
    """An error in units of u."""
    if units < 1e5:
        return f"{units:.1f}" if units < 100 else f"{units:.0f}"
    return f"{units:.0e}".replace("e+0", "e").replace("e+", "e")


def line(cells: Sequence[str], widths: Sequence[int], markdown: bool) -> str:
    """One row; a negative width is that of a cell on the left."""
    if markdown:
        return f"| {' | '.join(cells)} |"
    padded = [
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, width in zip(cells, widths, strict=True)
    ]
    return "".join(padded).rstrip()


def head(title: str, cells: Sequence[str], widths: Sequence[int], markdown: bool) -> str:
    """A title and the head of a table."""
    if not markdown:
        return f"\n{title}\n{line(cells, widths, markdown)}"
    rule = line(["---" if width < 0 else "---:" for width in widths], widths, markdown)
    return f"\n### {title}\n\n{line(cells, widths, markdown)}\n{rule}"
