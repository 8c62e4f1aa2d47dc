"""State that must change in one piece or not at all: errors, allocations that fail, interrupts."""

from __future__ import annotations

import dis
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import generator, same_bytes

import cbn
from cbn import BatchNorm, Moments
from cbn._state import STATE_LOCK

C = 5
linux = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library")


def batch(seed=0, rows=64):
    return generator("state", seed).normal(3, 2, (rows, C)).astype(np.float32)


def after(batches, **options):
    """The state of a layer after so many batches, 0 to all of them."""
    bn = BatchNorm(C, **options)
    states = [bn.state_dict()]
    for x in batches:
        bn(x)
        states.append(bn.state_dict())
    return states


def equal(state, other):
    return all(state[name].tobytes() == other[name].tobytes() for name in other)


# Errors -------------------------------------------------------------------------------------------


def replaced(name, value):
    return lambda bn: setattr(bn, name, value)


def read_only(name):
    return lambda bn: setattr(getattr(bn, name).flags, "writeable", False)


FORCED = {
    "x of other channels": (lambda bn: None, {"x": np.ones((4, C + 1))}),
    "x complex": (lambda bn: None, {"x": np.ones((4, C), complex)}),
    "one row": (lambda bn: None, {"x": np.ones((1, C))}),
    "no rows": (lambda bn: None, {"x": np.ones((0, C))}),
    "mask": (lambda bn: None, {"mask": np.ones(3, bool)}),
    "weights": (lambda bn: None, {"sample_weight": -np.ones(64)}),
    "residual": (lambda bn: None, {"residual": np.ones((3, C))}),
    "correction": (replaced("correction", 64), {}),
    "momentum": (replaced("momentum", 2.0), {}),
    "gamma": (replaced("gamma", np.ones(C - 1)), {}),
    "running_mean": (replaced("running_mean", np.ones(C - 1)), {}),
    "running_var": (replaced("running_var", np.ones(C, int)), {}),
    "running_mean read-only": (read_only("running_mean"), {}),
    "running_var read-only": (read_only("running_var"), {}),
    "eps": (replaced("eps", -1.0), {}),
    "activation": (replaced("activation", "tanh"), {}),
    "threads": (replaced("num_threads", 0), {}),
}


@pytest.mark.parametrize("kind", FORCED)
def test_an_error_leaves_the_statistics_and_the_last_call(kind):
    change, call = FORCED[kind]
    bn = BatchNorm(C)
    x = batch()
    bn(x)
    dx = bn.backward(x)
    change(bn)
    before = bn.state_dict()
    with pytest.raises((ValueError, TypeError)):
        bn(**({"x": batch(1)} | call))
    assert equal(bn.state_dict(), before)
    bn.num_threads = None
    same_bytes(bn.backward(x), dx)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_skip_nonfinite_keeps_the_statistics_clean(bad):
    spoilt = batch(1)
    spoilt[3, 2] = bad
    bn, clean = BatchNorm(C, skip_nonfinite=True), BatchNorm(C)
    for x in (batch(), spoilt, batch(2)):
        bn(x)
    for x in (batch(), batch(2)):
        clean(x)
    assert bn.num_batches_tracked == 2
    assert equal(bn.state_dict(), clean.state_dict())


# Allocations --------------------------------------------------------------------------------------

