"""Every example runs: in the README, in docs/ and in the docstrings. And what the pages list is so.

A page's ``pycon`` blocks are one doctest, its ``python`` blocks run in order, in one namespace.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import cbn
from cbn import runtime

ROOT = Path(__file__).resolve().parents[2]
MATH = ROOT / "docs" / "math.md"  # whose line of NumPy runs in test_math.py
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {MATH})]
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)

# Where code reads the environment, in Python, Cython and C.
# Classes whose objects users get and do not make.
RETURNED = {"BatchNormCache", "StagedGradients"}

TEXT = {".py", ".pyx", ".pxi", ".c", ".h"}
READS = re.compile(r"(?:environ(?:\.get\(|\.setdefault\(|\[)|getenv\(|switched_on\()\s*\"(\w+)\"")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[tuple[str, str, int]]:
    """Language, text and line of each block of a page."""
    text = path.read_text(encoding="utf-8")
    return [(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in BLOCK.finditer(text)]


def imported(language: str, text: str) -> set[str]:
    """The packages that a block imports."""
    if language == "pycon":
        text = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
    nodes = list(ast.walk(ast.parse(text)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.partition(".")[0] for module in modules}


def run(test: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


def modules() -> list[str]:
    found = pkgutil.walk_packages(cbn.__path__, "cbn.")
    names = ["cbn", *(module.name for module in found)]
    return [name for name in names if not name.startswith(("cbn.__", "cbn.cli"))]


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path)], ids=name_of)
def test_pages(path, tmp_path, monkeypatch):
    for language, text, _ in blocks(path):
        for package in imported(language, text):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for language, text, line in blocks(path):
        if language == "python":
            exec(compile("\n" * line + text, str(path), "exec"), namespace)
        else:
            test = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), line)
            test.globs = namespace
            run(test)


@pytest.mark.parametrize("name", modules())
def test_docstrings(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # a bridge without what it leads to
        pytest.skip(str(error))
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        for package in imported("pycon", test.docstring or ""):
            pytest.importorskip(package)
        run(test)


@pytest.mark.parametrize("name", sorted({*cbn.__all__} - {"__version__"} - RETURNED))
def test_every_public_name_has_an_example(name):
    texts = [getattr(cbn, other).__doc__ or "" for other in cbn.__all__]
    texts += [text for path in PAGES for _, text, _ in blocks(path)]
    example = rf"^\s*(?:>>>|\.\.\.).*\bcbn\.{name}\b"
    assert any(re.search(example, text, re.MULTILINE) for text in texts)


def test_every_environment_variable_is_listed():
    sources = [ROOT / "setup.py", *(ROOT / "cbn").rglob("*.p*"), *(ROOT / "src_c").rglob("*.[ch]")]
    texts = [path.read_text(encoding="utf-8") for path in sources if path.suffix in TEXT]
    read = set(re.findall(READS, "\n".join(texts))) | set(runtime._VARIABLES)
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)", page, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == read
