"""The kernel `scale`: dx = dy * gamma * invstd, which inference backward in place calls."""

from __future__ import annotations

import exact
import numpy as np
import pytest
from cases import Batch, same_bytes, within
from tolerances import dx_bound

import cbn

ROWS = [1, 2, 3, 4, 5, 8, 33]
COLS = [1, 15, 17, 64, 256, 257, 1025]


def dx_in_place(b, dy):
    out = dy.copy()
    return cbn.batch_norm_inference_backward(out, b.x, b.mean, b.var, b.gamma, out=out)[0]


@pytest.mark.parametrize("rows, cols", [(r, 5) for r in ROWS] + [(5, c) for c in COLS])
def test_every_number_of_rows_and_columns(rows, cols, dtype):
    b = Batch((rows, cols), dtype)
    invstd = 1 / np.sqrt(b.var.astype(np.float64) + 1e-5)
    expected = b.dy.astype(np.float64) * b.gamma.astype(np.float64) * invstd
    bound = dx_bound(dtype, b.dy, np.zeros(b.x.shape), b.gamma, invstd, share=0)
    within(dx_in_place(b, b.dy), exact.floats(expected), bound)


def test_it_gives_the_bytes_that_come_along_with_the_sums(dtype):
    b = Batch((37, 70), dtype)
    along = cbn.batch_norm_inference_backward(b.dy, b.x, b.mean, b.var, b.gamma)[0]
    same_bytes(dx_in_place(b, b.dy), along)


def test_minus_zero_becomes_zero(dtype):
    b = Batch((4, 3), dtype)
    assert not np.signbit(dx_in_place(b, np.full((4, 3), -0.0, dtype))).any()
