"""The command cbn: what it prints, what it writes, its exit status, and nonsense input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points

import matplotlib.image
import numpy as np
import pytest
from cases import slow_if

import cbn
from cbn import gradcheck
from cbn.cli import demo, main

RESULTS = ["y", "dx", "dgamma", "dbeta", "y_dot", "g_dy", "g_x", "g_gamma"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run the command in this process; return its status, output and errors."""

    def run(*argv):
        try:
            status = main(argv)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def python_m_cbn(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "cbn", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def assert_one_line(errors, *texts):
    assert errors.count("\n") == 1 and errors.startswith("cbn"), errors
    assert "Traceback" not in errors
    for text in texts:
        assert text in errors


# The command --------------------------------------------------------------------------------------


def test_the_console_script_is_main():
    (script,) = entry_points(group="console_scripts", name="cbn")
    assert script.load() is main


def test_python_m_cbn():
    done = python_m_cbn("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cbn {cbn.__version__}\n", "")
    done = python_m_cbn("nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, "'nonsense'", "info", "demo", "check")


@pytest.mark.skipif(os.name == "nt", reason="such a pipe is another error there")
@pytest.mark.parametrize("argv", [["info"], ["--help"], ["info", "--help"]])
def test_a_reader_that_has_gone_is_no_traceback(argv):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cbn", *argv]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # without, argparse hides the error
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, env=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_without_a_subcommand_it_prints_help(run):
    status, output, errors = run()
    assert (status, errors) == (0, "")
    assert output == run("--help")[1]
    for command in ("info", "demo", "check"):
        assert f"\n    {command} " in output


@pytest.mark.parametrize("command", ["info", "demo", "check"])
def test_every_subcommand_has_help(run, command):
    status, output, errors = run(command, "--help")
    assert (status, errors) == (0, "") and output.startswith(f"usage: cbn {command}")


@pytest.mark.parametrize(
    "argv",
    [["--nonsense"], ["info", "extra"], ["info", "--json=1"], ["demo", "7"], ["check", "--foo"]],
)
def test_unknown_arguments(run, argv):
    status, output, errors = run(*argv)
    assert (status, output) == (2, "")
    assert_one_line(errors)


@pytest.mark.parametrize(
    "command",
    slow_if("info".__ne__, ["info", "demo", "check", "accuracy", "bench", "--version"]),
)
@pytest.mark.parametrize("variable", ["CBN_ISA", "CBN_NUM_THREADS"])
def test_a_bad_variable_is_one_line(variable, command):
    script = shutil.which("cbn", path=os.path.dirname(sys.executable))
    done = python_m_cbn(command, **{variable: "nonsense"})
    by_script = subprocess.run(
        [script, command],
        capture_output=True,
        text=True,
        env=os.environ | {variable: "nonsense"},
    )
    assert (by_script.returncode, by_script.stderr) == (done.returncode, done.stderr)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, f"cbn: error: {variable}: expected", "got 'nonsense'")


# cbn info -----------------------------------------------------------------------------------------


def test_info_names_the_build_and_the_runtime(run):
    status, output, errors = run("info")
    runtime, config = cbn.show_runtime(mode="dicts"), cbn.show_config(mode="dicts")
    assert (status, errors) == (0, "")
    lines = {line[:12].strip(): line[12:].strip() for line in output.splitlines()}
    assert lines["cbn"] == cbn.__version__
    assert lines["compiler"] == config["compiler"]["version"]
    assert lines["threads"] == str(cbn.get_num_threads())
    assert lines["ISA built"] == ", ".join(runtime["isa"]["built"])
    assert lines["ISA found"] == ", ".join(runtime["isa"]["supported"])
    assert lines["ISA chosen"] == runtime["isa"]["chosen"]
    assert ("not in this build" in lines["OpenMP"]) != runtime["openmp"]["enabled"]


def test_info_json_is_json_and_nothing_else():
    done = python_m_cbn("info", "--json", CBN_ISA="baseline", CBN_NUM_THREADS="3")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["version"] == cbn.__version__
    assert facts["threads"] == 3
    assert facts["isa"]["chosen"] == "baseline"
    assert facts["environment"]["CBN_ISA"] == "baseline"
    for key, values in cbn.show_config(mode="dicts").items():
        assert key in facts
        if isinstance(values, dict):
            assert facts[key].items() >= values.items()


# cbn demo -----------------------------------------------------------------------------------------


def table(output):
    """The closing table: per net its steps to 90 % (None if not reached) and final accuracy."""
    rows = {}
    for line in output.splitlines():
        for name in ("without batch norm", "with batch norm"):
            if line.startswith(f"{name} "):
                cells = line.removeprefix(name).replace("not reached", "-").split()
                steps = None if cells[0] == "-" else int(cells[0])
                rows[name] = steps, float(cells[1].rstrip("%"))
    return rows


def pixels(picture, color):
    """How many pixels of a picture have nearly the color, per column."""
    wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return (np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.02).sum(axis=0)


def test_demo_batch_norm_trains_faster_and_draws_it(run, folder):
    status, output, errors = run("demo", "--steps", "300", "--seed", "1")
    assert status == 0
    rows = table(output)
    steps, accuracy = rows["with batch norm"]
    slow_steps, slow_accuracy = rows["without batch norm"]
    assert steps <= 150 and accuracy > 93
    assert slow_steps is None or slow_steps > 2 * steps
    assert accuracy > slow_accuracy
    assert "300/300" in errors and "test accuracy" in errors

    picture = matplotlib.image.imread(folder / "cbn-demo.png")
    height, width = picture.shape[:2]
    assert height >= 500 and width >= 1000
    left = picture[:, : width // 2]
    for color in demo.COLORS:
        assert (pixels(left, color) > 0).mean() > 0.5
    white = (picture[..., :3] == 1).all(axis=-1).mean()
    assert 0.5 < white < 0.97


@pytest.mark.slow
def test_demo_s_answer_does_not_depend_on_the_threads(run, folder):
    for threads in ("1", "2"):
        argv = ("--steps", "30", "--threads", threads, "--plot", f"{threads}.png")
        assert run("demo", *argv)[0] == 0
    assert (folder / "1.png").read_bytes() == (folder / "2.png").read_bytes()


@pytest.mark.slow
def test_demo_s_seed_changes_the_run(run, folder):
    for seed in ("0", "1"):
        assert run("demo", "--steps", "5", "--seed", seed, "--plot", f"{seed}.png")[0] == 0
    assert (folder / "0.png").read_bytes() != (folder / "1.png").read_bytes()


def test_demo_takes_one_step_and_other_formats(run, folder):
    status, output, _ = run("demo", "--steps", "1", "--plot", "one.svg")
    assert status == 0 and "plot: one.svg" in output
    assert table(output)["with batch norm"][0] is None
    assert (folder / "one.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert os.listdir(folder) == ["one.svg"]


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["--steps", "0"], ["--steps", "at least 1", "'0'"]),
        (["--steps", "-3"], ["--steps", "at least 1", "'-3'"]),
        (["--steps", "1.5"], ["--steps", "'1.5'"]),
        (["--threads", "0"], ["--threads", "at least 1", "'0'"]),
        (["--threads", "many"], ["--threads", "'many'"]),
        (["--seed", "-1"], ["--seed", "at least 0", "'-1'"]),
        (["--plot", "missing/a.png"], ["--plot", "cannot write", "No such file"]),
        (["--plot", "folder.png"], ["--plot", "cannot write", "directory"]),
        (["--plot", "a.nonsense"], ["--plot", ".png", "'a.nonsense'"]),
        (["--plot", "a"], ["--plot", ".png", "'a'"]),
        (["--plot", ""], ["--plot", ".png"]),
    ],
)
def test_demo_refuses_bad_options_before_training(run, folder, monkeypatch, argv, texts):
    monkeypatch.setattr(demo, "_train", lambda *_: pytest.fail("trained"))
    (folder / "folder.png").mkdir()
    status, output, errors = run("demo", *argv)
    assert (status, output) == (2, "")
    assert_one_line(errors, "cbn demo: error:", *texts)
    assert os.listdir(folder) == ["folder.png"]


