"""cbn accuracy: its reference against 90 digits, its units against tolerances.py, its table."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import exact
import numpy as np
import pytest
import tolerances
from cases import generator

import cbn
from cbn.cli import _exact, _tables, accuracy, main
from cbn.cli._contenders import EPS
from cbn.cli._exact import Pair
from cbn.cli._peers import PEERS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "accuracy.md"
SMALL = (40, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accuracy, "SHAPES", {"mean 1e4": (50, 2)})
    monkeypatch.setattr(accuracy, "SHAPE", SMALL)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run cbn accuracy in this process; return its status, output and errors."""

    def run(*argv):
        try:
            status = main(["accuracy", *argv])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


# The reference ------------------------------------------------------------------------------------


def relative(pair, expected, size):
    with exact.workprec(exact.PRECISION):
        found = exact.exact(pair.hi) + exact.exact(pair.lo)
        return np.max(exact.floats(abs(found - expected)) / np.where(size == 0, 1, size))


@pytest.mark.parametrize("name", accuracy.DATA)
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_the_reference_has_twice_the_digits(name, rows):
    dtype = accuracy.ONLY.get(name, "float64")
    data = accuracy.make(name, (rows, 2), dtype)
    found = _exact.reference(data.x, data.dy, data.gamma, data.beta, EPS)
    right = exact.forward(data.x, data.gamma, data.beta, EPS)
    dx, dgamma, dbeta = exact.backward(data.dy, right)
    size = _exact.terms(found, data.dy, data.gamma, data.beta)
    size["mean"] = np.abs(data.x).max(axis=0).astype(float)
    # Each result of the terms it is made of; xhat and var of the values before the mean is taken.
    std = np.sqrt(found["var"].hi)
    far = 1 + np.abs(data.x).max(axis=0) / np.where(std > 0, std, np.inf)
    for key, expected in (("mean", right.mean), ("var", right.var), ("y", right.y)):
        assert relative(found[key], expected, size[key] * far**2) < 1e-29, key
    for key, expected in (("dx", dx), ("dgamma", dgamma), ("dbeta", dbeta)):
        assert relative(found[key], expected, size[key] * far) < 1e-29, key


def test_the_reference_takes_its_rows_in_parts(monkeypatch):
    x = generator("parts").normal(5, 1, (1000, 3))
    whole = _exact.moments(x)
    monkeypatch.setattr(_exact, "_CHUNK", 30)
    for parts, expected in zip(_exact.moments(x), whole, strict=True):
        assert np.allclose(parts.hi, expected.hi, rtol=0, atol=1e-15)
        assert np.all(_exact.error(parts.hi, Pair(expected.hi, expected.lo - parts.lo)) < 1e-28)


def test_sums_lose_nothing():
    values = Pair.of(np.array([1e16, 1.0, -1e16, 1e-16]))
    total = _exact.total(values)
    assert (total.hi, total.lo) == (1.0, 1e-16)


# The units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", accuracy.DTYPES)
def test_units_are_those_of_the_tests(dtype):
    """But for the error of the mean, which dx and dgamma may have besides."""
    data = accuracy.make("normal", SMALL, dtype)
    gamma, beta, dy = data.gamma, data.beta, data.dy
    right = _exact.reference(data.x, dy, gamma, beta, EPS)
    size = _exact.terms(right, dy, gamma, beta)
    xhat, invstd, var = right["xhat"].hi, right["invstd"].hi, right["var"].hi
    bounds = {
        "y": tolerances.y_bound(dtype, gamma, beta, xhat),
        "mean": tolerances.mean_bound(dtype, 0, var),
        "var": tolerances.var_bound(dtype, var),
        "dbeta": tolerances.dbeta_bound(dtype, dy),
    }
    for name, bound in bounds.items():
        units = bound / (tolerances.u(dtype) * size[name])
        np.testing.assert_allclose(units, np.full_like(units, units.flat[0]), rtol=1e-13)
        assert round(units.flat[0]) <= _exact.BOUNDS[dtype][name]
    dy, xhat, gamma = (np.abs(np.asarray(a, np.float64)) for a in (dy, xhat, gamma))
    moved = np.sum(dy, axis=0) + np.sum(dy * xhat, axis=0)
    np.testing.assert_allclose(size["dgamma"], moved, rtol=1e-13)
    terms = tolerances.dx_terms(dy, xhat, gamma, invstd)
    mean_moved = gamma * invstd * (xhat * np.sum(dy, axis=0) + np.sum(dy * xhat, axis=0)) / len(dy)
    np.testing.assert_allclose(size["dx"], terms + mean_moved, rtol=1e-13)


def test_errors_are_counted_in_units():
    data = accuracy.make("normal", SMALL, "float64")
    right = _exact.reference(data.x, data.dy, data.gamma, data.beta, EPS)
    size = _exact.terms(right, data.dy, data.gamma, data.beta)
    results = {name: right[name].hi.copy() for name in _exact.RESULTS}
    assert max(_exact.units(results, right, size, "float32").values()) < 1e-8
    results["y"][3, 1] += 5 * 2.0**-24 * size["y"][3, 1]
    results["var"][2] *= 1 - 7 * 2.0**-24
    results["dx"][0, 0] = np.nan
    results["dgamma"][1] = -np.inf
    units = _exact.units(results, right, size, "float32")
    assert units["y"] == pytest.approx(5) and units["var"] == pytest.approx(7)
    assert units["dx"] == units["dgamma"] == math.inf and units["mean"] < 1e-8


