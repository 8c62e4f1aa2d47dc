"""BatchNorm, the layer: it holds parameters and running statistics and calls the functions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from cbn import _check, _check_state
from cbn._state import STATE_LOCK, write
from cbn.derivatives import batch_norm_inference_cache
from cbn.functional import batch_norm_backward, batch_norm_forward, batch_norm_inference
from cbn.moments import DEFAULT_MOMENTUM, Moments, average_plainly, averaged, renormalization

# The layer's attributes under the names that others give them.
_TORCH = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}
_KERAS = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_FLAX = {"scale": "gamma", "bias": "beta", "mean": "running_mean", "var": "running_var"}
_ONNX = {
    "scale": "gamma",
    "B": "beta",
    "input_mean": "running_mean",
    "input_var": "running_var",
}

# What normalizes in evaluation mode, in the order of `batch_norm_inference`.
_STATISTICS = ("running_mean", "running_var", "gamma", "beta")
_HELD_AS = {"num_batches_tracked": "_batches"}

_OPTIONS = {
    "axis": None,
    "dtype": np.dtype(np.float32),
    "correction": 1,
    "skip_nonfinite": False,
    "reuse_buffers": False,
    "renorm": False,
    "r_max": 3.0,
    "d_max": 5.0,
    "activation": None,
    "num_threads": None,
}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


class BatchNorm:
    """Batch normalization with parameters and running statistics, in PyTorch's conventions.

    ``momentum`` weighs the NEW value, as in PyTorch; ONNX, Keras and cs231n call by that name the
    weight of the old one: give that as ``decay``.

    A call in training mode normalizes by the batch and averages its statistics into
    ``running_mean`` and ``running_var``, equations (1)-(5) and (47); a call in evaluation mode
    normalizes by those, equation (42). `backward` takes the derivatives of the last call.

    Parameters
    ----------
    num_features : int
        Channels, D.
    eps : float
        Added to the variance, finite and >= 0.
    momentum : float or None
        From 0 to 1; None is the plain average over all batches, equation (48).
    affine : bool
        Whether there are gamma and beta.
    track_running_stats : bool
        Whether there are running statistics. Without them the batch's own serve in evaluation too.
    axis : int, optional
        The channel axis of x, as in `batch_norm_forward`: must be given for more than 2 dimensions.
    dtype : dtype
        Of gamma, beta and the running statistics: float32, float64, float16 or bfloat16. x may
        have another.
    correction : float
        The running variance is m2 / (n - correction): 1 unbiased, as in PyTorch, 0 biased, as in
        Keras.
    skip_nonfinite : bool
        Keep a batch whose mean or variance is not finite in any channel out of the running
        statistics and of num_batches_tracked.
    reuse_buffers : bool
        Return y and dx in arrays of the layer's own, which the next call and the next backward for
        the same shape overwrite: saves the memory's first touch, the most of the time for large
        arrays. Copy what must last.
    renorm : bool
        Batch renormalization (Ioffe 2017): in training y = gamma * (xhat * r + d) + beta, where r
        and d, constants for backward, lead from the batch's statistics to the running ones.
    r_max, d_max : float
        r is clipped to [1/r_max, r_max], d to [-d_max, d_max]. 1 and 0 is plain batch
        normalization, where training had better start; set the attributes as it goes on.
    activation : str, optional
        As for `batch_norm_forward`.
    num_threads : int, optional
        Threads for the layer's calls, see `get_num_threads`.
    decay : float, optional
        1 - momentum, in its place.

    Attributes
    ----------
    gamma, beta : ndarray of shape (D,), or None
        Parameters, at first 1 and 0; yours to update.
    dgamma, dbeta : ndarray of shape (D,), or None
        Their gradients, as the last backward left them.
    running_mean, running_var : ndarray of shape (D,), or None
        At first 0 and 1.
    num_batches_tracked : int or None
        Batches in the running statistics.
    training : bool
        The mode; see `train` and `eval`.

    Raises
    ------
    ValueError, TypeError
        An argument out of range or of another type; both momentum and decay.

    Notes
    -----
    A call or a backward that raises changes nothing in the layer, except what lies in the arrays of
    reuse_buffers; an interrupt finds parameters and statistics all as before or all as after. Calls
    from several Python threads are each averaged in, in any order, while `backward` belongs to the
    last call of all. A pickle or a deep copy has parameters and statistics, but not what the last
    call left for backward.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> bn = cbn.BatchNorm(2, dtype=np.float64)
    >>> y = bn(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> bn.running_mean, bn.running_var
    (array([0.2, 2. ]), array([ 1.1, 20.9]))
    >>> dx = bn.backward(np.array([[1.0, 0.0], [0.0, 2.0]]))
    >>> bn.dbeta
    array([1., 2.])
    >>> bn.eval()(np.array([[0.2, 2.0]]))
    array([[0., 0.]])
    """

    # Any stands for None, which a layer without parameters or statistics has.
    gamma: NDArray | Any
    beta: NDArray | Any
    dgamma: NDArray | Any
    dbeta: NDArray | Any
    running_mean: NDArray | Any
    running_var: NDArray | Any

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = DEFAULT_MOMENTUM,
        affine: bool = True,
        track_running_stats: bool = True,
        axis: int | None = None,
        dtype: DTypeLike = np.float32,
        correction: float = 1,
        skip_nonfinite: bool = False,
        reuse_buffers: bool = False,
        renorm: bool = False,
        r_max: float = 3.0,
        d_max: float = 5.0,
        activation: str | None = None,
        num_threads: int | None = None,
        decay: float | None = None,
    ) -> None:
        self.num_features = _check_state.num_features(num_features)
        self.eps = _check.epsilon(eps)
        self.momentum = _check_state.momentum(momentum, decay, DEFAULT_MOMENTUM)
        self.axis = _check_state.axis(axis)
        self.dtype = _check_state.parameter_dtype(dtype)
        self.correction = _check_state.correction(correction)
        self.skip_nonfinite = skip_nonfinite
        self.reuse_buffers = reuse_buffers
        _check_state.renorm(renorm, track_running_stats)
        _check_state.clipping(r_max, d_max)
        self.renorm, self.r_max, self.d_max = renorm, r_max, d_max
        self.activation = activation
        self.num_threads = None if num_threads is None else _check.threads(num_threads)
        self.affine, self.track_running_stats = affine, track_running_stats
        self.training = True
        self.gamma = self.beta = self.dgamma = self.dbeta = None
        self.running_mean = self.running_var = self._batches = None
        shape = (self.num_features,)
        if affine:
            self.gamma, self.beta = np.ones(shape, self.dtype), np.zeros(shape, self.dtype)
        if track_running_stats:
            self.running_mean, self.running_var = (
                make(shape, self.dtype) for make in (np.zeros, np.ones)
            )
            self._batches = np.zeros((), np.int64)
        self._saved: Any = None
        self._buffers: dict[str, NDArray] = {}

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        residual: ArrayLike | None = None,
    ) -> NDArray:
        """Normalize x, and in training mode average its statistics into the running ones.

        Parameters
        ----------
        x : array_like, shape (N, D) or more dimensions
        mask, sample_weight : array_like, optional
            What counts in the statistics of the batch, see `batch_norm_forward`. A batch of which
            nothing counts leaves the running ones alone. When those normalize, y is 0 where the
            mask leaves out, as in training, and sample_weight is of no effect.
        residual : array_like, optional
            See `batch_norm_forward`.

        Returns
        -------
        ndarray
            y, of x's shape and dtype.

        Raises
        ------
        ValueError
            One value per channel in training, another number of channels, and as
            `batch_norm_forward` and `update_running_stats`.
        TypeError
            As `batch_norm_forward`.
        """
        x = _check.real_array("x", x)
        axis = _check.batch(x, self.axis)
        _check_state.features(x, axis, self.num_features)
        options = _given(residual=residual, activation=self.activation)
        if not self.training and self.running_mean is not None:
            return self._evaluate(x, _given(mask=mask) | options)
        _check_state.several_values(x, axis, mask)
        return self._normalize(x, _given(mask=mask, sample_weight=sample_weight), options)

    def _evaluate(self, x: NDArray, options: dict[str, Any]) -> NDArray:
        with STATE_LOCK:  # the two running statistics of one update
            given = [copy.copy(getattr(self, name)) for name in _STATISTICS]
        settings = {"axis": self.axis, "eps": self.eps, **options}
        out = self._buffer("y", x, x, *options.values())
        y = batch_norm_inference(x, *given, out=out, num_threads=self.num_threads, **settings)
        self._saved = partial(batch_norm_inference_cache, x, *given, **settings), None
        return y

    def _normalize(self, x: NDArray, weights: dict[str, Any], options: dict[str, Any]) -> NDArray:
        gamma, beta, factors = self.gamma, self.beta, None
        if self.renorm:
            gamma = _check.parameter("gamma", gamma, self.num_features)
            beta = _check.parameter("beta", beta, self.num_features)
            m = Moments.from_batch(x, self.axis, num_threads=self.num_threads, **weights)
            with STATE_LOCK:
                running = self.running_mean, self.running_var
                r, d = factors = renormalization(m, *running, self.eps, self.r_max, self.d_max)
            shift = d if gamma is None else gamma * d
            gamma = r if gamma is None else gamma * r
            beta = shift if beta is None else shift + beta
        y, cache = batch_norm_forward(
            x,
            gamma,
            beta,
            axis=self.axis,
            eps=self.eps,
            out=self._buffer("y", x, x, *weights.values(), *options.values()),
            num_threads=self.num_threads,
            **weights,
            **options,
        )
        if self.running_mean is None:
            self._saved = cache, factors
        elif not self._track_plainly((cache, factors)):
            self._track(Moments.from_cache(cache), (cache, factors))
        return y

    def _track_plainly(self, saved: tuple[Any, ...]) -> bool:
        """What `_track` does, if nothing is unusual: 2 us instead of 30."""
        if self.skip_nonfinite:
            return False
        statistics = self.running_mean, self.running_var, self._batches
        with STATE_LOCK:
            done = average_plainly(*statistics, saved[0], self.momentum, self.correction)
            if done:
                self._saved = saved
        return done

    def _track(self, m: Moments, saved: tuple[Any, ...]) -> None:
        """Keep what backward needs, and average m into the running statistics."""
        with STATE_LOCK:
            batches = self.num_batches_tracked + 1
            averages = averaged(
                *(self.running_mean, self.running_var, m, self.momentum, self.correction),
                *(self.skip_nonfinite, None, batches),
            )
            self._saved = saved
            if averages is not None:
                write((self.running_mean, self.running_var, self._batches), (*averages, batches))

    @property
    def num_batches_tracked(self) -> int | Any:
        return None if self._batches is None else int(self._batches)

    @num_batches_tracked.setter
    def num_batches_tracked(self, batches: int) -> None:
        self._batches = np.array(_check_state.batches(batches), np.int64)

    def backward(self, dy: ArrayLike) -> NDArray | Any:
        """The gradients of the last call: dx is returned, dgamma and dbeta become attributes.

        Parameters
        ----------
        dy : array_like, x's shape
            Gradient of the loss with respect to y.

        Returns
        -------
        dx : ndarray
            Of x's shape and y's dtype; (dx, dresidual) if the call had a residual.

        Raises
        ------
        RuntimeError
            Without a call before it.
        ValueError, TypeError
            As `batch_norm_backward`.
        """
        _check_state.called(self._saved)
        cache, factors = self._saved
        cache = cache() if callable(cache) else cache
        out = self._buffer("dx", cache.x, cache.x, dy)
        dx, dgamma, dbeta, *dresidual = batch_norm_backward(
            dy, cache, out=out, num_threads=self.num_threads
        )
        if factors is not None:
            r, d = factors
            dgamma, dbeta = self._through(r, d, dgamma, dbeta)
        self.dgamma, self.dbeta = dgamma, dbeta
        return (dx, *dresidual) if dresidual else dx

    def _through(self, r: NDArray, d: NDArray, dgamma: NDArray, dbeta: NDArray) -> tuple[Any, Any]:
        """The gradients in gamma and beta from those in gamma * r and gamma * d + beta."""
        with np.errstate(over="ignore"):
            pairs = (r * dgamma + d * dbeta, self.gamma), (dbeta, self.beta)
            dgamma, dbeta = (None if to is None else a.astype(to.dtype) for a, to in pairs)
        return dgamma, dbeta

    def _buffer(self, name: str, x: NDArray, *inputs: Any) -> NDArray | None:
        """The layer's own array for a result of x's shape, unless an input lies in it."""
        if not self.reuse_buffers:
            return None
        dtype = _check.result_dtype(x.dtype)
        buffer = self._buffers.get(name)
        if (
            buffer is None
            or (buffer.shape, buffer.dtype) != (x.shape, dtype)
            or any(isinstance(a, np.ndarray) and np.may_share_memory(a, buffer) for a in inputs)
        ):
            buffer = self._buffers[name] = np.empty_like(x, dtype, subok=False)
        return buffer

    def train(self, mode: bool = True) -> BatchNorm:
        """Set training mode, or with False evaluation mode; returns self."""
        self.training = bool(mode)
        return self

    def eval(self) -> BatchNorm:
        """Set evaluation mode; returns self."""
        return self.train(False)

    def state_dict(self) -> dict[str, NDArray]:
        """Copies of the parameters and running statistics under PyTorch's names.

        Returns
        -------
        dict
            weight, bias, running_mean, running_var, each of shape (D,), and num_batches_tracked,
            a 0-d int64 array; those that the layer has.
        """
        return {key: np.array(getattr(self, name)) for key, name in self._keys(_TORCH).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy parameters and running statistics, named as in `state_dict`, into the layer's.

        Parameters
        ----------
        state : mapping
            Anything NumPy makes arrays of, PyTorch's tensors included.

        Raises
        ------
        ValueError
            A key missing or not expected, a wrong shape, a negative variance.
        TypeError
            Another dtype, not a mapping.
        """
        self._load("state", state, _TORCH)

    def load_keras(self, state: Mapping[str, Any]) -> None:
        """As `load_state_dict`, from gamma, beta, moving_mean and moving_variance.

        Keras's default eps is 1e-3, its momentum is `decay`, its correction 0: those are not in the
        dictionary. num_batches_tracked stays as it is.
        """
        self._load("state", state, _KERAS)

    def load_flax(self, state: Mapping[str, Any]) -> None:
        """As `load_keras`, from scale, bias, mean and var.

        Flat, or as Flax has them: ``{"params": {scale, bias}, "batch_stats": {mean, var}}``.
        """
        self._load(
            "state", _check_state.flattened("state", state, ("params", "batch_stats")), _FLAX
        )

    def load_onnx(self, state: Mapping[str, Any]) -> None:
        """As `load_keras`, from BatchNormalization's scale, B, input_mean and input_var."""
        self._load("state", state, _ONNX)

    def _keys(self, names: dict[str, str]) -> dict[str, str]:
        return {key: name for key, name in names.items() if getattr(self, name) is not None}

    def _load(self, what: str, state: Mapping[str, Any], names: dict[str, str]) -> None:
        values = _check_state.state(
            what, state, self._keys(names), self.__dict__, self.num_features
        )
        targets = [getattr(self, _HELD_AS.get(name, name)) for name in values]
        with STATE_LOCK:
            write(targets, list(values.values()))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_saved": None, "_buffers": {}}

    def __repr__(self) -> str:
        shown = ("eps", "momentum", "affine", "track_running_stats")
        shown += tuple(name for name, usual in _OPTIONS.items() if getattr(self, name) != usual)
        settings = (f"{name}={getattr(self, name)}" for name in shown)
        return f"BatchNorm({', '.join([str(self.num_features), *settings])})"
