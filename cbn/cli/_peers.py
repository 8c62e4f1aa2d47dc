"""The libraries that ``cbn bench`` compares with, each written as its own users would."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn.cli._contenders import EPS, Call, Contender, Data
from cbn.cli._onednn import OneDnn


class NumPy(Contender):
    """The formulas as one writes them; NumPy computes them in one thread."""

    package = "numpy"

    def forward(self) -> list[Call]:
        d, out = self.data, self.out

        def call():
            y = np.subtract(d.x, d.x.mean(axis=0), out=out)
            y *= d.gamma / np.sqrt(np.square(y).mean(axis=0) + EPS)
            y += d.beta
            return y

        return [call]

    def backward(self) -> list[Call]:
        d, out, N = self.data, self.out, len(self.data.x)
        mean, invstd = d.x.mean(axis=0), 1 / np.sqrt(d.x.var(axis=0) + EPS)

        def call():
            xhat = (d.x - mean) * invstd
            dgamma, dbeta = (d.dy * xhat).sum(axis=0), d.dy.sum(axis=0)
            xhat *= dgamma / N
            dx = np.subtract(d.dy, xhat, out=out)
            dx -= dbeta / N
            dx *= d.gamma * invstd
            return dx, dgamma, dbeta

        return [call]

    def inference(self) -> list[Call]:
        d, out = self.data, self.out

        def call():
            y = np.subtract(d.x, d.mean, out=out)
            y *= d.gamma / np.sqrt(d.var + EPS)
            y += d.beta
            return y

        return [call]

    def inference_backward(self) -> list[Call]:
        d, out = self.data, self.out

        def call():
            invstd = 1 / np.sqrt(d.var + EPS)
            dgamma = (d.dy * (d.x - d.mean)).sum(axis=0) * invstd
            return np.multiply(d.dy, d.gamma * invstd, out=out), dgamma, d.dy.sum(axis=0)

        return [call]


class Torch(Contender):
    """PyTorch's operators; its default calls for fresh results."""

    package = "torch"
    any_axis = True

    def __init__(self, data: Data, threads: int, fresh: bool) -> None:
        import torch

        super().__init__(
            data.map(lambda array: self._channels_second(torch.from_numpy(array), data.axis)),
            threads,
            fresh,
        )
        torch.set_num_threads(threads)
        self.torch = torch

    @staticmethod
    def _channels_second(tensor: Any, axis: int | None) -> Any:
        return tensor.movedim(-1, 1) if axis == -1 and tensor.ndim > 1 else tensor

    def _forward(self, mean: Any, var: Any, training: bool) -> list[Call]:
        d = self.data
        if self.out is None:
            batch_norm = self.torch.nn.functional.batch_norm
            return [partial(batch_norm, d.x, mean, var, d.gamma, d.beta, training, eps=EPS)]
        out = (self.out, *map(self.torch.empty_like, (d.mean, d.var)))
        arguments = (d.x, d.gamma, d.beta, mean, var, training, 0.1, EPS)
        return [partial(self.torch.native_batch_norm, *arguments, out=out)]

    def _backward(self, *statistics: Any, training: bool) -> list[Call]:
        d = self.data
        operator = self.torch.ops.aten.native_batch_norm_backward
        arguments = (d.dy, d.x, d.gamma, *statistics, training, EPS, [True] * 3)
        calls = [partial(operator.default, *arguments)]
        if self.out is not None:
            # It copies fresh results into these: not always the faster way.
            dgamma, dbeta = map(self.torch.empty_like, (d.gamma, d.beta))
            calls.append(partial(operator.out, *arguments, out0=self.out, out1=dgamma, out2=dbeta))
        return calls

    def forward(self) -> list[Call]:
        return self._forward(None, None, True)

    def backward(self) -> list[Call]:
        d = self.data
        _, *statistics = self.torch.native_batch_norm(
            d.x, d.gamma, d.beta, None, None, True, 0.1, EPS
        )
        return self._backward(None, None, *statistics, training=True)

    def inference(self) -> list[Call]:
        return self._forward(self.data.mean, self.data.var, False)

    def inference_backward(self) -> list[Call]:
        return self._backward(self.data.mean, self.data.var, None, None, training=False)