def test_an_error_where_zero_is_exact_is_infinite():
    right = {"var": Pair.of(np.zeros(2))}
    for value, expected in ((0.0, 0), (1e-30, math.inf)):
        found = _exact.units({"var": np.array([0, value])}, right, {"var": np.zeros(2)}, "float32")
        assert found["var"] == expected


# The command --------------------------------------------------------------------------------------


def rows_of(output):
    """Cells by data and library, of a plain table with one dtype."""
    wide = [line for line in output.splitlines() if re.match(r".{22}\d+x\d+ ", line)]
    return {(line[:22].strip(), line[31:48].strip()): line[48:].split() for line in wide}


def test_the_table(run):
    status, output, errors = run("--dtypes", "float32", "--peers", "numpy")
    assert (status, errors) == (0, "")
    rows = rows_of(output)
    assert len(rows) == 2 * (len(accuracy.DATA) - 1)
    for (name, library), cells in rows.items():
        assert name in accuracy.DATA and library in ("cbn", "numpy") and len(cells) == 7
        if (name, library) in (("normal", "cbn"), ("mean 1e7", "cbn")):
            assert all(float(cell) <= 8 for cell in cells[:6]) and float(cells[6]) == 1
    assert "float32, u = 2^-24" in output and "float64" not in output
    for text in (cbn.__version__, np.__version__, "ISA", "bound"):
        assert text in output


def test_what_peers_lose_is_seen(run, monkeypatch):
    monkeypatch.setitem(accuracy.SHAPES, "mean 1e4", (262144, 2))
    status, output, _ = run("--dtypes", "float32", "--peers", "numpy", "--data", "mean 1e4")
    rows = rows_of(output)
    assert status == 0 and list(rows) == [("mean 1e4", "cbn"), ("mean 1e4", "numpy")]
    assert float(rows["mean 1e4", "cbn"][2]) <= 8
    assert float(rows["mean 1e4", "numpy"][6]) > 10  # the variance


def test_torch_has_a_row_for_each_number_of_threads(run):
    pytest.importorskip("torch")
    argv = ("--dtypes", "float32", "--peers", "torch", "--threads", "1,3", "--data", "normal")
    status, output, errors = run(*argv)
    assert (status, errors) == (0, "")
    libraries = [library for _, library in rows_of(output)]
    assert libraries == ["cbn", "torch, 1 thread", "torch, 3 threads"]


def test_markdown(run):
    _, output, _ = run("--peers", "none", "--markdown", "--data", "normal,mean 1e12")
    tables = [line for line in output.splitlines() if line.startswith("|")]
    assert all(line.count("|") == len(accuracy.HEAD) + 1 for line in tables)
    assert [line.split(" | ")[0] for line in tables] == [
        *("| data", "| ---", "| ", "| normal"),
        *("| data", "| ---", "| ", "| normal", "| mean 1e12"),
    ]


def test_json_has_all_figures_and_no_infinities(run, folder):
    argv = ("--peers", "numpy", "--data", "constant,normal", "--json", "a.json")
    status, output, _ = run(*argv)
    assert status == 0 and "figures: a.json" in output and os.listdir(folder) == ["a.json"]
    facts = json.loads((folder / "a.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert facts["machine"]["versions"]["numpy"] == np.__version__
    assert facts["bounds"]["float64"]["var"] == 64
    cases = {(case["data"], case["dtype"], case["library"]): case for case in facts["cases"]}
    assert len(cases) == len(facts["cases"]) == 8
    for case in cases.values():
        assert set(case["units"]) == set(_exact.RESULTS)
        assert case["shape"] == list(SMALL) and case["threads"] is None
    assert cases["normal", "float32", "cbn"]["var_ratio"] == pytest.approx(1, abs=1e-6)
    constant = cases["constant", "float32", "numpy"]
    assert None in [*constant["units"].values(), constant["var_ratio"]]


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["--dtypes", "float16"], ["--dtypes", "float32", "'float16'"]),
        (["--peers", "jax"], ["--peers", "numpy", "torch", "'jax'"]),
        (["--threads", "0"], ["--threads", "at least 1"]),
        (["--data", "nonsense"], ["--data", "random walk", "'nonsense'"]),
        (["--json", "missing/a.json"], ["--json", "cannot write", "No such file"]),
        (["normal"], ["normal"]),
    ],
)
def test_bad_options_are_refused_before_measuring(run, folder, monkeypatch, argv, texts):
    monkeypatch.setattr(accuracy, "_measure", lambda *_: pytest.fail("measured"))
    status, output, errors = run(*argv)
    assert (status, output) == (2, "")
    assert errors.count("\n") == 1 and errors.startswith("cbn")
    for text in texts:
        assert text in errors
    assert os.listdir(folder) == []


def test_a_peer_that_is_not_installed(run, monkeypatch):
    monkeypatch.setattr(PEERS["torch"], "package", "no-such-package")
    status, output, errors = run("--peers", "torch")
    assert (status, output) == (2, "") and "torch is not installed" in errors
    assert accuracy._peers("auto") == ["numpy"]


def test_too_little_memory_is_one_line(run, monkeypatch):
    def make(*_):
        raise MemoryError

    monkeypatch.setattr(accuracy, "make", make)
    status, _, errors = run()
    assert status == 2 and errors == "cbn accuracy: error: not enough memory for normal\n"


def test_the_document_has_the_table_of_this_command():
    lines = DOCUMENT.read_text("utf-8").splitlines()
    assert "cbn accuracy --markdown" in "\n".join(lines)
    assert lines.count(_tables.line(accuracy.HEAD, accuracy.WIDTHS, True)) == len(accuracy.DTYPES)
    first = {line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")}
    assert set(accuracy.DATA) <= first