EVERY_ALLOCATION = """
import ctypes
import gc
import sys
import numpy as np
import cbn

shim = ctypes.CDLL(None)
shim.cbn_fail_never.restype = ctypes.c_long
shim.cbn_bytes_in_use.restype = ctypes.c_size_t
arm, disarm = shim.cbn_fail_at, shim.cbn_fail_never

rng = np.random.default_rng(0)
D = 700
x, dy = rng.normal(3, 2, (2, 90, D))
images = rng.normal(3, 2, (4, D, 5, 3)).astype(np.float32)
gamma, beta, mean = rng.normal(1, 0.2, (3, D))
var = np.abs(mean)
mask, weight = rng.random((2, 90)) < 0.6, rng.random(90)
cache = cbn.batch_norm_forward(x, gamma, beta)[1]
half = x.astype(np.float16)
m, s = cbn.Moments.from_batch(x), cbn.BackwardSums.from_batch(dy, cache)
bn, evaluated = cbn.BatchNorm(D), cbn.BatchNorm(D).eval()
bn(x)
evaluated(x)
out = np.empty_like(x)
calls = {
    "forward": lambda: cbn.batch_norm_forward(x, gamma, beta),
    "forward, two threads": lambda: cbn.batch_norm_forward(x, gamma, beta, num_threads=2),
    "forward, out": lambda: cbn.batch_norm_forward(x, gamma, beta, out=out),
    "images": lambda: cbn.batch_norm_forward(images, axis=1),
    "half": lambda: cbn.batch_norm_forward(half),
    "masked": lambda: cbn.batch_norm_forward(x, mask=mask[0]),
    "weighted": lambda: cbn.batch_norm_forward(x, sample_weight=weight),
    "groups": lambda: cbn.batch_norm_forward(x, virtual_batch_size=30),
    "relu": lambda: cbn.batch_norm_forward(x, residual=dy, activation="relu"),
    "backward": lambda: cbn.batch_norm_backward(dy, cache),
    "inference": lambda: cbn.batch_norm_inference(x, mean, var, gamma, beta),
    "inference_backward": lambda: cbn.batch_norm_inference_backward(dy, x, mean, var, gamma),
    "jvp": lambda: cbn.batch_norm_jvp(dy, cache),
    "double_backward": lambda: cbn.batch_norm_double_backward(dy, dy, cache),
    "normalize": lambda: cbn.batch_norm_normalize(x, m, gamma, beta),
    "apply": lambda: cbn.batch_norm_backward_apply(dy, cache, s),
    "moments": lambda: cbn.Moments.from_batch(x).merge(m),
    "layer": lambda: bn(x),
    "layer, backward": lambda: bn.backward(dy),
    "layer, evaluation": lambda: evaluated(x),
}


def state():
    values = [*bn.state_dict().values(), evaluated.running_mean, evaluated.running_var]
    return [value.tobytes() for value in values]


def sweep(call):
    # Each allocation of the call in turn fails, until it makes no more.
    failed = k = 0
    while True:
        before = state()
        raised = False
        arm(k)
        try:
            call()
        except MemoryError:
            raised = True
        made = disarm()
        if raised:
            failed += 1
            assert state() == before, k
        if made <= k:
            assert not raised
            return failed
        k += 1


for name, call in calls.items():
    inputs = [a.tobytes() for a in (x, dy, gamma, beta, mean, var, images)]
    call()
    failed = sweep(call)
    sweep(call)
    gc.collect()
    in_use = shim.cbn_bytes_in_use()
    for _ in range(10):
        sweep(call)
    gc.collect()
    grown = shim.cbn_bytes_in_use() - in_use
    assert inputs == [a.tobytes() for a in (x, dy, gamma, beta, mean, var, images)], name
    print(f"{name}: {failed} {grown}", flush=True)
"""


@linux
def test_every_allocation_that_fails_is_a_memory_error(run_python, shim):
    """The k-th of a call, for every k: no crash, no leak, no half-changed state."""
    run = run_python("-c", EVERY_ALLOCATION, LD_PRELOAD=shim("allocations"), CBN_NUM_THREADS="1")
    assert run.returncode == 0, (run.returncode, run.stdout, run.stderr)
    lines = dict(line.split(": ") for line in run.stdout.splitlines())
    assert len(lines) == 20
    for name, text in lines.items():
        failed, grown = map(int, text.split())
        assert failed >= 1, name
        assert grown < 4096, (name, grown)  # ten sweeps of many failures each


# Interrupts ---------------------------------------------------------------------------------------


class Interrupter:
    """Raises KeyboardInterrupt at the k-th place in cbn's code where Python looks for signals.

    That is after a call, on entering a function and on jumping back in a loop.
    """

    def __init__(self, k):
        self.left = k
        self.behind = {}

    def __call__(self, frame, event, argument):
        if event == "call" and not frame.f_code.co_filename.startswith(FOLDER):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before = self.behind.get(frame, "")
            self.behind[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if before.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                if self.left == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                self.left -= 1
        return self


FOLDER = os.path.dirname(cbn.__file__)


def interrupted_everywhere(make, call, state):
    """Assert that an interrupt anywhere in call(object) leaves one of two states.

    Returned: how many interrupts left the old and how many the new one.
    """
    old, done = make(), make()
    call(done)
    before, afterwards = state(old), state(done)
    assert before != afterwards
    counts = [0, 0]
    previous = sys.gettrace()
    for k in range(100_000):
        target = make()
        try:
            sys.settrace(Interrupter(k))
            call(target)
        except KeyboardInterrupt:
            found = state(target)
            assert found in (before, afterwards), k
            assert not STATE_LOCK._is_owned()
            counts[found == afterwards] += 1
        else:
            sys.settrace(previous)
            assert state(target) == afterwards
            return counts
        finally:
            sys.settrace(previous)


def bytes_of(bn):
    return {name: array.tobytes() for name, array in bn.state_dict().items()}


def one_batch_on(**options):
    def make():
        bn = BatchNorm(C, **options)
        bn(batch())
        return bn

    return make


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"renorm": True}, {"dtype": np.float16}], ids=str
)
def test_an_interrupt_anywhere_in_a_call(options):
    counts = interrupted_everywhere(
        one_batch_on(**options), lambda bn: bn.backward(bn(batch(1))), bytes_of
    )
    assert min(counts) > 0 and sum(counts) > 40


