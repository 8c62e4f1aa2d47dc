"""An example call for every `raise` statement of cbn; test_error_texts.py runs them.

An example takes pytest's monkeypatch.
"""

from __future__ import annotations

import builtins
import io
import sys
import warnings
from pathlib import Path

import numpy as np

import cbn
from cbn import BatchNorm, Moments, _check, _check_state, fold, gradcheck, moments, runtime
from cbn.cli import _onednn, _options, _parser, accuracy, attack, bench, check
from cbn.interop import cs231n

X = np.arange(24.0).reshape(6, 4)
ONES = np.ones(4)
FORWARD, CACHE = cbn.batch_norm_forward, cbn.batch_norm_forward(X)[1]
M, TWO_D = Moments.from_batch(X), np.ones((4, 4))


def forward(**arguments):
    return lambda _: FORWARD(**({"x": X} | arguments))


def inference(**arguments):
    given = {"x": X, "mean": ONES, "var": ONES} | arguments
    return lambda _: cbn.batch_norm_inference(**given)


def update(**arguments):
    given = {"running_mean": np.zeros(4), "running_var": np.ones(4), "m": M} | arguments
    return lambda _: cbn.update_running_stats(**given)


def layer(*calls, **options):
    def example(_):
        bn = BatchNorm(4, **options)
        for x in calls:
            bn(x)

    return example


def load(state):
    return lambda _: BatchNorm(4).load_state_dict(state)


def state(**changed):
    return BatchNorm(4).state_dict() | changed


def command(*argv):
    def example(monkeypatch):
        options = _parser().parse_args(argv)
        options.run(options)

    return example


def without(module, example):
    """The example where the module is not installed."""

    def changed(monkeypatch):
        real = builtins.__import__

        def import_(name, *rest):
            if name.partition(".")[0] == module:
                raise ModuleNotFoundError(name=module)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", import_)
        monkeypatch.delitem(sys.modules, "cbn.gradcheck", raising=False)
        monkeypatch.delattr(cbn, "gradcheck", raising=False)
        example(monkeypatch)

    return changed


def out_of_memory(target, name, example):
    def fail(*_, **__):
        raise MemoryError

    def changed(monkeypatch):
        monkeypatch.setattr(target, name, fail)
        example(monkeypatch)

    return changed


def no_version(peers, name, example):
    def changed(monkeypatch):
        monkeypatch.setattr(peers[name], "version", lambda: None)
        example(monkeypatch)

    return changed


