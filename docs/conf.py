"""The documentation; ``.ci/docs`` builds it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import cbn

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))


def parameters() -> set[str]:
    """The names of all parameters, which docstrings put in backticks too."""
    names: set[str] = set()
    for module in pkgutil.iter_modules(cbn.__path__, "cbn."):
        if module.name not in ("cbn.__main__", "cbn._core", "cbn._floor", "cbn.cli"):
            for _, value in inspect.getmembers(importlib.import_module(module.name)):
                members = vars(value).values() if inspect.isclass(value) else [value]
                for function in filter(inspect.isfunction, members):
                    names |= set(inspect.signature(function).parameters)
    return names


project = "cbn"
author = "cbn developers"
copyright = "cbn developers, BSD-3-Clause"
version = release = cbn.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# A name in single backticks is a link, or a parameter's; one that leads nowhere is an error.
default_role = "py:obj"
nitpicky = True
nitpick_ignore = {("py:obj", name) for name in parameters()}
autodoc_typehints = "none"
numpydoc_show_class_members = False
# Parameters that there are not, sections that there are not or in another order.
numpydoc_validation_checks = {"PR02", "GL06", "GL07"}

html_theme = "furo"
html_title = f"cbn {version}"
html_static_path = ["_static"]
html_css_files = ["cbn.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"


PATTERN = re.compile(r"\w+\*\n")


def drop_missing(app, docname: str, source: list[str]) -> None:
    """Leave a pattern that no page matches out of the table of contents."""
    if docname == "index":
        lines = source[0].splitlines(keepends=True)
        source[0] = "".join(
            line for line in lines if not PATTERN.fullmatch(line) or any(DOCS.glob(line.strip()))
        )


def setup(app) -> None:
    app.connect("source-read", drop_missing)
