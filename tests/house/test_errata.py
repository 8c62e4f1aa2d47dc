"""Every misprint listed in docs/math.md fails as printed and passes as mended."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
ERRATA = runpy.run_path(str(DOCS / "errata.py"))


@pytest.mark.parametrize("row", ERRATA["ROWS"], ids=lambda row: row.where)
def test_misprint(row):
    data = ERRATA["data"]()
    printed = ERRATA["error"](row.as_printed, row.of, data)
    mended = ERRATA["error"](row.as_mended, row.of, data)
    assert isinstance(printed, str) or printed > 0.1
    assert mended <= ERRATA["ROUNDING"]


def test_the_table_in_the_text_is_the_printed_one():
    text = (DOCS / "math.md").read_text(encoding="utf-8")
    _, after = text.split("<!-- printed by docs/errata.py -->\n")
    in_text, _ = after.split("<!-- end -->")
    assert in_text.strip() == ERRATA["table"]()
