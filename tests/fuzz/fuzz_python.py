"""Calls of the Python API with arguments of every kind, good and bad, for so many seconds.

`python fuzz_python.py SECONDS [SEED]`. A call may return, or raise ValueError or TypeError with a
message that names an argument; nothing else may escape, and a call that raised must have left the
arrays that it was given as they were. What returned must not depend on the memory layout.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from strategies import layouts

import cbn

DTYPES = ["f2", "f4", "f8", ">f4", "<f8", "i1", "u8", "?", "c8", "c16", "O", "U3", "M8[s]", "V4"]
ARGUMENT = re.compile(r"^[a-z_]\w*: |^Expected more than 1 value per channel")

nonsense = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.floats(width=16), max_size=3),
    st.builds(object),
    st.just(np.float32(3)),
)


@st.composite
def arrays(draw, shape):
    """Mostly of that shape and of a float dtype."""
    if draw(st.integers(0, 30)) == 0:
        return draw(nonsense)
    if draw(st.integers(0, 15)) == 0:
        shape = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    dtype = np.dtype(draw(st.sampled_from(["f4"] * 20 + ["f8"] * 10 + DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = np.asarray(rng.normal(0, 2, shape))
        if draw(st.integers(0, 9)) == 0:
            values.flat[: values.size // 3] = draw(st.sampled_from([np.nan, np.inf, 0, 1e39]))
        if dtype.kind in "VM":
            return np.zeros(shape, dtype)
        a = values.astype(dtype)
    return (
        draw(layouts(shape, writeable=draw(st.booleans())))(a) if shape and dtype.kind == "f" else a
    )


@st.composite
def options(draw, names, shape, axis):
    """Keyword arguments, most of them left out, most of the others good."""
    channels = shape[axis] if shape else 1
    positions = (*shape[:axis], *shape[axis + 1 :]) if shape else ()
    good = {
        "eps": st.sampled_from([0, 1e-5, 1, np.float32(1e-3)]),
        "axis": st.sampled_from([axis, axis - len(shape)]),
        "mask": st.builds(lambda s: np.random.default_rng(s).random(positions) < 0.7, st.just(1)),
        "sample_weight": st.just(np.full(positions, 0.5)),
        "virtual_batch_size": st.integers(1, 4),
        "residual": arrays(shape),
        "activation": st.sampled_from([None, "relu"]),
        "out": st.one_of(st.just(np.zeros(shape, "f4")), arrays(shape)),
        "num_threads": st.integers(1, 4),
        "gamma": arrays((channels,)),
        "beta": arrays((channels,)),
    }
    chosen = {"axis": axis} if "axis" in names else {}
    for name in names:
        how = draw(st.integers(0, 59))
        if how == 59:
            chosen[name] = draw(nonsense)
        elif how > 44:
            chosen[name] = draw(good[name])
    return chosen


def copies(values):
    return [(a, a.copy()) for a in values if isinstance(a, np.ndarray)]


def unchanged(pairs):
    for a, before in pairs:
        same = a.dtype == before.dtype and a.tobytes() == before.tobytes()
        assert same or a.dtype.hasobject, "a call that raised has written"


def attempt(function, *args, writes=(), **kwargs):
    """What it returns, None if it refused as documented; `writes` are changed when it returns."""
    pairs = copies([*args, *kwargs.values()])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        assert ARGUMENT.match(str(error)) or "argument" in str(error), error
        unchanged(pairs)
        return None
    writes = [a for a in (*writes, kwargs.get("out")) if isinstance(a, np.ndarray)]
    unchanged([(a, b) for a, b in pairs if not any(np.may_share_memory(a, w) for w in writes)])
    return result


FORWARD = ["gamma", "beta", "axis", "eps", "mask", "sample_weight", "virtual_batch_size"]
FORWARD += ["residual", "activation", "out", "num_threads"]
INFERENCE = ["gamma", "beta", "axis", "eps", "residual", "activation", "out", "num_threads"]
counts = {"calls": 0, "returned": 0}


def count(result):
    counts["calls"] += 1
    counts["returned"] += result is not None
    return result


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert a.dtype == b.dtype


def api(data):
    shape = tuple(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    x, dy = data.draw(arrays(shape)), data.draw(arrays(shape))
    given_options = data.draw(options(FORWARD, shape, axis))
    made = count(attempt(cbn.batch_norm_forward, x, **given_options))
    if made is not None:
        y, cache = made
        if "out" not in given_options and isinstance(x, np.ndarray) and x.dtype.kind == "f":
            plain = np.array(x, x.dtype.newbyteorder("="), order="C")
            same(y, cbn.batch_norm_forward(plain, **given_options)[0])
        some = data.draw(options(["out", "num_threads"], shape, axis))
        count(attempt(cbn.batch_norm_backward, dy, cache, **some))
        count(attempt(cbn.batch_norm_jvp, dy, cache))
        count(attempt(cbn.batch_norm_double_backward, dy, dy, cache))
        count(attempt(cbn.BackwardSums.from_batch, dy, cache))
    channels = (shape[axis],)
    mean, var = data.draw(arrays(channels)), data.draw(arrays(channels))
    if isinstance(var, np.ndarray) and var.dtype.kind == "f":
        var = abs(var)
    given_options = data.draw(options(INFERENCE, shape, axis))
    count(attempt(cbn.batch_norm_inference, x, mean, var, **given_options))
    given_options = data.draw(options(["gamma", "axis", "eps", "out"], shape, axis))
    count(attempt(cbn.batch_norm_inference_backward, dy, x, mean, var, **given_options))
    given_options = data.draw(options(["axis", "mask", "sample_weight"], shape, axis))
    moments = count(attempt(cbn.Moments.from_batch, x, **given_options))
    if moments is not None:
        count(attempt(cbn.update_running_stats, mean, var, moments, writes=(mean, var)))
        normalize_options = data.draw(options(["gamma", "beta", "axis", "eps", "out"], shape, axis))
        count(attempt(cbn.batch_norm_normalize, x, moments, **normalize_options))


def main() -> None:
    end = time.monotonic() + float(sys.argv[1])
    start = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    quiet = settings(
        max_examples=200,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    rounds = 0
    while time.monotonic() < end:
        seed(start + rounds)(quiet(given(st.data())(api)))()
        rounds += 1
    assert counts["returned"] > counts["calls"] / 10, counts
    print(f"{counts['calls']} Python calls, {counts['returned']} returned; {rounds} seeds")


if __name__ == "__main__":
    main()
