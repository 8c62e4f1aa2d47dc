"""cbn bench: the floor streams, every contender computes the same, figures add up. No timing."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from cases import slow_if

import cbn
from cbn import _floor, reference
from cbn.cli import _bench_report, bench, main
from cbn.cli._bench_report import Result
from cbn.cli._contenders import EPS, OPS, Case, Cbn, Data, Floor
from cbn.cli._peers import PEERS

QUICK = ("--repeat", "2", "--seconds", "0", "--peers", "numpy")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "SLICE", 0)
    monkeypatch.setattr(bench, "_settle", lambda: None)
    monkeypatch.setattr(bench.gc, "collect", lambda: 0)  # takes longer than all calls of a case
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run cbn bench in this process; return its status, output and errors."""

    def run(*argv):
        try:
            status = main(["bench", *argv])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def jax_as_it_was():
    """Its contender turns float64 on for the whole process."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)


# The floor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("non_temporal", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("size", [0, 1, 15, 64, 65, 127, 1000, 4096, 100_003])
def test_the_floor_reads_and_writes_all_and_no_more(size, threads, non_temporal):
    rng = np.random.default_rng(size)
    for start in (0, 1, 16, 63):
        a, b, out = rng.integers(256, size=(3, size + 128), dtype=np.uint8)
        inside, untouched = slice(start, start + size), out.copy()
        for inputs, expected in (([a], a), ([a, b], a ^ b)):
            views = [array[inside] for array in (out, *inputs)]
            _floor.stream(*views, threads=threads, non_temporal=non_temporal)
            untouched[inside] = expected[inside]
            np.testing.assert_array_equal(out, untouched)


def test_the_floor_refuses_sizes_that_differ_and_no_threads():
    a = np.zeros(10, np.uint8)
    for arrays in ([a, a[1:]], [a[1:], a], [a, a, a[1:]]):
        with pytest.raises(ValueError, match="bytes"):
            _floor.stream(*arrays)
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        _floor.stream(a, a.copy(), threads=0)


# The contenders -----------------------------------------------------------------------------------


def as_rows(array, axis):
    """N x D of an array with channels at the axis; of a number a channel, itself."""
    array = np.asarray(array)
    if array.ndim < 3:
        return array
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


CASES = (
    Case((7, 3), "", "float32"),
    Case((300, 600), "", "float32"),
    Case((600, 5), "", "float64"),
    Case((4, 6, 5, 7), "nchw", "float32"),
    Case((4, 6, 5, 7), "nhwc", "float32"),
    Case((20, 2, 70), "nchw", "float32"),
)


def from_reference(op, data):
    """The results of an operation in float64: y, or dx, dgamma, dbeta."""
    d = data.map(lambda array: as_rows(array, data.axis))
    if op == "forward":
        return [reference.forward(d.x, d.gamma, d.beta, EPS)[0]]
    if op == "backward":
        return reference.backward(d.dy, reference.forward(d.x, d.gamma, d.beta, EPS)[1])
    if op == "inference":
        return [reference.inference(d.x, d.mean, d.var, d.gamma, d.beta, EPS)]
    return reference.inference_backward(d.dy, d.x, d.mean, d.var, d.gamma, EPS)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["cbn", *PEERS])
def test_every_contender_computes_the_operation(name, op, fresh):
    contender = {"cbn": Cbn, **PEERS}[name]
    if contender.version() is None:
        pytest.skip(f"{name} is not installed")
    for case in CASES:
        data = Data.random(case)
        assert data.x.shape == ((4, 5, 7, 6) if case.layout == "nhwc" else case.shape)
        if not contender.takes(data):
            assert case.layout == "nchw" and name not in ("cbn", "torch")
            continue
        before = data.x.copy(), data.dy.copy()
        for call in getattr(contender(data, cbn.get_num_threads(), fresh), op)():
            data.out[:] = np.nan
            results = call()
            results = results if isinstance(results, (tuple, list)) else [results]
            # Not a statement about accuracy: peers may sum as they like.
            tolerance = 1e3 * np.finfo(case.dtype).eps
            axis = 1 if name == "torch" else data.axis
            for result, expected in zip(results, from_reference(op, data), strict=False):
                error = np.abs(as_rows(result, axis) - expected).max()
                assert error <= tolerance * np.abs(expected).max()
            assert not fresh or np.isnan(data.out).all()
            np.testing.assert_array_equal((data.x, data.dy), before)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("contender", [Cbn, PEERS["numpy"]])
def test_results_go_into_the_array_that_is_there(contender, op):
    data = Data.random(Case((20, 30), "", "float32"))
    for call in getattr(contender(data, 1, False), op)():
        data.out[:] = np.nan
        call()
        assert np.isfinite(data.out).all()


def test_the_floor_of_an_operation_reads_what_the_operation_reads():
    data = Data.random(Case((20, 30), "", "float64"))
    x, dy = data.x.view(np.uint64), data.dy.view(np.uint64)
    for op, expected in zip(OPS, (x, dy ^ x, x, dy ^ x), strict=True):
        ways = getattr(Floor(data, 2, False), op)()
        assert len(ways) == 4  # one thread and two, ordinary and non-temporal
        for call in ways:
            data.out[:] = 0
            call()
            np.testing.assert_array_equal(data.out.view(np.uint64), expected)


# The figures --------------------------------------------------------------------------------------


def result_of(shape, threads=1, one_thread=None, **samples):
    return Result.of(Case(shape, "", "float32"), "forward", threads, samples, one_thread)


def test_the_fastest_way_counts_by_its_median():
    result = result_of(
        (4, 5),
        one_thread=6.0,
        cbn=[[3.0, 1.0, 5.0]],
        floor=[[2.0, 2.0, 9.0], [1.0, 1.5, 8.0]],
        numpy=[[6.0, 6.0, 6.0]],
        torch=[[9.0, 1.0, 4.5], [7.0, 7.0, 7.0]],
    )
    assert result.seconds == {"cbn": 3.0, "floor": 1.5, "numpy": 6.0, "torch": 4.5}
    assert result.spread == {"cbn": 2 / 3, "floor": 3.5 / 1.5, "numpy": 0, "torch": 4 / 4.5}
    ratios = {"floor": 2, "1 thread": 2, "numpy": 2, "torch": 1.5, "best peer": 1.5}
    assert result.ratios == ratios and result.rounds == 3


def test_means_are_geometric_and_sizes_apart():
    results = [
        result_of((32, 64), cbn=[[1.0]], floor=[[0.5]], numpy=[[3.0]]),
        result_of((256, 1024), cbn=[[1.0]], floor=[[0.5]], numpy=[[8.0]]),
        result_of((1024, 1024), cbn=[[4.0]], floor=[[0.5]], numpy=[[8.0]]),
        result_of((2048, 2048), cbn=[[1.0]], floor=[[1.0]], numpy=[[0.5]]),
        result_of((4096, 4096), cbn=[[1.0]], floor=[[1.0]], numpy=[[1.5]]),
    ]
    summary = _bench_report.summarize(results[::-1], cache=24 << 20)
    assert [line["size"] for line in summary] == ["small", "in cache", "between", "past cache"]
    assert [line["cases"] for line in summary] == [1, 2, 1, 1]
    ratios = summary[1]["ratios"]
    assert ratios["floor"] == pytest.approx({"mean": 4, "worst": 8})
    assert ratios["numpy"] == pytest.approx({"mean": 4, "worst": 2})


def test_the_noise_is_the_spread_of_the_floor():
    quiet = result_of((3, 3), cbn=[[1.0, 2.0, 9.0]], floor=[[1.0, 1.0, 1.0]])
    loud = result_of((5, 6), cbn=[[1.0, 1.0, 1.0]], floor=[[1.0, 2.0, 3.0]])
    noise = _bench_report.noise_of([quiet, loud, quiet])
    assert noise == {"median": 0, "worst": 0.5, "worst_case": "5x6 forward float32, threads 1"}


def test_everyone_takes_a_turn_in_every_round():
    turns = []
    calls = {name: [lambda name=name: turns.append(name)] for name in "abcd"}
    samples = bench._take_turns(calls, 20, 0)
    assert {name: len(way) for name, (way,) in samples.items()} == dict.fromkeys("abcd", 20)
    rounds = [tuple(turns[i : i + 8 : 2]) for i in range(len(turns) - 160, len(turns), 8)]
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 5


# The command --------------------------------------------------------------------------------------


def test_it_prints_every_case_and_the_means(run):
    shapes, threads = ("3x5", "1x7"), ("1", "2")
    argv = ("--shapes", ",".join(shapes), "--threads", "2,1", "--dtypes", "float32,float64")
    status, output, errors = run(*argv, "--ops", ",".join(OPS), *QUICK)
    assert status == 0
    cells = [line.split() for line in output.splitlines()]
    cases = [tuple(line[:4]) for line in cells if line and line[0] in shapes]
    dtypes = ("float32", "float64")
    assert cases == [
        (s, op, dtype, n) for dtype in dtypes for s in shapes for op in OPS for n in threads
    ]
    means = [tuple(line[:5]) for line in cells if line[3:4] == ["small"]]
    assert means == [
        (op, dtype, n, "small", "2") for op in OPS for dtype in dtypes for n in threads
    ]
    assert all(
        float(cell) > 0 for line in cells if line and line[0] in shapes for cell in line[6:7]
    )
    for text in (cbn.__version__, np.__version__, "cores", "ISA", "noise:"):
        assert text in output


def test_json_has_all_figures(run, folder):
    argv = ("--shapes", "3x5,200x300", "--threads", "1,2", "--json", "a.json")
    assert run(*argv, *QUICK)[0] == 0
    assert os.listdir(folder) == ["a.json"]
    facts = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    machine = facts["machine"]
    assert machine["versions"]["numpy"] == np.__version__
    assert machine["isa"] == cbn.show_runtime(mode="dicts")["isa"]["chosen"]
    assert machine["cores"] == os.cpu_count() and machine["last_level_cache"] > 1 << 16
    assert len(facts["cases"]) == 8 and len(facts["summary"]) == 8
    for case in facts["cases"]:
        seconds, ratios = case["seconds"], case["ratios"]
        assert set(seconds) == set(case["spread"]) == {"cbn", "floor", "numpy"}
        assert all(0 < time < 10 for time in seconds.values())
        assert ratios["floor"] == pytest.approx(seconds["cbn"] / seconds["floor"])
        assert ratios["numpy"] == pytest.approx(seconds["numpy"] / seconds["cbn"])
        assert ("1 thread" in ratios) == (case["threads"] == 2)
        assert case["rounds"] >= 2
    assert facts["noise"]["worst"] >= facts["noise"]["median"] >= 0


@pytest.mark.parametrize("threads", slow_if("1".__ne__, ["1", "1,2", "2,3"]))
def test_the_picture(run, folder, threads):
    argv = ("--shapes", "3x5,2x2,64x64", "--threads", threads, "--plot", "a.png")
    status, output, _ = run(*argv, *QUICK)
    assert status == 0 and "plot: a.png" in output
    picture = matplotlib.image.imread(folder / "a.png")
    assert min(picture.shape[:2]) > 500
    for name in ("cbn", "numpy"):
        color = [int(_bench_report.COLORS[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(picture[..., :3] - color).max(axis=-1) < 0.02).sum() > 100


def test_fresh_results_and_no_peers(run):
    status, output, _ = run("--shapes", "3x5", "--fresh", *QUICK, "--peers", "none")
    assert status == 0 and "fresh arrays" in output and "x numpy" not in output


def test_threads_all_are_those_cbn_takes(run):
    with cbn.num_threads(3):
        status, output, _ = run("--shapes", "3x5", "--ops", "forward", "--threads", "all", *QUICK)
    (case,) = (line.split() for line in output.splitlines() if line.startswith("3x5"))
    assert status == 0 and case[3] == "3"


def test_without_tqdm_it_goes_on_silently(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    status, output, errors = run("--shapes", "3x5", *QUICK)
    assert (status, errors) == (0, "") and "3x5" in output


def test_positions_in_both_layouts(run):
    layouts = ("--layout", "nchw,nhwc")
    argv = ("--shapes", "2x3,4x3x5", *layouts, "--threads", "1", "--json", "a.json", *QUICK)
    status, output, _ = run(*argv, "--plot", "a.png")
    assert status == 0
    found = json.loads(Path("a.json").read_text(encoding="utf-8"))
    layouts = [
        (case["shape"], case["layout"]) for case in found["cases"] if case["op"] == "forward"
    ]
    assert layouts == [([2, 3], ""), ([4, 3, 5], "nchw"), ([4, 3, 5], "nhwc")]
    numpy = ["numpy" in case["seconds"] for case in found["cases"] if case["op"] == "forward"]
    assert numpy == [True, False, True]
    lines = [line.split() for line in output.splitlines() if line.startswith("4x3x5 nchw")]
    assert len(lines) == 2 and all(line[-1] == "-" for line in lines)
    assert matplotlib.image.imread("a.png").ndim == 3


def test_groups_of_shapes():
    for group in [*bench.GROUPS, "cache"]:
        shapes = bench._shapes(group)
        assert len(shapes) >= 5 and all(size >= 1 for shape in shapes for size in shape)
    assert bench._shapes("3x5,small,3x5")[:2] == [(3, 5), (1, 64)]
    sizes = [4 * math.prod(shape) for shape in bench._shapes("growth")]
    assert sizes[0] == pytest.approx(16 << 20, rel=0.05)
    assert sizes[-1] == pytest.approx(1 << 30, rel=0.05)


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["--shapes", "tiny"], ["--shapes", "256x1024", "growth", "'tiny'"]),
        (["--shapes", ""], ["--shapes", "''"]),
        (["--shapes", "3x5,"], ["--shapes", "''"]),
        (["--shapes", "3"], ["--shapes", "'3'"]),
        (["--shapes", "3x4x0"], ["--shapes", "'3x4x0'"]),
        (["--shapes", "2x2x2x2x2x2x2x2x2"], ["--shapes", "memory"]),
        (["--layout", "chwn"], ["--layout", "'chwn'", "nhwc"]),
        (["--shapes", "0x5"], ["--shapes", "'0x5'"]),
        (["--shapes", "3x-5"], ["--shapes", "'3x-5'"]),
        (["--shapes", "99999999999x99999999999"], ["--shapes", "memory"]),
        (["--shapes", "99999999x9999999"], ["--shapes", "memory"]),
        (["--ops", "sideways"], ["--ops", "inference_backward", "'sideways'"]),
        (["--ops", "forward,"], ["--ops", "'forward,'"]),
        (["--dtypes", "float16"], ["--dtypes", "float32", "'float16'"]),
        (["--threads", "0"], ["--threads", "at least 1", "'0'"]),
        (["--threads", "1,two"], ["--threads", "'two'"]),
        (["--peers", "tensorflow"], ["--peers", "numpy", "torch", "'tensorflow'"]),
        (["--repeat", "0"], ["--repeat", "at least 1"]),
        (["--seconds", "-1"], ["--seconds", ">= 0", "'-1'"]),
        (["--seconds", "nan"], ["--seconds", "'nan'"]),
        (["--plot", "missing/a.png"], ["--plot", "cannot write", "No such file"]),
        (["--plot", "a.nonsense"], ["--plot", ".png", "'a.nonsense'"]),
        (["--json", "missing/a.json"], ["--json", "cannot write", "No such file"]),
        (["--json", "."], ["--json", "cannot write", "directory"]),
        (["3x5"], ["3x5"]),
    ],
)
def test_bad_options_are_refused_before_measuring(run, folder, monkeypatch, argv, texts):
    monkeypatch.setattr(bench, "_take_turns", lambda *_: pytest.fail("measured"))
    status, output, errors = run(*argv)
    assert status == 2
    assert errors.splitlines()[-1].startswith("cbn") and "Traceback" not in errors
    for text in texts:
        assert text in errors
    assert os.listdir(folder) == []


def test_a_peer_that_is_not_installed(run, monkeypatch):
    monkeypatch.setattr(PEERS["torch"], "package", "no-such-package")
    status, output, errors = run("--peers", "numpy,torch")
    assert (status, output) == (2, "") and "torch is not installed" in errors
    assert "torch" not in bench._peers("auto") and "numpy" in bench._peers("auto")


def test_a_missing_matplotlib_is_named_before_measuring(run, monkeypatch):
    monkeypatch.setattr(bench, "_take_turns", lambda *_: pytest.fail("measured"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.backends.backend_agg", raising=False)
    status, output, errors = run("--plot", "a.png")
    assert (status, output) == (2, "")
    assert "matplotlib" in errors and 'pip install "cbn[demo]"' in errors
