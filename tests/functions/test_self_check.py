"""cbn.test() passes here, and fails for a function that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

import cbn


def test_it_passes_and_says_what_it_did(capsys):
    assert cbn.test() is True
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all pass" and len(lines) > 100
    assert all(line.endswith("   pass") for line in lines[:-1])
    assert cbn.test(verbose=False) is True
    assert capsys.readouterr().out == ""


def wrong(name, place):
    right = getattr(cbn, name)

    def function(*args, **options):
        results = right(*args, **options)
        parts = list(results) if isinstance(results, tuple) else [results]
        if isinstance(parts[place], np.ndarray):
            parts[place] = parts[place] * (1 + 1e-3)
        return tuple(parts) if isinstance(results, tuple) else parts[0]

    return function


@pytest.mark.parametrize(
    "name, place",
    [
        ("batch_norm_forward", 0),
        ("batch_norm_inference", 0),
        *(("batch_norm_backward", place) for place in range(3)),
        ("batch_norm_jvp", 0),
        *(("batch_norm_double_backward", place) for place in range(3)),
    ],
)
def test_it_sees_a_wrong_result(monkeypatch, capsys, name, place):
    monkeypatch.setattr(cbn, name, wrong(name, place))
    assert cbn.test(verbose=False) is False
    assert "FAILED" in capsys.readouterr().err


def test_it_sees_bytes_that_depend_on_threads(monkeypatch):
    forward = cbn.batch_norm_forward

    def drifting(*args):
        y, cache = forward(*args)
        return (np.nextafter(y, np.inf) if cbn.get_num_threads() == 5 else y), cache

    monkeypatch.setattr(cbn, "batch_norm_forward", drifting)
    assert cbn.test(verbose=False) is False
