"""docs/math.md and cbn/reference.py name each other's equations and functions."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
from cases import generator, within
from tolerances import dx_bound

from cbn import reference

MATH = Path(__file__).resolve().parents[2] / "docs" / "math.md"


def test_equations_are_numbered_in_order():
    text = MATH.read_text(encoding="utf-8")
    numbers = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", text)]
    assert numbers == list(range(1, len(numbers) + 1))
    used = {int(n) for n in re.findall(r"(?<![\w)])\((\d+)\)", text)}
    assert used <= set(numbers)


def _equations(text):
    """Return the numbers in brackets, ranges such as (1)-(5) filled up."""
    pairs = re.findall(r"\((\d+)\)(?:-\((\d+)\))?", text)
    return {n for a, b in pairs for n in range(int(a), int(b or a) + 1)}


def test_the_table_of_homes_is_complete():
    text = MATH.read_text(encoding="utf-8")
    last = max(int(n) for n in re.findall(r"\\tag\{(\d+)\}", text))
    _, homes = text.split("Where each equation lives")
    assert _equations(homes) == set(range(1, last + 1))
    for numbers, names in re.findall(r"^\| (\(.+?) \| (.+) \|$", homes, flags=re.MULTILINE):
        for name in re.findall(r"`([a-z_]+)`", names):
            assert _equations(numbers) & _equations(inspect.getsource(getattr(reference, name)))
    public = {
        name
        for name, value in vars(reference).items()
        if inspect.isfunction(value) and value.__module__ == "cbn.reference" and name[0] != "_"
    }
    assert public <= set(re.findall(r"`([a-z_]+)`", homes))


def test_the_line_of_numpy():
    (line,) = re.findall(r"```python\n(.*?)```", MATH.read_text(encoding="utf-8"), re.DOTALL)
    x, dy = generator("the line of numpy").standard_normal((2, 7, 3))
    gamma = np.array([0.5, 1.0, 2.0])
    _, cache = reference.forward(x, gamma)
    letters = {"N": 7, "gamma": gamma, "invstd": cache.invstd, "xhat": cache.xhat, "dy": dy}
    exec(line, {}, letters)
    dx = reference.backward_staged(dy, cache).dx
    within(letters["dx"], dx, dx_bound(np.float64, dy, cache.xhat, gamma, cache.invstd))
