"""cbn.test(): does this copy of cbn compute on this machine what it should?

Design: NumPy alone, a second, and only what can differ between machines - the compiled code. The
test suite is not installed; it runs from the repository or the sdist.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Around a tile, a block of rows and both work splits.
_SHAPES = ((1, 3), (7, 5), (33, 130), (600, 4), (4099, 2))
_THREADS = (1, 2, 5)


def test(verbose: bool = True) -> bool:
    """Check the compiled functions on this machine, in about a second.

    Forward, inference, backward, JVP and double backward of float64 and float32 arrays are
    compared with `cbn.reference`, and their bytes between numbers of threads and memory layouts.
    ``cbn check`` does more, by finite differences; the whole test suite is in the repository and
    the sdist, for pytest.

    Parameters
    ----------
    verbose : bool
        Print a line a check.

    Returns
    -------
    bool
        Whether all passed.

    Examples
    --------
    >>> import cbn
    >>> cbn.test(verbose=False)
    True
    """
    passed = True
    for name, error, bound in _checks():
        good = bool(error <= bound)
        passed &= good
        if verbose:
            print(f"{name:50}{error:9.1e} <= {bound:7.1e}   {'pass' if good else 'FAIL'}")
    if verbose or not passed:
        print("all pass" if passed else "FAILED", file=sys.stdout if passed else sys.stderr)
    return passed


def _checks() -> Iterator[tuple[str, float, float]]:
    """Name, largest error, and what is allowed; for bytes how many results differ."""
    for dtype in (np.float64, np.float32):
        # Relative to the largest value and not to the terms, so looser than docs/accuracy.md.
        bound = 256 * float(np.finfo(dtype).eps)
        for shape in _SHAPES:
            case = f"{np.dtype(dtype).name} {'x'.join(map(str, shape))}"
            args = _arguments(shape, dtype)
            found, right = _compiled(args), _right(args)
            for name, value in right.items():
                yield f"{case} {name}", _error(found[name], value), bound
            for count in _THREADS:
                yield f"{case} bytes on {count} threads", _differ(found, args, count), 0
            strided = tuple(map(_strided, args))
            yield f"{case} bytes of other strides", _differ(found, strided), 0


def _arguments(shape: tuple[int, int], dtype: type) -> tuple[NDArray, ...]:
    """x, dy, x_dot, gamma and beta."""
    rng = np.random.default_rng(shape)
    return (
        *rng.normal(2, 1.5, (3, *shape)).astype(dtype),
        *rng.normal(1, 0.5, (2, shape[1])).astype(dtype),
    )


def _strided(a: NDArray) -> NDArray:
    """The same array in other places of memory, back to front."""
    return np.asfortranarray(np.repeat(a[::-1], 2, axis=0))[::-2]


def _compiled(args: tuple[NDArray, ...], threads: int = 1) -> dict[str, NDArray]:
    import cbn

    x, dy, x_dot, gamma, beta = args
    with cbn.num_threads(threads):
        y, cache = cbn.batch_norm_forward(x, gamma, beta)
        dx, dgamma, dbeta = cbn.batch_norm_backward(dy, cache)
        g_dy, g_x, g_gamma = cbn.batch_norm_double_backward(x_dot, dy, cache, gamma, beta)
        return {
            "y": y,
            "inference": cbn.batch_norm_inference(x, gamma, beta**2, beta, gamma),
            **{"dx": dx, "dgamma": dgamma, "dbeta": dbeta},
            "y_dot": cbn.batch_norm_jvp(x_dot, cache, beta, gamma),
            **{"g_dy": g_dy, "g_x": g_x, "g_gamma": g_gamma},
        }


def _right(args: tuple[NDArray, ...]) -> dict[str, NDArray]:
    from cbn import reference

    x, dy, x_dot, gamma, beta = (a.astype(np.float64) for a in args)
    y, cache = reference.forward(x, gamma, beta, 1e-5)
    fixed = reference.fixed_statistics(x, gamma, args[4] ** 2, beta, gamma, 1e-5)[0]
    backward = zip(("dx", "dgamma", "dbeta"), reference.backward(dy, cache), strict=True)
    double = reference.double_backward(x_dot, dy, cache, gamma, beta)
    return {
        **{"y": y, "inference": fixed, **dict(backward)},
        "y_dot": reference.jvp(x_dot, cache, beta, gamma),
        **dict(zip(("g_dy", "g_x", "g_gamma"), double, strict=True)),
    }


def _error(found: NDArray, right: NDArray) -> float:
    scale = 1 + float(np.abs(right).max())
    return float(np.abs(found - right).max()) / scale


def _differ(found: dict[str, NDArray], args: tuple[NDArray, ...], threads: int = 1) -> float:
    again = _compiled(args, threads)
    return float(sum(again[name].tobytes() != value.tobytes() for name, value in found.items()))