@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "tqdm"])
def test_demo_names_the_extra_of_a_missing_package(run, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    status, output, errors = run("demo")
    assert (status, output) == (2, "")
    assert_one_line(errors, package, 'pip install "cbn[demo]"')


def test_an_interrupt_is_no_traceback(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_train", interrupt)
    status, _, errors = run("demo")
    assert status == 130
    assert_one_line(errors, "interrupted")


# cbn check ----------------------------------------------------------------------------------------


def outcomes(output):
    """The table of a check: for every result whether it passed."""
    words = [line.split() for line in output.splitlines()]
    return {line[-5]: line[-1] for line in words if line[-1] in ("pass", "FAIL") and len(line) > 5}


@pytest.mark.parametrize(
    ("argv", "title"),
    [
        ([], "64x32, float32, axis 1, eps 1e-05, seed 0"),
        (["--dtype", "float64", "--seed", "7"], "64x32, float64, axis 1, eps 1e-05, seed 7"),
        (["--shape", "8x3x5x5", "--axis", "1"], "8x3x5x5, float32, axis 1"),
        (["--shape", "8x5x3", "--axis", "-1", "--dtype", "float16"], "8x5x3, float16, axis 2"),
        (["--shape", "2x3", "--eps", "0"], "2x3, float32, axis 1, eps 0"),
        (["--shape", "1x1"], "1x1, float32"),
        (["--shape", "150x100", "--probes", "2"], "150x100, float32"),
    ],
)
def test_check_passes(run, argv, title):
    status, output, errors = run("check", *argv)
    assert (status, errors) == (0, "")
    assert title in output.splitlines()[0]
    assert outcomes(output) == dict.fromkeys(RESULTS, "pass")


def test_check_reports_a_wrong_gradient(run, monkeypatch):
    right = cbn.batch_norm_backward

    def wrong(dy, cache):
        dx, dgamma, dbeta = right(dy, cache)
        return dx, dgamma * dgamma.dtype.type(1.001), dbeta

    monkeypatch.setattr(cbn, "batch_norm_backward", wrong)
    status, output, errors = run("check", "--shape", "9x4")
    assert (status, errors) == (1, "")
    assert outcomes(output)["dgamma"] == "FAIL"
    assert outcomes(output)["dx"] == "pass"
    assert output.splitlines()[-1].startswith("failed: dgamma")


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "f2", "i4", "?"])
def test_check_reads_the_caller_s_numbers(run, dtype):
    x = 3 * np.random.default_rng(0).normal(size=(20, 4))
    np.save("x.npy", (x > 0 if dtype == "?" else x).astype(dtype))
    status, output, _ = run("check", "--input", "x.npy")
    assert status == 0
    assert f"20x4, {np.dtype(dtype)}, axis 1" in output.splitlines()[0]
    status, output, _ = run("check", "--input", "x.npy", "--dtype", "float64")
    assert status == 0 and "float64" in output.splitlines()[0]


