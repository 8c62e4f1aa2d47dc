"""cbn/runtime.py: how many threads, and what show_config and show_runtime tell."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl
from cases import Batch, everything, same_bytes
from tiers import cpu_tiers

import cbn

OPENMP = cbn.show_runtime("dicts")["openmp"]["enabled"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
openmp = pytest.mark.skipif(not OPENMP, reason="a build without OpenMP")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    """set_num_threads lasts; these tests must not change what others run with."""
    monkeypatch.setattr(cbn.runtime, "_global", None)


# In this process ----------------------------------------------------------------------------------


def test_the_default_is_what_this_process_may_use():
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not any(os.environ.get(name) for name in ("CBN_NUM_THREADS", "OMP_NUM_THREADS")):
        assert 1 <= cbn.get_num_threads() <= cpus


def test_set_num_threads():
    default = cbn.get_num_threads()
    for n in (default + 1, 1, np.int32(5)):
        assert cbn.set_num_threads(n) is None
        assert cbn.get_num_threads() == n and type(cbn.get_num_threads()) is int


def test_num_threads_nests():
    cbn.set_num_threads(7)
    with cbn.num_threads(3):
        assert cbn.get_num_threads() == 3
        with cbn.num_threads(5):
            assert cbn.get_num_threads() == 5
            cbn.set_num_threads(2)
            assert cbn.get_num_threads() == 5
        assert cbn.get_num_threads() == 3
    assert cbn.get_num_threads() == 2


def test_num_threads_ends_with_an_exception():
    default = cbn.get_num_threads()
    with pytest.raises(KeyError), cbn.num_threads(default + 3):
        assert cbn.get_num_threads() == default + 3
        raise KeyError
    assert cbn.get_num_threads() == default


def test_num_threads_is_of_one_python_thread():
    default, inside, done = cbn.get_num_threads(), threading.Event(), threading.Event()
    seen = []

    def other():
        seen.append(cbn.get_num_threads())
        with cbn.num_threads(default + 9):
            inside.set()
            done.wait()

    with cbn.num_threads(default + 4):
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()
        seen.append(cbn.get_num_threads())
        done.set()
        thread.join()
    if sys.version_info < (3, 14):  # from 3.14 on a thread may start with its maker's context
        assert seen == [default, default + 4]


@pytest.mark.parametrize(
    "function", [cbn.set_num_threads, lambda n: cbn.num_threads(n).__enter__()]
)
@pytest.mark.parametrize("n", [0, -1, 2.5, True, np.True_, "2", None, [1]], ids=repr)
def test_a_bad_number_of_threads(function, n):
    before = cbn.get_num_threads()
    error = ValueError if isinstance(n, int) and n is not True else TypeError
    with pytest.raises(error, match=rf"^n: expected .*>= 1, got {re.escape(repr(n))}"):
        function(n)
    assert cbn.get_num_threads() == before


def test_python_threads_may_share_an_input():
    b = Batch((3000, 33), np.float32)
    for name in vars(b):
        getattr(b, name).flags.writeable = False
    expected = everything(b, num_threads=1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: everything(b, num_threads=2), range(24)))
    assert len(found) == 24
    for results in found:
        same_bytes(results, expected)


def test_the_gil_is_released():
    """Nobody else gets the GIL while it is held, once it is not handed over on request."""
    x = np.random.default_rng(0).normal(0, 1, (4000, 4000)).astype(np.float32)
    y, gate, ran = np.empty_like(x), threading.Lock(), []
    gate.acquire()

    def other():
        with gate:
            ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    time.sleep(0.05)  # until it waits at the gate
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        gate.release()
        assert not ran
        cbn.batch_norm_forward(x, out=y, num_threads=1)
        assert ran
    finally:
        sys.setswitchinterval(interval)
        thread.join()


# In a fresh process -------------------------------------------------------------------------------

SHOW = "import cbn; print(cbn.get_num_threads())"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CBN_NUM_THREADS": "1"}, 1),
        ({"CBN_NUM_THREADS": "3"}, 3),
        ({"CBN_NUM_THREADS": " 12 "}, 12),
        ({"CBN_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
        pytest.param({"OMP_NUM_THREADS": "3"}, 3, marks=openmp),
        pytest.param({"OMP_NUM_THREADS": "1"}, 1, marks=openmp),
        pytest.param({"CBN_NUM_THREADS": "", "OMP_NUM_THREADS": "3"}, 3, marks=openmp),
    ],
    ids=str,
)
def test_environment(environment, expected, run_python):
    run = run_python("-c", SHOW, **environment)
    assert run.stdout.split() == [str(expected)], run.stderr


@pytest.mark.parametrize("name", ["CBN_NUM_THREADS", "OMP_NUM_THREADS"])
def test_an_empty_variable_is_unset(name, run_python):
    assert run_python("-c", SHOW, **{name: ""}).stdout == run_python("-c", SHOW).stdout


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "abc", "1,2", " "])
def test_a_bad_variable_is_an_error(text, run_python):
    run = run_python("-c", "import cbn", CBN_NUM_THREADS=text)
    assert run.returncode != 0
    message = run.stderr.splitlines()[-1]
    assert re.match(r"ValueError: CBN_NUM_THREADS: expected .*>= 1", message)
    assert message.endswith(f"got {text!r}")


ORDER = """
import cbn
assert cbn.get_num_threads() == 3
cbn.set_num_threads(4)
assert cbn.get_num_threads() == 4
with cbn.num_threads(5):
    assert cbn.get_num_threads() == 5
