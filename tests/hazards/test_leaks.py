"""Memory does not grow over 100,000 calls, those that raise included."""

from __future__ import annotations

import sys

import pytest

LOOP = """
import os
import sys
import numpy as np
import cbn
from cbn import BackwardSums, BatchNorm, Moments, fold

rng = np.random.default_rng(0)
x, dy = rng.normal(3, 2, (2, 32, 16)).astype(np.float32)
images = rng.normal(3, 2, (2, 16, 3, 3)).astype(np.float32)
half = x.astype(np.float16)
gamma, beta, mean = rng.normal(1, 0.2, (3, 16)).astype(np.float32)
var, mask, weight = np.abs(mean), rng.random(32) < 0.7, rng.random(32)
y, cache = cbn.batch_norm_forward(x, gamma, beta)
m, s = Moments.from_batch(x), BackwardSums.from_batch(dy, cache)
running = np.zeros(16), np.ones(16)
bn, buffered = BatchNorm(16), BatchNorm(16, reuse_buffers=True)
state, out = bn.state_dict(), np.empty_like(x)

def training(layer):
    layer.train()(x)
    layer.backward(dy)
    layer.eval()(x)
    layer.backward(dy)

calls = [
    lambda: cbn.batch_norm_forward(x, gamma, beta),
    lambda: cbn.batch_norm_forward(x, gamma, beta, out=out),
    lambda: cbn.batch_norm_forward(images, axis=1),
    lambda: cbn.batch_norm_forward(half, gamma),
    lambda: cbn.batch_norm_forward(x, mask=mask, residual=dy, activation="relu"),
    lambda: cbn.batch_norm_forward(x, sample_weight=weight, virtual_batch_size=16),
    lambda: cbn.batch_norm_backward(dy, cache),
    lambda: cbn.batch_norm_backward(dy.tolist(), cache),
    lambda: cbn.batch_norm_inference(x, mean, var, gamma, beta),
    lambda: cbn.batch_norm_inference_backward(dy, x, mean, var, gamma),
    lambda: cbn.batch_norm_jvp(dy, cache, gamma),
    lambda: cbn.batch_norm_double_backward(dy, dy, cache),
    lambda: cbn.batch_norm_backward_apply(dy, cbn.batch_norm_normalize(x, m)[1], s),
    lambda: Moments.from_batch(x).merge(m).var(1),
    lambda: cbn.update_running_stats(*running, m),
    lambda: training(bn),
    lambda: training(buffered),
    lambda: bn.load_state_dict(state),
    lambda: fold.before_linear(np.ones((3, 16)), None, mean, var, gamma),
    lambda: cbn.show_runtime("dicts"),
]
errors = [
    lambda: cbn.batch_norm_forward(x, gamma[:3]),
    lambda: cbn.batch_norm_forward(x, out=x[1:]),
    lambda: cbn.batch_norm_forward(x, eps=-1.0),
    lambda: cbn.batch_norm_forward(x + 1j),
    lambda: cbn.batch_norm_forward(x, mask=mask[:3]),
    lambda: cbn.batch_norm_backward(dy[:3], cache),
    lambda: cbn.batch_norm_backward(dy, None),
    lambda: cbn.batch_norm_inference(x, mean, -var),
    lambda: cbn.update_running_stats(*running, Moments(1, mean, var)),
    lambda: BatchNorm(3)(x),
    lambda: bn.load_state_dict({}),
    lambda: m.merge(None),
]

def rounds(count):
    for _ in range(count):
        for call in calls:
            call()
        for call in errors:
            try:
                call()
            except (TypeError, ValueError):
                continue
            raise AssertionError("expected an error")

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

each = len(calls) + len(errors)
rounds(60_000 // each)  # until the allocator has what it wants
before = resident()
rounds(100_000 // each + 1)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_100_000_calls_leave_no_memory_behind(run_python):
    run = run_python("-c", LOOP, CBN_NUM_THREADS="2")
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 64 * 1024
