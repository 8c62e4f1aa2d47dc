"""The kernel `relu_backward`: dy where the y of forward is positive, 0 elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Batch, same_bytes

import cbn

ROWS = [2, 3, 5, 8, 33]
COLS = [1, 15, 17, 64, 256, 257, 1025]


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("rows, cols", [(r, 5) for r in ROWS] + [(6, c) for c in COLS])
def test_it_is_the_backward_pass_of_the_dy_that_relu_lets_through(rows, cols, with_residual, dtype):
    b = Batch((rows, cols), dtype)
    residual = Batch((rows, cols), dtype, key=1).dy if with_residual else None
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, activation="relu", residual=residual)
    through = np.where(y > 0, b.dy, np.zeros((), b.dy.dtype))
    plain = cbn.batch_norm_backward(through, cbn.batch_norm_forward(b.x, b.gamma, b.beta)[1])
    gradients = cbn.batch_norm_backward(b.dy, cache)
    for got, expected in zip(gradients[:3], plain, strict=True):
        same_bytes(got, expected)
    if with_residual:
        same_bytes(gradients[3], through)
    assert (y > 0).any() and (y == 0).any()
