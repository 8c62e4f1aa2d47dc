"""What the process around a call does: fork, threads, signals' registers, other OpenMP runtimes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import Batch, everything, same_bytes

import cbn

OPENMP = cbn.show_runtime("dicts")["openmp"]["enabled"]
SRC_C = Path(__file__).resolve().parents[2] / "src_c"
linux = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library or reads /proc")
openmp = pytest.mark.skipif(not OPENMP, reason="a build without OpenMP")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


# Fork ---------------------------------------------------------------------------------------------

FORK = """
import os
import signal
import numpy as np
import cbn

rng = np.random.default_rng(0)
x, dy = rng.normal(3, 1, (2, 1000, 100))
images = rng.normal(3, 1, (4, 16, 30, 30)).astype(np.float32)

def compute():
    y, cache = cbn.batch_norm_forward(x, num_threads=4)
    planes, _ = cbn.batch_norm_forward(images, axis=1, num_threads=4)
    dx, _, _ = cbn.batch_norm_backward(dy, cache, num_threads=4)
    return y.tobytes() + dx.tobytes() + planes.tobytes()

expected = compute()
for round in range(200):
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        os._exit(0 if compute() == expected else 1)
    status = os.waitpid(child, 0)[1]
    assert status == 0, (round, status)
    if round % 20 == 0:
        assert compute() == expected  # the parent's threads are there again
print("done")
"""


@pytest.mark.slow
@forks
def test_fork_after_a_parallel_call_200_times(run_python):
    run = run_python("-W", "ignore", "-c", FORK)
    assert run.stdout.split() == ["done"], run.stderr


MULTIPROCESSING = """
import multiprocessing
import numpy as np
import cbn

x = np.random.default_rng(0).normal(3, 1, (3000, 100))

def work(_):
    return cbn.batch_norm_forward(x, num_threads=4)[0].tobytes()

expected = work(0)
with multiprocessing.get_context("fork").Pool(4) as pool:
    results = pool.map_async(work, range(16)).get(timeout=60)
assert len(results) == 16 and set(results) == {expected}
assert work(0) == expected
print("done")
"""


@forks
def test_multiprocessing_with_fork(run_python):
    run = run_python("-W", "ignore", "-c", MULTIPROCESSING)
    assert run.stdout.split() == ["done"], run.stderr


FORK_BESIDE_UPDATES = """
import os
import signal
import sys
import threading
import numpy as np
import cbn

sys.setswitchinterval(1e-6)
bn, x = cbn.BatchNorm(5), np.random.default_rng(0).normal(size=(20, 5))
done = threading.Event()

def train():
    while not done.is_set():
        bn(x)

thread = threading.Thread(target=train, daemon=True)
thread.start()
for _ in range(50):
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        batches = bn.num_batches_tracked
        bn(x)
        os._exit(0 if bn.num_batches_tracked == batches + 1 else 1)
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
done.set()
thread.join()
print("done")
"""


LATE_IMPORTS = """
import sys
import numpy as np
import cbn
x = np.random.default_rng(0).normal(size=(20, 5))
before = set(sys.modules)
bn = cbn.BatchNorm(5)
bn(x)
bn.backward(x)
bn.eval()(x)
cbn.batch_norm_forward(x[:, :, None], axis=1, mask=np.ones((20, 1), bool), out=x[:, :, None])
print(*(set(sys.modules) - before))
"""


def test_calls_import_nothing(run_python):
    """A child forked while another thread imports waits for the module's lock for ever."""
    run = run_python("-c", LATE_IMPORTS)
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr


@forks
def test_fork_while_a_thread_updates_a_layer(run_python):
    run = run_python("-W", "ignore", "-c", FORK_BESIDE_UPDATES)
    assert run.stdout.split() == ["done"], run.stderr


# Threads ------------------------------------------------------------------------------------------