class Jax(Contender):
    """Jitted formulas on the CPU, always with fresh results and JAX's own number of threads."""

    package = "jax"

    def __init__(self, data: Data, threads: int, fresh: bool) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        cpu = jax.devices("cpu")[0]
        super().__init__(data.rows().map(partial(jax.device_put, device=cpu)), threads, fresh)
        self.jax = jax

    def _jit(self, function: Callable[..., Any], *arguments: Any) -> list[Call]:
        compiled, wait = self.jax.jit(function), self.jax.block_until_ready
        return [lambda: wait(compiled(*arguments))]

    def _statistics(self, x: Any) -> tuple[Any, Any]:
        """Mean and invstd from E[x^2] - E[x]^2, which is faster than two passes; Flax does it."""
        mean = x.mean(axis=0)
        return mean, self.jax.lax.rsqrt((x * x).mean(axis=0) - mean * mean + EPS)

    def forward(self) -> list[Call]:
        def function(x, gamma, beta):
            mean, invstd = self._statistics(x)
            return (x - mean) * (gamma * invstd) + beta

        d = self.data
        return self._jit(function, d.x, d.gamma, d.beta)

    def backward(self) -> list[Call]:
        def function(dy, x, gamma, mean, invstd):
            xhat = (x - mean) * invstd
            dgamma, dbeta = (dy * xhat).sum(axis=0), dy.sum(axis=0)
            dx = gamma * invstd * (dy - dbeta / len(x) - xhat * (dgamma / len(x)))
            return dx, dgamma, dbeta

        d = self.data
        return self._jit(function, d.dy, d.x, d.gamma, *self.jax.jit(self._statistics)(d.x))

    def inference(self) -> list[Call]:
        def function(x, mean, var, gamma, beta):
            return (x - mean) * (gamma * self.jax.lax.rsqrt(var + EPS)) + beta

        d = self.data
        return self._jit(function, d.x, d.mean, d.var, d.gamma, d.beta)

    def inference_backward(self) -> list[Call]:
        def function(dy, x, mean, var, gamma):
            invstd = self.jax.lax.rsqrt(var + EPS)
            dgamma = (dy * (x - mean)).sum(axis=0) * invstd
            return dy * (gamma * invstd), dgamma, dy.sum(axis=0)

        d = self.data
        return self._jit(function, d.dy, d.x, d.mean, d.var, d.gamma)