def test_an_interrupt_anywhere_in_loading():
    given = after([batch(seed) for seed in range(3)])[-1] | {"weight": np.arange(C)}
    counts = interrupted_everywhere(one_batch_on(), lambda bn: bn.load_state_dict(given), bytes_of)
    assert min(counts) > 0 and sum(counts) > 40


def test_an_interrupt_anywhere_in_an_update():
    m = Moments.from_batch(batch())
    counts = interrupted_everywhere(
        lambda: (np.zeros(C, np.float32), np.ones(C)),
        lambda running: cbn.update_running_stats(*running, m),
        lambda running: [array.tobytes() for array in running],
    )
    assert min(counts) > 0 and sum(counts) > 20


SIGNALS = """
import itertools
import signal
import numpy as np
import cbn

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
rng = np.random.default_rng(0)
x = rng.normal(3, 2, (64, 5)).astype(np.float32)
long = rng.normal(3, 2, (20_000, 5)).astype(np.float32)
twin, states = cbn.BatchNorm(5), []

def state(bn):
    return [array.tobytes() for array in bn.state_dict().values()]

def expected(batches):
    while len(states) <= batches:
        states.append(state(twin))
        twin(long if len(states) % 5 == 0 else x)
    return states[batches]

expected(10)  # whatever is imported late is there
bn, interrupts = cbn.BatchNorm(5), 0
for round in range(200):
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 2e-2))
        for _ in range(3000):
            bn(long if bn.num_batches_tracked % 5 == 4 else x)
    except KeyboardInterrupt:
        interrupts += 1
    assert state(bn) == expected(bn.num_batches_tracked), round
print(interrupts, bn.num_batches_tracked)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no interval timers")
def test_signals_in_a_long_loop_of_calls(run_python):
    """Whenever they come, the state is that of a whole number of calls, which is told."""
    run = run_python("-c", SIGNALS)
    assert run.returncode == 0, run.stderr
    interrupts, batches = map(int, run.stdout.split())
    assert interrupts > 190 and batches > 50


# Threads on one layer -----------------------------------------------------------------------------


def test_threads_on_one_layer_are_all_averaged_in():
    """The same batch in every thread, so that any order of updates gives the same bytes."""
    x, calls = batch(), 40
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        bn, start = BatchNorm(C), threading.Barrier(8)

        def work(_):
            start.wait()
            return [bn(x) for _ in range(calls)]

        with ThreadPoolExecutor(8) as pool:
            ys = list(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert bn.num_batches_tracked == 8 * calls
    assert equal(bn.state_dict(), after([x] * (8 * calls))[-1])
    right = BatchNorm(C)(x)
    assert all(np.array_equal(y, right) for each in ys for y in each)


def test_evaluation_beside_training_sees_whole_updates():
    """Every y is that of the running statistics after some whole number of batches."""
    batches = [batch(seed) * np.float32(seed + 1) for seed in range(60)]
    probe = batch(99)
    states = after(batches)
    right = {
        cbn.batch_norm_inference(
            probe, s["running_mean"], s["running_var"], s["weight"], s["bias"]
        ).tobytes()
        for s in states
    }
    assert len(right) == len(states)
    bn = BatchNorm(C)
    reader = BatchNorm(C).eval()
    reader.running_mean, reader.running_var = bn.running_mean, bn.running_var
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            seen.append(reader(probe).tobytes())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread = threading.Thread(target=read)
        thread.start()
        for x in batches:
            bn(x)
        done.set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen and set(seen) <= right