REGIONS = """
import ctypes
import numpy as np
import cbn

regions = ctypes.c_int.in_dll(ctypes.CDLL(None), "cbn_parallel_regions")
x = np.random.default_rng(0).normal(size=(4000, 300))
images = x.reshape(4, 300, 1000).astype(np.float32)

def all_functions(**threads):
    y, cache = cbn.batch_norm_forward(x, **threads)
    cbn.batch_norm_backward(y, cache, **threads)
    cbn.batch_norm_inference(x, cache.mean, cache.var, **threads)
    cbn.batch_norm_inference_backward(y, x, cache.mean, cache.var, **threads)
    cbn.batch_norm_jvp(y, cache, **threads)
    cbn.batch_norm_double_backward(y, y, cache, **threads)
    cbn.batch_norm_forward(images, axis=1, **threads)
    cbn.batch_norm_forward(x, mask=np.arange(4000) > 5, activation="relu", **threads)
    cbn.Moments.from_batch(x, **threads)

all_functions(num_threads=1)
with cbn.num_threads(1):
    all_functions()
cbn.batch_norm_forward(x[:50, :50], num_threads=16)
print(regions.value, end=" ", flush=True)
all_functions(num_threads=2)
print(regions.value)
"""


@linux
@openmp
def test_a_call_with_one_thread_never_enters_openmp(run_python, shim):
    run = run_python("-c", REGIONS, LD_PRELOAD=shim("threads"))
    assert run.returncode == 0, run.stderr
    alone, together = map(int, run.stdout.split())
    assert alone == 0 and together >= 9


@linux
@openmp
def test_where_no_thread_can_be_created(run_python, shim):
    """One thread works; for more of them libgomp ends the process, as the documentation says."""
    run = run_python(
        *("-c", REGIONS),
        LD_PRELOAD=shim("threads"),
        CBN_NO_NEW_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
    )
    assert run.stdout.split() == ["0"]
    assert run.returncode != 0 and "libgomp: Thread creation failed" in run.stderr


def test_eight_python_threads_on_one_read_only_input():
    b = Batch((3000, 40), np.float32)
    for array in vars(b).values():
        array.flags.writeable = False
    expected = everything(b, num_threads=1)
    start = threading.Barrier(8)

    def work(threads):
        start.wait()
        return [everything(b, num_threads=threads) for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, [1, 2, 3, 1, 2, 3, 1, 2]))
    assert len(found) == 8
    for results in found:
        for each in results:
            same_bytes(each, expected)


@pytest.mark.parametrize("shape, axis", [((300_000, 16), 1), ((8, 64, 100, 100), 1)])
def test_the_gil_is_released_during_large_work(shape, axis):
    """Another thread runs in the midst of every large call, though nobody makes way on request."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    y, cache = cbn.batch_norm_forward(x, axis=axis)
    m, options = cbn.Moments.from_batch(x, axis=axis), {"axis": axis, "num_threads": 1}
    calls = [
        lambda: cbn.batch_norm_forward(x, out=y, **options),
        lambda: cbn.batch_norm_backward(x, cache, out=y, num_threads=1),
        lambda: cbn.batch_norm_inference(x, m.mean, m.var(), out=y, **options),
        lambda: cbn.batch_norm_inference_backward(x, x, m.mean, m.var(), out=y, **options),
        lambda: cbn.Moments.from_batch(x, **options),
    ]
    interval = sys.getswitchinterval()
    for call in calls:
        gate, ran = threading.Lock(), []
        gate.acquire()

        def other(gate=gate, ran=ran):
            with gate:
                ran.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.05)  # until it waits at the gate
        sys.setswitchinterval(1000)
        try:
            gate.release()
            assert not ran
            for _ in range(500):  # a busy machine may have no processor for it at once
                call()
                if ran:
                    break
            assert ran
        finally:
            sys.setswitchinterval(interval)
            thread.join()


def test_another_thread_writes_the_input():
    """Values are anybody's guess then, but nothing outside the results is touched."""
    shape, pad = (2000, 30), 64
    room = np.full(shape[0] * shape[1] + 2 * pad, 7, np.float32)
    out = room[pad:-pad].reshape(shape)
    b, done = Batch(shape, np.float32), threading.Event()
    b.gamma, b.beta = np.ones(30, np.float32), np.zeros(30, np.float32)
    values = [b.x.copy(), np.full(shape, np.nan, np.float32), np.full(shape, 1e38, np.float32)]

    def write():
        while not done.is_set():
            for value in values:
                b.x[...] = value
                b.gamma[...] = value[0]
                b.mask = None

    thread = threading.Thread(target=write)
    thread.start()
    bn = cbn.BatchNorm(30)
    try:
        for threads in (1, 2) * 100:
            with np.errstate(all="ignore"):
                y, cache = cbn.batch_norm_forward(
                    b.x, b.gamma, b.beta, out=out, num_threads=threads
                )
                cbn.batch_norm_backward(b.dy, cache, out=out, num_threads=threads)
                bn(b.x)
            assert y is out and np.all(room[:pad] == 7) and np.all(room[-pad:] == 7)
    finally:
        done.set()
        thread.join()
    assert bn.num_batches_tracked == 200
    b.x[...] = values[0]
    same_bytes(cbn.batch_norm_forward(b.x, out=out)[0], cbn.batch_norm_forward(values[0])[0])


