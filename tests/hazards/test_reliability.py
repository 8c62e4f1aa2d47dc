"""docs/reliability.md names tests that exist, for every hazard; and how much stack C may take."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cbn

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \|(.*)\|$", TEXT, flags=re.MULTILINE)
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT)


def functions(file):
    (path,) = (ROOT / "tests").rglob(file)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_is_a_row_for_every_hazard():
    assert [int(number) for number, _ in ROWS] == list(range(1, 21))
    for _, row in ROWS:
        *_, tests = row.split("|")
        assert re.fullmatch(r" (`test_\w+\.py::test_\w+`(, |\b|(?= $)))+ ", tests), tests


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_exists(file, name):
    assert name in functions(file)


LARGE_STACK = """
void fill(char *memory);
void large(void)
{
    char memory[9000];
    fill(memory);
}
"""


def test_no_function_needs_much_stack(tmp_path):
    """The flags of CBN_WERROR=1, with which continuous integration builds, refuse it."""
    config = cbn.show_config("dicts")["compiler"]
    if sys.platform == "win32" or "clang" in config["version"]:
        pytest.skip("a warning of gcc's")
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    flags = ast.literal_eval(re.search(r'GNU = .*?"werror": (\[.*?\])', setup, re.DOTALL)[1])
    assert "export CBN_WERROR=1" in (ROOT / ".ci" / "common").read_text(encoding="utf-8")
    source = tmp_path / "large.c"
    for size, status in ((9000, 1), (900, 0)):
        source.write_text(LARGE_STACK.replace("9000", str(size)), encoding="utf-8")
        command = [*config["command"].split(), *config["flags"], *flags, "-c", str(source)]
        run = subprocess.run(
            [*command, "-o", str(tmp_path / "a.o")], capture_output=True, text=True
        )
        assert run.returncode == status, run.stderr