"""


def test_what_is_nearer_decides(run_python):
    run = run_python("-c", ORDER, CBN_NUM_THREADS="3", OMP_NUM_THREADS="2")
    assert run.returncode == 0, run.stderr


@openmp
def test_threadpoolctl_limits():
    threads = cbn.get_num_threads()
    with threadpoolctl.threadpool_limits(1):
        asked = os.environ.get("CBN_NUM_THREADS")
        assert cbn.get_num_threads() == (int(asked) if asked else 1)
    assert cbn.get_num_threads() == threads


COUNT_TASKS = """
import os
import numpy as np
import threadpoolctl
import cbn
x = np.random.default_rng(0).normal(0, 1, (1000, 1000))
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
cbn.batch_norm_forward(x, num_threads=1)
with cbn.num_threads(1):
    cbn.batch_norm_forward(x)
with threadpoolctl.threadpool_limits(1):
    cbn.batch_norm_forward(x)
cbn.batch_norm_forward(x[:100, :100], num_threads=16)
alone = tasks()
cbn.batch_norm_forward(x, num_threads=3)
print(alone - before, tasks() - before)
"""


@linux
@openmp
def test_as_many_threads_run_as_are_asked_for(run_python):
    run = run_python("-c", COUNT_TASKS, OPENBLAS_NUM_THREADS="1")
    assert run.stdout.split() == ["0", "2"], run.stderr


FORK = """
import os
import signal
import numpy as np
import cbn
x = np.random.default_rng(0).normal(3, 1, (4000, 300))
dy = np.random.default_rng(1).normal(0.3, 1, (4000, 300))

def compute():
    y, cache = cbn.batch_norm_forward(x, num_threads=4)
    return y.tobytes() + cbn.batch_norm_backward(dy, cache, num_threads=4)[0].tobytes()

expected = compute()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(0 if compute() == expected else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
assert compute() == expected
print("done")
"""


@forks
def test_fork_after_a_parallel_call(run_python):
    run = run_python("-W", "ignore", "-c", FORK)
    assert run.stdout.split() == ["done"], run.stderr


FORK_BEFORE_ANY_CALL = """
import os
import signal
import numpy as np
import cbn

child = os.fork()
if child == 0:
    signal.alarm(10)
    cbn.batch_norm_forward(np.random.default_rng(0).normal(size=(4000, 300)), num_threads=4)
    os._exit(0 if len(os.listdir("/proc/self/task")) == 1 else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_a_forked_child_starts_no_threads(run_python):
    """Whoever else used OpenMP in the parent, the child must not wait for its threads."""
    run = run_python("-W", "ignore", "-c", FORK_BEFORE_ANY_CALL)
    assert run.stdout.split() == ["0"], run.stderr


SUBNORMALS = """
import numpy as np
import cbn
x = np.random.default_rng(0).normal(0, 1, (1000, 300)).astype(np.float32)
y, cache = cbn.batch_norm_forward(x, num_threads=2)
cbn.batch_norm_backward(x, cache, num_threads=2)
tiny = np.array([5e-324, 2e-320])
print(*(tiny * 1.0 + 0.0 == tiny), np.float32(1e-45) / np.float32(1) > 0)
"""


def test_subnormal_arithmetic_is_left_alone(run_python):
    run = run_python("-c", SUBNORMALS)
    assert run.stdout.split() == ["True", "True", "True"], run.stderr


# What is shown ------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", [cbn.show_config, cbn.show_runtime])
def test_both_modes_show_the_same(show, capsys):
    info = show("dicts")
    assert info == show(mode="dicts") and info["version"] == cbn.__version__
    assert capsys.readouterr().out == ""
    assert show() is None
    assert json.loads(capsys.readouterr().out) == info


@pytest.mark.parametrize("show", [cbn.show_config, cbn.show_runtime])
@pytest.mark.parametrize("mode", ["json", "", None, 1])
def test_another_mode(show, mode):
    with pytest.raises(ValueError, match=f"^mode: expected 'stdout' or 'dicts', got {mode!r}"):
        show(mode)


def test_show_runtime(monkeypatch):
    with cbn.num_threads(11):
        info = cbn.show_runtime("dicts")
    assert info["threads"] == 11
    assert info["numpy"] == np.__version__
    assert info["isa"]["supported"] == cpu_tiers()
    assert info["isa"]["chosen"] in info["isa"]["supported"]
    assert info["openmp"]["enabled"] is (info["openmp"]["version"] > 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cbn.show_runtime("dicts")["environment"]["OMP_NUM_THREADS"] == "2"


def test_show_config():
    info = cbn.show_config("dicts")
    assert list(info["isa_flags"]) == cbn.show_runtime("dicts")["isa"]["built"]
    assert info["openmp"]["enabled"] is OPENMP
    assert info["compiler"]["command"] and info["compiler"]["version"]
