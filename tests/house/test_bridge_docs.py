"""The examples of the bridges' pages and docstrings print what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
BRIDGES = ["autograd", "jax", "onnx", "sklearn"]
bridges = pytest.mark.parametrize("name", BRIDGES)


@bridges
def test_page(name):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install --group interop")
    failed, tried = doctest.testfile(str(DOCS / f"{name}.md"), module_relative=False)
    assert tried > 5 and not failed


@bridges
def test_docstrings(name):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install --group interop")
    failed, tried = doctest.testmod(import_module(f"cbn.interop.{name}"))
    assert tried > 2 and not failed