FILES = {
    "objects": np.array([[None, 1]], object),
    "complex": np.ones((3, 2)) * 1j,
    "text": np.array([["1", "2"]]),
    "records": np.zeros((2, 2), [("a", "f8")]),
    "nan": np.array([[1, np.nan], [2, 3]]),
    "vector": np.ones(3),
    "scalar": np.array(3.0),
    "no rows": np.ones((0, 3)),
    "three": np.ones((2, 3, 4)),
    "constant": np.ones((4, 3)),
}


@pytest.mark.parametrize(
    ("name", "argv", "text"),
    [
        ("objects", [], "Object arrays cannot be loaded"),
        ("complex", [], "x: expected a real dtype"),
        ("complex", ["--dtype", "float32"], "x: expected a real dtype"),
        ("text", ["--dtype", "float32"], "x: expected a real dtype"),
        ("records", [], "x: expected a real dtype"),
        ("nan", [], "x: expected finite"),
        ("vector", [], "x: expected at least 2 dimensions"),
        ("scalar", [], "x: expected at least 2 dimensions"),
        ("no rows", [], "x: expected at least one value per channel"),
        ("three", [], "axis: expected the channel axis"),
        ("three", ["--axis", "3"], "axis: expected -3 to 2"),
        ("constant", ["--eps", "0"], "channel 0 is constant"),
    ],
)
def test_check_refuses_arrays_it_cannot_check(run, name, argv, text):
    np.save("x.npy", FILES[name], allow_pickle=True)
    status, output, errors = run("check", "--input", "x.npy", *argv)
    assert (status, output) == (2, "")
    assert_one_line(errors, "cbn check: error:", text)


def test_check_refuses_files_that_are_no_arrays(run, folder):
    (folder / "empty.npy").touch()
    (folder / "text.npy").write_text("1 2 3\n")
    np.savez("archive.npz", x=np.ones((3, 2)))
    np.save("whole.npy", np.ones((30, 2)))
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:300])
    for name, text in {
        "missing.npy": "No such file",
        ".": "directory",
        "empty.npy": "expected a .npy file",
        "text.npy": "expected a .npy file",
        "archive.npz": "expected a .npy file",
        "cut.npy": "cannot read",
    }.items():
        status, output, errors = run("check", "--input", name)
        assert (status, output) == (2, "")
        assert_one_line(errors, "--input", repr(name), text)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--shape", "64"], "x: expected at least 2 dimensions"),
        (["--shape", "0x3"], "x: expected at least one value per channel"),
        (["--shape", "3 x 4 x"], "--shape"),
        (["--shape", "axb"], "--shape"),
        (["--shape=-3x4"], "--shape"),
        (["--shape", ""], "--shape"),
        (["--shape", "99999999x99999999"], ""),
        (["--shape", "9x9x9"], "axis: expected the channel axis"),
        (["--axis", "5"], "axis: expected -2 to 1"),
        (["--axis", "x"], "--axis"),
        (["--eps", "-1"], "eps: expected a finite number >= 0"),
        (["--eps", "nan"], "eps: expected a finite number >= 0"),
        (["--eps", "small"], "--eps"),
        (["--dtype", "int8"], "--dtype"),
        (["--seed", "-1"], "--seed"),
        (["--probes", "0"], "--probes"),
        (["--shape", "2x2", "--input", "x.npy"], "not allowed with"),
    ],
)
def test_check_refuses_bad_options(run, argv, text):
    status, output, errors = run("check", *argv)
    assert (status, output) == (2, "")
    assert_one_line(errors, "cbn check: error:", text)


def test_check_names_what_brings_a_missing_scipy(run, monkeypatch):
    monkeypatch.delitem(sys.modules, gradcheck.__name__)
    monkeypatch.delattr(cbn, "gradcheck")
    monkeypatch.setitem(sys.modules, "scipy.differentiate", None)
    status, output, errors = run("check")
    assert (status, output) == (2, "")
    assert_one_line(errors, "scipy", 'pip install "cbn[check]"')


def test_a_command_loads_no_other_one():
    code = (
        "import sys; from cbn.cli import main\n"
        "try: main(['info', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('cbn.cli.')], file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert eval(process.stderr) == ["cbn.cli._options", "cbn.cli.info"]
