"""cbn normalize: the result of the array in memory, of files of any size, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cases import generator, same_bytes, slow_if, within
from tolerances import y_bound

import cbn
from cbn.cli import _sinks, main
from cbn.cli._sources import pieces


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for path in filter(os.path.isfile, tmp_path.iterdir()):  # pytest would keep them for a while
        path.unlink()


@pytest.fixture
def run(capsys):
    """Run the command in this process; return its status and errors."""

    def run(*argv):
        try:
            status = main(["normalize", *map(str, argv)])
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run


def done(result):
    status, errors = result
    assert (status, errors) == (0, "")


def refused(result, *texts):
    status, errors = result
    assert status == 2 and errors.count("\n") == 1 and errors.startswith("cbn normalize: error: ")
    assert "Traceback" not in errors
    for text in texts:
        assert text in errors, errors


def data(shape, dtype=np.float32, key=0):
    return generator(shape, key).normal(100, 3, shape).astype(dtype)


def check(y, x, axis=1, factor=2, **options):
    right, cache = cbn.batch_norm_forward(x, axis=axis, **options)
    assert y.dtype == right.dtype and y.shape == right.shape
    rows, y = np.moveaxis(right, axis, -1).astype(float), np.moveaxis(y, axis, -1).astype(float)
    within(y, rows, factor * y_bound(right.dtype, None, None, rows))


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


# The same result as in memory ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4", "i4", "u1", "?"])
def test_a_file_of_one_chunk_has_the_bytes_of_the_array(run, dtype):
    x = (data((300, 7)) > 100) if dtype == "?" else data((300, 7)).astype(dtype)
    np.save("x.npy", x)
    done(run("x.npy", "-o", "y.npy", "--eps", "0.01"))
    same_bytes(np.load("y.npy"), cbn.batch_norm_forward(x, eps=0.01)[0])


SHAPES = {
    "rows": ((1000, 7), 1),
    "one row": ((1, 5), 1),
    "channels first": ((6, 900), 0),
    "images": ((7, 3, 8, 9), 1),
    "images, channels last": ((7, 8, 9, 3), -1),
    "one image": ((1, 3, 40, 50), 1),
}


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("chunk", ["4", "100", "1K", "20K", "16M"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
def test_chunks_of_any_size(run, shape, axis, chunk, order):
    if chunk == "4":
        shape = tuple(min(size, 6) for size in shape)
    x = np.asarray(data(shape), order=order)
    np.save("x.npy", x)
    done(run("x.npy", "-o", "y.npy", "--axis", axis, "--chunk", chunk))
    y = np.load("y.npy")
    assert y.flags.f_contiguous == x.flags.f_contiguous
    check(y, x, axis)


def test_float32_rows_of_several_chunks_have_the_bytes_of_the_array(run):
    # Not promised: blocks begin where those of the whole array do, and what is left is float64.
    x = data((150_000, 64))
    np.save("x.npy", x)
    done(run("x.npy", "-o", "y.npy"))
    same_bytes(np.load("y.npy"), cbn.batch_norm_forward(x)[0])


def test_threads_do_not_matter(run):
    np.save("x.npy", data((5000, 40)))
    found = []
    for threads in (1, 2, 3):
        with cbn.num_threads(threads):
            done(run("x.npy", "-o", "y.npy", "--chunk", "50K"))
        found.append(np.load("y.npy"))
    same_bytes(found[1], found[0])
    same_bytes(found[2], found[0])


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 10, 24, 25, 100, 1000])
@pytest.mark.parametrize(
    "shape", [(5, 1, 1), (1, 3, 8), (4, 3, 8), (70, 5, 1), (2, 30, 1)], ids=str
)
def test_pieces_are_all_of_the_array_in_its_order(shape, chunk):
    places = np.arange(np.prod(shape)).reshape(shape)
    found = [places[piece].reshape(-1) for piece in pieces(shape, chunk)]
    np.testing.assert_array_equal(np.concatenate(found), places.reshape(-1))
    assert max(map(len, found)) < 2 * chunk + 1 or chunk >= 32
    for piece, elements in zip(pieces(shape, chunk), found, strict=True):
        assert piece.first(shape) == elements[0] and piece.shape == places[piece].shape


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40,), (40, 5), (1, 5), (5,)], ids=str)
@pytest.mark.parametrize("order", "CF")
def test_mask(run, shape, order):
    x = data((40, 3) if shape == (40,) else (40, 5, 3))
    mask = generator("mask").random(shape) < 0.6
    x = np.asarray(np.where(mask[..., None] if len(shape) == x.ndim - 1 else True, x, np.nan), "f4")
    np.save("x.npy", np.asarray(x, order=order))
    np.save("mask.npy", mask)
    axis = x.ndim - 1
    done(run("x.npy", "-o", "y.npy", "--axis", axis, "--mask", "mask.npy", "--chunk", "200"))
    counted = np.broadcast_to(mask, x.shape[:-1])
    y, right = np.load("y.npy"), cbn.batch_norm_forward(x, axis=axis, mask=mask)[0]
    assert not y[~counted].any()
    rows = right[counted].astype(float)
    within(y[counted].astype(float), rows, 2 * y_bound(np.float32, None, None, rows))


def test_statistics_out_and_in(run):
    x, other = data((500, 6)), data((200, 6), key=1)
    np.save("x.npy", x)
    np.save("other.npy", other)
    done(run("x.npy", "--stats", "s.npz", "--chunk", "1K"))
    assert sorted(os.listdir()) == ["other.npy", "s.npz", "x.npy"]
    m = cbn.Moments.load("s.npz")
    right = cbn.Moments.from_batch(x)
    assert m.count == 500
    np.testing.assert_allclose(m.var(), right.var(), rtol=1e-6)
    done(run("other.npy", "-o", "y.npy", "--apply", "s.npz", "--chunk", "100"))
    same_bytes(np.load("y.npy"), cbn.batch_norm_normalize(other, m)[0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype(run, dtype):
    x = data((300, 4), np.float64)
    np.save("x.npy", x)
    done(run("x.npy", "-o", "y.npy", "--dtype", dtype))
    same_bytes(np.load("y.npy"), cbn.batch_norm_forward(x.astype(dtype))[0])


def test_in_place(run, folder):
    x = data((300, 4))
    np.save("x.npy", x)
    os.chmod("x.npy", 0o640)
    os.symlink("x.npy", "link.npy")
    done(run("link.npy", "--in-place"))
    same_bytes(np.load("x.npy"), cbn.batch_norm_forward(x)[0])
    assert os.path.islink("link.npy") and os.stat("x.npy").st_mode & 0o777 == 0o640
    done(run("x.npy", "-o", folder / "x.npy", "--in-place"))


def test_a_new_file_has_the_usual_permissions(run):
    np.save("x.npy", data((30, 4)))
    done(run("x.npy", "-o", "y.npy"))
    assert os.stat("y.npy").st_mode == os.stat("x.npy").st_mode


# Other formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(run, save):
    x = data((500, 6))
    save("x.npz", x=x, other=np.zeros(3))
    done(run("x.npz", "--member", "x", "-o", "y.npz", "--chunk", "1K"))
    with np.load("y.npz") as arrays:
        assert list(arrays) == ["x"]
        check(arrays["x"], x)
    refused(run("x.npz", "-o", "y.npz"), "--member", "x, other")
    refused(run("x.npz", "--member", "z", "-o", "y.npz"), "--member", "x, other", "z")
    np.save("x.npy", x)
    refused(run("x.npy", "--member", "x", "-o", "y.npz"), "--member", ".npz")
    done(run("y.npz", "-o", "y.npy"))


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("names", [["a", "b b", "c"], None])
@pytest.mark.parametrize("axis", [0, 1])
def test_text(run, suffix, delimiter, names, axis, monkeypatch):
    monkeypatch.setattr("cbn.cli._sources.TEXT_BYTES", 1000)
    x = data((200, 3), np.float64)
    header = delimiter.join(names or [])
    np.savetxt(f"x.{suffix}", x, fmt="%.17g", delimiter=delimiter, header=header, comments="")
    done(run(f"x.{suffix}", "-o", f"y.{suffix}", "--axis", axis))
    with open(f"y.{suffix}") as file:
        assert (file.readline().strip("\n") == header) is (names is not None)
    y = np.loadtxt(f"y.{suffix}", delimiter=delimiter, skiprows=int(names is not None))
    check(y, x, axis)
    done(run(f"x.{suffix}", "-o", "y.npy", "--dtype", "float32"))
    check(np.load("y.npy"), x.astype("f4"))


def test_text_as_programs_write_it(run, folder):
    (folder / "x.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1, 2\r\n\r\n3e0,4\r\n5,9")
    done(run("x.csv", "-o", "y.npy"))
    check(np.load("y.npy"), np.array([[1.0, 2], [3, 4], [5, 9]]))


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"1,2\n3,x\n", ["lines 1 to 2", "x"]),
        (b"1,2\n3\n", ["lines 1 to 2"]),
        (b"1,2\n3,\n", ["lines 1 to 2"]),
        (b"a,b\n1,2,3\n", ["expected 2 columns, got 3"]),
        (b"a,b\n", ["expected at least one value"]),
        (b"", ["expected at least one value"]),
        (b"\xff\xfe1", ["can't decode"]),
    ],
)
def test_text_that_is_no_table(run, folder, content, texts):
    (folder / "x.csv").write_bytes(content)
    refused(run("x.csv", "-o", "y.npy"), "cannot read 'x.csv'", *texts)
    assert os.listdir() == ["x.csv"]


def test_parquet(run):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install --group parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    x = data((300, 3))
    columns = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2]}
    parquet.write_table(pyarrow.table(columns), "x.parquet")
    done(run("x.parquet", "-o", "y.parquet", "--chunk", "1K"))
    table = parquet.read_table("y.parquet")
    assert table.column_names == ["a", "b", "c"]
    check(np.stack([column.to_numpy() for column in table.columns], axis=1), x)
    done(run("y.parquet", "-o", "y.csv"))
    parquet.write_table(pyarrow.table({"a": ["x", "y"]}), "x.parquet")
    refused(run("x.parquet", "-o", "y.npy"), "expected numbers")
    parquet.write_table(pyarrow.table({"a": [1.0, None]}), "x.parquet")
    refused(run("x.parquet", "-o", "y.npy"), "column a", "missing values")
    with open("x.parquet", "wb") as file:
        file.write(b"nonsense")
    refused(run("x.parquet", "-o", "y.npy"), "cannot read 'x.parquet'")


def test_without_pyarrow_the_error_names_the_extra(run, monkeypatch):
    np.save("x.npy", data((30, 4)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(run("x.npy", "-o", "y.parquet"), 'pip install "cbn[parquet]"')
    with open("x.parquet", "wb") as file:
        file.write(b"PAR1")
    refused(run("x.parquet", "-o", "y.npy"), 'pip install "cbn[parquet]"')


# Mistakes -----------------------------------------------------------------------------------------


def test_bad_options(run):
    np.save("x.npy", data((30, 4)))
    np.save("images.npy", data((3, 4, 5)))
    np.save("mask.npy", np.ones(30))
    np.save("short.npy", np.ones(3, bool))
    np.save("none.npy", np.zeros(30, bool))
    cbn.Moments.from_batch(data((9, 3))).save("three.npz")
    cbn.Moments(0, np.zeros(4), np.zeros(4)).save("nothing.npz")
    os.link("x.npy", "hard.npy")
    os.mkdir("folder.npy")
    before = sorted(os.listdir())
    out = "-o", "y.npy"
    refused(run("x.npy"), "--output", "--in-place", "--stats")
    refused(run("x.npy", "-o", "./x.npy"), "--in-place")
    refused(run("x.npy", "-o", "hard.npy"), "--in-place")
    refused(run("x.npy", *out, "--in-place"), "--in-place", "y.npy")
    refused(run("x.npy", *out, "--stats", "x.npy"), "--stats")
    refused(run("x.npy", "-o", "y.txt"), "--output", ".npy", "y.txt")
    refused(run("x.npy", "-o", "folder.npy"), "cannot write 'folder.npy'")
    refused(run("x.npy", "-o", "nowhere/y.npy"), "cannot write", "No such file")
    refused(run("images.npy", *out), "--axis", "(3, 4, 5)")
    refused(run("images.npy", "-o", "y.csv", "--axis", 1), "--output", "3 dimensions")
    refused(run("x.npy", *out, "--axis", 2), "--axis", "2")
    refused(run("x.npy", *out, "--eps", -1), "--eps", "-1")
    refused(run("x.npy", *out, "--eps", "nan"), "--eps", "nan")
    refused(run("x.npy", *out, "--mask", "mask.npy"), "--mask", "bool", "float64")
    refused(run("x.npy", *out, "--mask", "short.npy"), "--mask", "short.npy")
    refused(run("x.npy", *out, "--mask", "none.npy"), "--mask", "at least one True")
    refused(run("x.npy", *out, "--mask", "missing.npy"), "--mask", "No such file")
    refused(run("x.npy", *out, "--apply", "three.npz"), "--apply", "4 channels, got 3")
    refused(run("x.npy", *out, "--apply", "nothing.npz"), "--apply", "count")
    refused(run("x.npy", *out, "--apply", "x.npy"), "--apply", "expected an .npz file")
    refused(run("x.npy", *out, "--apply", "missing.npz"), "--apply", "No such file")
    for size in ("0", "-1", "x", "1.5", "3T", ""):
        status, errors = run("x.npy", *out, "--chunk", size)
        assert status == 2 and "--chunk" in errors and errors.count("\n") == 1
    refused(run("x.npy", "-o", "y.csv", "--chunk", "4"), "--chunk", "4 columns")
    assert sorted(os.listdir()) == before


class Unpickled:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_files_that_cannot_be_read(run, folder):
    def bad(name, *texts):
        refused(run(name, "-o", "y.npy"), f"cannot read {name!r}", *texts)

    bad("missing.npy", "No such file")
    bad(".", "directory")
    (folder / "x.npy").write_bytes(b"")
    bad("x.npy", "expected a .npy file")
    (folder / "x.npy").write_bytes(b"\x93NUMPY\x09\x00")
    bad("x.npy", "version")
    (folder / "x.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': nonsens")
    bad("x.npy")
    np.save("x.npy", np.array([[Unpickled()]]), allow_pickle=True)
    bad("x.npy", "expected numbers", "object")
    (folder / "x.npy").write_bytes(pickle.dumps(Unpickled()))
    bad("x.npy", "expected a .npy file")
    assert not os.path.exists("unpickled")
    for values in (np.ones((3, 2), complex), np.array([["a"]]), np.ones((2, 2), "M8[s]")):
        np.save("x.npy", values)
        bad("x.npy", "expected numbers")
    np.save("x.npy", np.ones((0, 2)))
    bad("x.npy", "at least one value")
    np.save("x.npy", np.ones(5))
    refused(run("x.npy", "-o", "y.npy"), "at least 2 dimensions", "(5,)")
    np.save("x.npy", data((1000, 3)))
    os.truncate("x.npy", 9000)
    bad("x.npy", "truncated", "12128", "9000")
    np.savez_compressed("x.npz", x=data((5000, 3)))
    raw = (folder / "x.npz").read_bytes()
    (folder / "x.npz").write_bytes(raw[: len(raw) // 2])
    bad("x.npz")
    spoilt = bytearray(raw)
    spoilt[len(raw) // 2] ^= 255
    (folder / "x.npz").write_bytes(spoilt)
    bad("x.npz")
    assert sorted(os.listdir()) == ["x.npy", "x.npz"]


def test_a_file_that_shrinks_meanwhile(run, monkeypatch):
    np.save("x.npy", data((1000, 3)))
    from cbn.cli import normalize

    monkeypatch.setattr(
        normalize, "_bar", lambda total: os.truncate("x.npy", 900) or normalize._NoBar()
    )
    refused(run("x.npy", "-o", "y.npy"), "cannot read 'x.npy'", "shorter")
    assert os.listdir() == ["x.npy"]


# Interruptions ------------------------------------------------------------------------------------


USUAL = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


@contextlib.contextmanager
def usual_signals():
    """Tests in the background, or under nohup, ignore signals, and a process inherits that."""
    inherited = {number: signal.signal(number, usual) for number, usual in USUAL.items()}
    try:
        yield
    finally:
        for number, handler in inherited.items():
            signal.signal(number, handler)


def command(*argv, before=()):
    with usual_signals():
        return subprocess.Popen(
            [*before, sys.executable, "-m", "cbn", "normalize", *argv],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )


def test_a_full_disk(folder):
    np.save("x.npy", data((100_000, 3)))
    (folder / "y.npy").write_bytes(b"old")

    # by the command itself: to fork with threads of other libraries around is to ask for warnings
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2)"
    before = (sys.executable, "-c", f"{limit}; os.execv(sys.argv[1], sys.argv[1:])")
    process = command("x.npy", "-o", "y.npy", before=before)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors == "cbn normalize: error: cannot write 'y.npy': File too large\n"
    assert (folder / "y.npy").read_bytes() == b"old" and not left_over(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="where space is reserved")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_space_is_reserved(folder, run, monkeypatch, number):
    np.save("x.npy", data((100, 3)))
    sizes = []

    def reserve(fd, offset, size):
        sizes.append(size)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    result = run("x.npy", "-o", "y.npy")
    assert sizes == [os.path.getsize("x.npy")] and not left_over(folder)
    if number == errno.ENOSPC:
        refused(result, "cannot write 'y.npy': No space left on device")
    else:
        done(result)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_waits_while_a_lock_may_be_taken(number, error):
    reached = []
    with usual_signals():
        with pytest.raises(error), _sinks.stoppable():
            with _sinks.signals_held():
                os.kill(os.getpid(), number)
                time.sleep(0.01)
                reached.append("the end of the block")
            reached.append("what comes after it")
        assert signal.getsignal(number) is USUAL[number]
    assert reached == ["the end of the block"]


def test_a_signal_that_is_ignored_stays_ignored():
    with usual_signals():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with _sinks.stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("old", slow_if(bool, [None, b"old"]))
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_stopped_in_the_middle(folder, number, status, old):
    np.save("x.npy", data((300_000, 3)))
    if old:
        (folder / "y.npy").write_bytes(old)
    process = command("x.npy", "-o", "y.npy", "--chunk", "300")  # takes a minute
    deadline = time.monotonic() + 30
    while not left_over(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert os.path.exists("y.npy") is (old is not None)
    if old:
        assert (folder / "y.npy").read_bytes() == old
    assert bool(left_over(folder)) is (number == signal.SIGKILL)
