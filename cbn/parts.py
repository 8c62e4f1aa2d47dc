"""A batch in parts: forward with merged moments, backward with merged sums.

Parts may be micro-batches, files, or what other processes hold; (44) and (46) of docs/math.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import ArrayLike, NDArray

from cbn import _check, _check_state, _passes
from cbn._arrays import gradient, new_array
from cbn.cache import BatchNormCache, ForwardOptions
from cbn.functional import output, prepared
from cbn.moments import BackwardSums, Moments
from cbn.runtime import resolve_threads


class Part(NamedTuple):
    """A part of a batch with everything checked and allocated, before the whole is known."""

    y: NDArray
    x: NDArray
    call: _passes.Call
    options: ForwardOptions

    @classmethod
    def of(cls, x: ArrayLike, gamma: Any, beta: Any, **options: Any) -> Part:
        """Of the arguments of `batch_norm_normalize` but m; x may be empty."""
        return cls(*prepared(x, gamma, beta, of_part=True, **options))

    @property
    def values(self) -> int:
        """Per channel, of whatever weight."""
        return _passes.values_per_channel(self.x, self.call.axis, self.options.positions)

    def moments(self) -> Moments:
        """Those of the part; none if nothing counts in it."""
        mask, weight = self.options.mask, self.options.weight
        channels = self.x.shape[self.call.axis]
        if not _passes.values_of(self.x, self.call.axis, self.options):
            return Moments(0, [0.0] * channels, [0.0] * channels)
        count, stats = _passes.statistics(self.x, self.call.axis, mask, weight, self.call.threads)
        return Moments._of(count, stats[:3])

    def normalize(self, m: Moments) -> tuple[NDArray, BatchNormCache]:
        """y and cache by the moments of the whole."""
        _check_state.of_channels("m", m, Moments, self.x.shape[self.call.axis])
        stats = _passes.fixed_statistics(m.mean, m.var(), m._channels, m.mean_low)
        return self.y, _passes.forward_of_part(*self, stats, m.count)


def batch_norm_normalize(
    x: ArrayLike,
    m: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray, BatchNormCache]:
    """Forward with given moments: of a batch of which x is a part, equations (3)-(5).

    Parameters
    ----------
    x, gamma, beta, axis, eps, mask, residual, activation, num_threads
        As for `batch_norm_forward`; x may have no rows.
    m : Moments
        Of the whole batch.
    sample_weight : array_like, optional
        The weights that x had in m, for backward; y does not depend on them.
    out : ndarray, optional
        Where to put y; not x itself, which backward needs.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype.
    cache : BatchNormCache
        With m's statistics and count, for `BackwardSums.from_batch` and
        `batch_norm_backward_apply`.

    Raises
    ------
    ValueError
        m of another number of channels or of no values, and as `batch_norm_forward`.
    TypeError
        m is no Moments, and as `batch_norm_forward`.
    """
    part = Part.of(
        *(x, gamma, beta),
        axis=axis,
        eps=eps,
        mask=mask,
        sample_weight=sample_weight,
        residual=residual,
        activation=activation,
        out=out,
        num_threads=num_threads,
    )
    return part.normalize(m)


class Gradients(NamedTuple):
    """A part's backward with everything checked and allocated, before the sums are known."""

    dx: NDArray
    dresidual: NDArray | None
    dy: NDArray
    cache: BatchNormCache
    threads: int

    @classmethod
    def of(
        cls,
        dy: ArrayLike,
        cache: BatchNormCache,
        out: NDArray | None = None,
        num_threads: int | None = None,
    ) -> Gradients:
        """Of the arguments of `batch_norm_backward_apply` but s."""
        _check.part_cache(cache, BatchNormCache)
        x, residual = cache.x, cache._options.residual
        dy = _check.same_shape("dy", dy, x.shape)
        threads = resolve_threads(num_threads)
        dx = output(out, x, {"dy": dy, "x": x}, gamma=cache.gamma, residual=residual)
        return cls(dx, None if residual is None else new_array(x), dy, cache, threads)

    def apply(self, s: BackwardSums) -> tuple[NDArray | None, ...]:
        """dx, dgamma, dbeta and maybe dresidual by the sums of the whole."""
        cache = self.cache
        _check_state.of_channels("s", s, BackwardSums, cache._stats.shape[1])
        sums = _passes.Sums(s.sum_dy_xhat.copy(), s.sum_dy.copy())
        _passes.apply_sums(*self[:4], s.count, sums, self.threads)
        dgamma = gradient(sums.dy_xhat, cache._gamma_dtype)
        dbeta = gradient(sums.dy, cache._beta_dtype)
        dresidual = () if self.dresidual is None else (self.dresidual,)
        return self.dx, dgamma, dbeta, *dresidual


def batch_norm_backward_apply(
    dy: ArrayLike,
    cache: BatchNormCache,
    s: BackwardSums,
    *,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray | None, ...]:
    """Backward with given sums: those of a batch of which dy is a part, equation (16).

    Parameters
    ----------
    dy, out, num_threads
        As for `batch_norm_backward`.
    cache : BatchNormCache
        Of this part, with the statistics of the whole batch.
    s : BackwardSums
        Of the whole batch.

    Returns
    -------
    dx : ndarray
        Of this part.
    dgamma, dbeta : ndarray of shape (D,), or None
        Of the whole batch.
    dresidual : ndarray
        Only for a cache with a residual; as dx.

    Raises
    ------
    ValueError
        s of another number of channels or of no values, and as `batch_norm_backward`.
    TypeError
        s is no BackwardSums, and as `batch_norm_backward`.
    """
    return Gradients.of(dy, cache, out, num_threads).apply(s)