# Registers ----------------------------------------------------------------------------------------

FLOAT_CONTROL = """
import ctypes
import sys
import threading
import numpy as np

shim = ctypes.CDLL(sys.argv[1])
control = shim.cbn_float_control
control.restype = ctypes.c_uint
before = control()

def unchanged():
    assert control() == before, hex(control())
    found = []
    thread = threading.Thread(target=lambda: found.append(control()))
    thread.start()
    thread.join()
    assert found == [before], found

import cbn
unchanged()
x = np.random.default_rng(0).normal(size=(4000, 100)).astype(np.float32)
for threads in (1, 2, 4):
    y, cache = cbn.batch_norm_forward(x * np.float32(1e-40), num_threads=threads)
    cbn.batch_norm_backward(y, cache, num_threads=threads)
    cbn.batch_norm_forward(x.astype(np.float16), num_threads=threads)
    unchanged()
tiny = np.float32(1e-45)
assert tiny / np.float32(1) == tiny != 0
print("unchanged")
"""


@linux
def test_the_float_control_register_is_left_alone(run_python, shim):
    """No flush to zero by import or calls, neither here nor in threads that begin later."""
    run = run_python("-c", FLOAT_CONTROL, shim("mxcsr"))
    assert run.stdout.split() == ["unchanged"], run.stderr


def compiles(flag, folder):
    compiler = cbn.show_config("dicts")["compiler"]["command"].split()
    source = folder / "probe.c"
    source.write_text('#include "compiler.h"\n')
    command = [*compiler, flag, f"-I{SRC_C}", "-c", str(source), "-o", str(folder / "probe.o")]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(not SRC_C.is_dir() or sys.platform == "win32", reason="needs the sources")
def test_fast_math_does_not_compile(tmp_path):
    assert compiles("-O2", tmp_path).returncode == 0
    for flag in ("-ffast-math", "-Ofast"):
        refused = compiles(flag, tmp_path)
        assert refused.returncode != 0 and "strict IEEE arithmetic" in refused.stderr


# OpenMP -------------------------------------------------------------------------------------------

TASKS = """
import os
import numpy as np
import threadpoolctl
import cbn

x = np.random.default_rng(0).normal(0, 1, (2000, 1000))
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
with threadpoolctl.threadpool_limits(1):
    y, cache = cbn.batch_norm_forward(x)
    cbn.batch_norm_backward(y, cache)
limited = tasks()
cbn.batch_norm_forward(x)
print(limited - before, tasks() - before)
"""