def read_only(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


def vjp(dy, x):
    return dy * np.cos(x)


ARRAYS = {
    "masked": forward(x=np.ma.ones((6, 4))),
    "ragged": forward(x=[[1.0], [1.0, 2.0]]),
    "complex": forward(x=X * 1j),
    "1-D": forward(x=ONES),
    "no rows": forward(x=X[:0]),
    "axis missing": forward(x=X[None]),
    "axis no integer": forward(axis=1.0),
    "axis out of range": forward(axis=7),
    "gamma of integers": forward(gamma=np.ones(4, int)),
    "gamma too short": forward(gamma=ONES[:3]),
    "mean missing": inference(mean=None),
    "var negative": inference(var=-ONES),
    "eps a string": forward(eps="1"),
    "eps negative": forward(eps=-1),
    "threads True": forward(num_threads=True),
    "threads a string": forward(num_threads="2"),
    "threads 0": forward(num_threads=0),
    "dy of another shape": lambda _: cbn.batch_norm_backward(X[:3], CACHE),
    "out a list": forward(out=[1.0]),
    "out of another shape": forward(out=X[:3].copy()),
    "out of another dtype": forward(out=X.astype("f4")),
    "out read-only": forward(out=read_only(X)),
    "out a part of x": lambda _: FORWARD(X[1:], out=X[:-1]),
    "out overlaps itself": forward(out=np.lib.stride_tricks.as_strided(ONES, (6, 4), (0, 8))),
    "no cache": lambda _: cbn.batch_norm_backward(X, None),
    "cache of another x": lambda _: changed_cache(),
    "cache with an activation": lambda _: cbn.batch_norm_jvp(X, FORWARD(X, activation="relu")[1]),
    "activation": forward(activation="tanh"),
    "mask of another shape": forward(mask=np.ones(5, bool)),
    "mask of floats": forward(mask=np.ones(6)),
    "negative weights": forward(sample_weight=-np.ones(6)),
    "zero weights": forward(sample_weight=np.zeros(6)),
    "groups of channels": forward(axis=0, virtual_batch_size=2),
    "a group without weights": forward(
        sample_weight=np.array([0, 0, 1.0, 1, 1, 1]), virtual_batch_size=2
    ),
    "out=x with relu": lambda _: FORWARD(X, activation="relu", out=X),
    "out=x with a zero": lambda _: FORWARD(X, np.zeros(4), out=X),
    "lengths of floats": lambda _: cbn.lengths_to_mask([1.5]),
    "lengths negative": lambda _: cbn.lengths_to_mask([-1]),
    "lengths too long": lambda _: cbn.lengths_to_mask([5], 3),
    "mode": lambda _: cbn.show_config("xml"),
    "CBN_NUM_THREADS": lambda _: _check.environment_threads("CBN_NUM_THREADS", "x"),
    "CBN_ISA": lambda _: _check.isa("x", ["baseline"], ["baseline"]),
    "CBN_TIERS": lambda _: _check.isa("", ["avx512"], []),
}


def changed_cache():
    x = np.array(X)
    _, cache = FORWARD(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cache.x.shape = (4, 6)
    cbn.batch_norm_backward(np.ones((4, 6)), cache)


def wrong_setting(monkeypatch):
    monkeypatch.setattr(runtime.sys, "argv", ["pytest"])
    with runtime._settings():
        _check.isa("x", ["baseline"], ["baseline"])


def wrong_setting_of_the_command(monkeypatch):
    monkeypatch.setattr(runtime.sys, "argv", ["cbn"])
    with runtime._settings():
        _check.isa("x", ["baseline"], ["baseline"])


STATE = {
    "correction a string": update(correction="1"),
    "correction infinite": update(correction=np.inf),
    "correction too large": update(correction=6),
    "features a string": lambda _: BatchNorm("4"),
    "features True": lambda _: BatchNorm(True),
    "features negative": lambda _: BatchNorm(-4),
    "count negative": lambda _: Moments(-1, ONES, ONES),
    "mean 2-D": lambda _: Moments(1, TWO_D, ONES),
    "given statistics": lambda _: Moments.from_cache(cbn.batch_norm_inference_cache(X, ONES, ONES)),
    "no Moments": update(m=None),
    "other channels": lambda _: M.merge(Moments(1, ONES[:3], ONES[:3])),
    "no values": lambda _: cbn.batch_norm_normalize(X, Moments(0, ONES, ONES)),
    "momentum and decay": update(momentum=0.5, decay=0.5),
    "momentum out of range": update(momentum=2),
    "momentum a string": update(momentum="1"),
    "batches too many": load(state(num_batches_tracked=2**63)),
    "running_mean a list": update(running_mean=[0.0] * 4),
    "running_mean read-only": update(running_mean=read_only(ONES)),
    "running_mean overlaps itself": update(
        running_mean=np.lib.stride_tricks.as_strided(ONES, (4,), (0,))
    ),
    "running_var is running_mean": lambda _: cbn.update_running_stats(ONES, ONES, M),
    "dtype nonsense": lambda _: BatchNorm(4, dtype="nonsense"),
    "dtype int": lambda _: BatchNorm(4, dtype=int),
    "renorm untracked": lambda _: BatchNorm(4, renorm=True, track_running_stats=False),
    "r_max": lambda _: BatchNorm(4, r_max=0.5),
    "d_max": lambda _: BatchNorm(4, d_max=-1),
    "x of other channels": layer(X[:, :3]),
    "one row": layer(X[:1]),
    "no call": lambda _: BatchNorm(4).backward(X),
    "state a list": load([]),
    "state without keys": load({}),
    "state of another length": load(state(bias=ONES[:3])),
    "weight of integers": lambda _: fold.into_linear(np.ones((4, 4), int), None, ONES, ONES),
    "weight 1-D": lambda _: fold.into_linear(ONES, None, ONES, ONES),
    "groups": lambda _: fold.into_conv_transpose(np.ones((4, 1, 3)), None, ONES, ONES, groups=3),
    "axis": lambda _: BatchNorm(4, axis="1"),
    "flax": lambda _: BatchNorm(4).load_flax({"batch_stats": ONES}),
    "renormalization": lambda _: moments.renormalization(M, ONES, 2 * ONES, 1e-5, 0, 0),
}
OTHERS = {
    "course": lambda _: cs231n.batchnorm_forward(X, ONES, ONES, {"mode": "x"}),
    "gradcheck dy": lambda _: gradcheck.check_vjp(np.sin, vjp, X, dy=ONES),
    "gradcheck gradients": lambda _: gradcheck.check_vjp(np.sin, lambda dy, x: (dy, dy), X),
    "gradcheck shape": lambda _: gradcheck.check_vjp(np.sin, lambda dy, x: ONES, X),
    "gradcheck jvp": lambda _: gradcheck.check_jvp(np.sin, lambda t, x: ONES, X),
    "gradcheck constant": lambda _: gradcheck.check_batch_norm(np.ones((6, 4)), eps=0),
    "gradcheck nothing": lambda _: gradcheck.check_vjp(np.sin, vjp, None),
    "gradcheck nan": lambda _: gradcheck.check_batch_norm(X * np.nan),
    "environment": wrong_setting,
    "environment of the command": wrong_setting_of_the_command,
    "oneDNN": lambda _: _onednn._check("primitive_create", 3),
}
COMMANDS = {
    "a number": lambda _: _options.positive("x"),
    "words": lambda _: _options.some_of("ab")("c"),
    "not writable": lambda _: _options.check_writable("--json", Path("no/such/folder")),
    "no picture": lambda _: _options.check_plot(Path("a.txt")),
    "parser": lambda _: check._shape("a"),
    "check without scipy": without("scipy", command("check")),
    "check, a bad axis": command("check", "--axis", "7"),
    "check, no memory": out_of_memory(cbn, "batch_norm_forward", command("check")),
    "check, no file": command("check", "--input", "none.npy"),
    "check, no array": command("check", "--input", __file__),
    "check, bytes": lambda _: check._load(Path(__file__)),
    "demo without matplotlib": without("matplotlib", command("demo")),
    "bench without matplotlib": without(
        "matplotlib", command("bench", "--plot", "a.png", "--shapes", "2x2")
    ),
    "bench, no memory": out_of_memory(
        bench, "_take_turns", command("bench", "--shapes", "2x2", "--peers", "none")
    ),
    "bench, a shape": lambda _: bench._shape("2"),
    "bench, a huge shape": lambda _: bench._shape(f"{2**40}x{2**40}"),
    "bench, a peer": no_version(bench.PEERS, "torch", lambda _: bench._peers("torch")),
    "bench, seconds": lambda _: bench._seconds("x"),
    "accuracy, no memory": out_of_memory(accuracy, "make", command("accuracy", "--peers", "none")),
    "attack, seconds": command("attack", "--seconds", "0"),
    "attack, eps": command("attack", "--eps", "-1"),
    "attack, a library": no_version(attack.PEERS, "torch", command("attack", "--library", "torch")),
    "attack, no folder": command("attack", "--keep", __file__),
    "attack, rows": lambda _: attack._row_counts("1"),
    "accuracy, a peer": no_version(accuracy.PEERS, "torch", lambda _: accuracy._peers("torch")),
}


def file_of(save):
    def example(_):
        file = io.BytesIO()
        save(file)
        file.seek(0)
        Moments.load(file)

    return example


MERGEABLE = {
    "buffer of another dtype": lambda _: Moments.from_buffer(np.ones(4, np.float32)),
    "buffer of another length": lambda _: Moments.from_buffer(np.ones(3)),
    "file of no archive": file_of(lambda file: file.write(b"text")),
    "file of one array": file_of(lambda file: np.save(file, X)),
    "file of other arrays": file_of(lambda file: np.savez(file, x=X)),
    "moments of no batches": lambda _: Moments.from_batches([]),
    "parts of other counts": lambda _: Moments.concatenate([M, Moments.from_batch(X[:3])]),
    "one value on all ranks": lambda _: _check_state.several_values_of_all(1, 4),
    "renorm beside a communicator": lambda _: _check_state.without_renorm({"renorm": True}),
    "moments of given statistics": lambda _: Moments.from_cache(
        cbn.batch_norm_inference_cache(X, ONES, ONES)
    ),
}
EXAMPLES = ARRAYS | STATE | OTHERS | COMMANDS | MERGEABLE