@functools.cache
def _numba_kernels() -> tuple[Callable[..., Any], ...]:
    """The four kernels, threaded over strips of columns and, where these are few, over rows."""
    from numba import get_num_threads, njit, prange

    @njit
    def grid(shape):
        N, D = shape
        strips = (D + 255) // 256
        blocks = min(N, (get_num_threads() + strips - 1) // strips)
        return strips, blocks

    @njit
    def span(size, parts, part):
        return slice(size * part // parts, size * (part + 1) // parts)

    @njit(parallel=True)
    def moments(x):
        N, D = x.shape
        strips, blocks = grid(x.shape)
        sums, squares = np.zeros((blocks, D), x.dtype), np.zeros((blocks, D), x.dtype)
        for task in prange(strips * blocks):
            block = task // strips
            columns, rows = span(D, strips, task % strips), span(N, blocks, block)
            shift, s, q = x[0, columns], sums[block, columns], squares[block, columns]
            for i in range(rows.start, rows.stop):
                row = x[i, columns]
                for j in range(len(row)):
                    d = row[j] - shift[j]
                    s[j] += d
                    q[j] += d * d
        mean = sums.sum(axis=0) / N
        return x[0] + mean, squares.sum(axis=0) / N - mean * mean

    @njit(parallel=True)
    def normalize(y, x, mean, scale, beta):
        N, D = x.shape
        strips, blocks = grid(x.shape)
        for task in prange(strips * blocks):
            columns, rows = span(D, strips, task % strips), span(N, blocks, task // strips)
            m, a, b = mean[columns], scale[columns], beta[columns]
            for i in range(rows.start, rows.stop):
                source, target = x[i, columns], y[i, columns]
                for j in range(len(source)):
                    target[j] = (source[j] - m[j]) * a[j] + b[j]
        return y

    @njit(parallel=True)
    def backward_sums(dy, x, mean):
        N, D = x.shape
        strips, blocks = grid(x.shape)
        sums, products = np.zeros((blocks, D), x.dtype), np.zeros((blocks, D), x.dtype)
        for task in prange(strips * blocks):
            block = task // strips
            columns, rows = span(D, strips, task % strips), span(N, blocks, block)
            m, s, p = mean[columns], sums[block, columns], products[block, columns]
            for i in range(rows.start, rows.stop):
                gradient, row = dy[i, columns], x[i, columns]
                for j in range(len(row)):
                    s[j] += gradient[j]
                    p[j] += gradient[j] * (row[j] - m[j])
        return sums.sum(axis=0), products.sum(axis=0)

    @njit(parallel=True)
    def backward_dx(dx, dy, x, mean, scale, along_x, along_one):
        N, D = x.shape
        strips, blocks = grid(x.shape)
        for task in prange(strips * blocks):
            columns, rows = span(D, strips, task % strips), span(N, blocks, task // strips)
            m, a, b, c = mean[columns], scale[columns], along_x[columns], along_one[columns]
            for i in range(rows.start, rows.stop):
                gradient, row, target = dy[i, columns], x[i, columns], dx[i, columns]
                for j in range(len(row)):
                    target[j] = gradient[j] * a[j] + (row[j] - m[j]) * b[j] + c[j]
        return dx

    return moments, normalize, backward_sums, backward_dx


class Numba(Contender):
    """Two parallel kernels an operation: the sums, then the map."""

    package = "numba"

    def __init__(self, data: Data, threads: int, fresh: bool) -> None:
        import numba

        super().__init__(data, threads, fresh)
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        self.kernels = _numba_kernels()

    def _target(self) -> NDArray:
        return np.empty_like(self.data.x) if self.out is None else self.out

    def forward(self) -> list[Call]:
        d = self.data
        moments, normalize, *_ = self.kernels

        def call():
            mean, var = moments(d.x)
            return normalize(self._target(), d.x, mean, d.gamma / np.sqrt(var + EPS), d.beta)

        return [call]

    def backward(self) -> list[Call]:
        d, N = self.data, len(self.data.x)
        moments, _, backward_sums, backward_dx = self.kernels
        mean, var = moments(d.x)
        invstd = 1 / np.sqrt(var + EPS)

        def call():
            dbeta, dy_x = backward_sums(d.dy, d.x, mean)
            dgamma, scale = dy_x * invstd, d.gamma * invstd
            along_x, along_one = scale * dgamma * invstd / -N, scale * dbeta / -N
            dx = backward_dx(self._target(), d.dy, d.x, mean, scale, along_x, along_one)
            return dx, dgamma, dbeta

        return [call]

    def inference(self) -> list[Call]:
        d = self.data
        normalize = self.kernels[1]

        def call():
            return normalize(self._target(), d.x, d.mean, d.gamma / np.sqrt(d.var + EPS), d.beta)

        return [call]

    def inference_backward(self) -> list[Call]:
        d, zero = self.data, np.zeros_like(self.data.beta)
        _, normalize, backward_sums, _ = self.kernels

        def call():
            invstd = 1 / np.sqrt(d.var + EPS)
            dbeta, dy_x = backward_sums(d.dy, d.x, d.mean)
            dx = normalize(self._target(), d.dy, zero, d.gamma * invstd, zero)
            return dx, dy_x * invstd, dbeta

        return [call]


PEERS: dict[str, type[Contender]] = {
    "numpy": NumPy,
    "torch": Torch,
    "jax": Jax,
    "numba": Numba,
    "onednn": OneDnn,
}