@linux
@openmp
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_limits_on_threads_are_honoured(threads, run_python):
    """threadpool_limits(1) starts none; without it OMP_NUM_THREADS says how many there are."""
    run = run_python("-c", TASKS, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS="1")
    assert run.stdout.split() == ["0", str(threads - 1)], run.stderr


TWO_RUNTIMES = """
import sys
import numpy as np
first, second = sys.argv[1:]
__import__(first)
__import__(second)
import threadpoolctl
import cbn

other = {"torch": "torch", "sklearn.cluster": "sklearn"}[first if second == "cbn" else second]
x = np.random.default_rng(0).normal(3, 1, (4000, 300))
expected = cbn.batch_norm_forward(x, num_threads=1)[0].tobytes()

def others_turn():
    if other == "torch":
        import torch
        torch.set_num_threads(2)
        assert torch.ones(4000, 300).sum() == 1_200_000
    else:
        from sklearn.cluster import KMeans
        KMeans(3, n_init=1, random_state=0).fit(x)

for _ in range(3):
    others_turn()
    assert cbn.batch_norm_forward(x, num_threads=2)[0].tobytes() == expected
runtimes = {r["filepath"] for r in threadpoolctl.threadpool_info() if r["user_api"] == "openmp"}
with threadpoolctl.threadpool_limits(1):
    assert cbn.get_num_threads() == 1
print(len(runtimes))
"""


@pytest.mark.slow
@openmp
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("other", ["torch", "sklearn.cluster"])
def test_two_openmp_runtimes(other, first, run_python):
    """Imported before cbn and after it; PyTorch's builds bring a runtime or take the system's."""
    pytest.importorskip(other.partition(".")[0])
    order = (other, "cbn") if first else ("cbn", other)
    run = run_python("-W", "ignore", "-c", TWO_RUNTIMES, *order)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= (1 if other == "torch" else 2)


SMALL_STACKS = """
import json
import one_answer as one

chosen = [case for case in one.CASES if case[0] in ((300, 1025), (4097, 32), (20000, 16))]
print(json.dumps({one.name_of(c): one.hashes(one.Arguments(c), num_threads=4) for c in chosen}))
"""


@pytest.mark.slow
@openmp
def test_workers_with_64_kib_of_stack(run_python):
    small = run_python("-c", SMALL_STACKS, OMP_STACKSIZE="64k")
    assert small.returncode == 0, (small.returncode, small.stderr)
    assert len(json.loads(small.stdout)) == 6
    assert small.stdout == run_python("-c", SMALL_STACKS).stdout


# Interpreters -------------------------------------------------------------------------------------

SUB_INTERPRETERS = """
import sys
import warnings
warnings.simplefilter("ignore")
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
if "main first" in sys.argv:
    import numpy, cbn
code = '''
import warnings
warnings.simplefilter("ignore")
try:
    import numpy as np
    import cbn
    y, _ = cbn.batch_norm_forward(np.array([[1.0], [3.0]]), eps=0.0)
    said = "right" if y.tolist() == [[-1.0], [1.0]] else "wrong"
except ImportError as error:
    said = "ImportError"
import os
os.write(1, (said + chr(10)).encode())
'''
for _ in range(3):
    interpreter = interpreters.create()
    failure = interpreters.run_string(interpreter, code)
    assert failure is None, failure
    interpreters.destroy(interpreter)
exec(code)  # NumPy may have been claimed by the first of them
if "main first" in sys.argv:
    assert said == "right"
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's interpreters")
@pytest.mark.parametrize("order", ["main first", "main last"])
def test_sub_interpreters(order, run_python):
    """Correct work in the first interpreter, and there or ImportError in others; never a crash."""
    run = run_python("-W", "ignore", "-c", SUB_INTERPRETERS, order)
    assert run.returncode == 0, (run.returncode, run.stdout, run.stderr)
    said = run.stdout.split()
    assert len(said) == 4 and "right" in said and set(said) <= {"right", "ImportError"}
