"""cbn attack: its table, its exit status and the columns that it keeps."""

from __future__ import annotations

import numpy as np
import pytest

from cbn.cli import _adversary, _exact, main
from cbn.cli.attack import of_cbn

QUICK = ("attack", "--seconds", "0.05", "--rows", "3,8")


def table(output):
    return [line.split() for line in output.splitlines() if line[:1].isdigit()]


def test_the_table_has_a_figure_for_each_result(capsys):
    assert main([*QUICK, "--dtypes", "float32,float64"]) == 0
    lines = table(capsys.readouterr().out)
    assert [line[:2] for line in lines] == [["3", "cbn"], ["8", "cbn"]] * 2
    assert all(len(line) == 2 + len(_exact.RESULTS) for line in lines)
    assert all(0 < float(cell) < 64 for line in lines for cell in line[2:])


def test_some_results_alone(capsys):
    assert main([*QUICK, "--results", "dbeta", "--markdown"]) == 0
    output = capsys.readouterr().out
    assert "|  | bound |  |  |  |  |  | 3 |" in output


def test_a_broken_bound_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(_exact, "BOUNDS_OF_FEW_ROWS", dict.fromkeys(_exact.RESULTS, 0.1))
    assert main([*QUICK, "--results", "y"]) == 1


def test_the_columns_that_are_kept_give_the_error(tmp_path, capsys):
    folder = tmp_path / "new"
    assert main([*QUICK, "--results", "dx", "--keep", str(folder)]) == 0
    (_, _, figure_3), (_, _, figure_8) = table(capsys.readouterr().out)
    for N, shown in ((3, figure_3), (8, figure_8)):
        with np.load(folder / f"cbn-float32-dx-{N}.npz") as kept:
            columns = _adversary.Columns(**kept)
        assert columns.x.shape == (N, 1)
        units = _adversary.fitness(of_cbn, columns, "dx", 1e-5)
        assert f"{units[0]:.1f}" == shown


@pytest.mark.parametrize(
    "arguments", [["--rows", "1"], ["--rows", "x"], ["--seconds", "0"], ["--dtypes", "float16"]]
)
def test_nonsense_is_an_error(arguments, capsys):
    try:
        status = main(["attack", *arguments])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert arguments[0] in capsys.readouterr().err


def test_pytorch_under_the_same_attack(capsys):
    pytest.importorskip("torch")
    assert main([*QUICK, "--library", "torch"]) == 0
    assert {line[1] for line in table(capsys.readouterr().out)} == {"torch"}
