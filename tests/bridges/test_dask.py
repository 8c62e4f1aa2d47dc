"""cbn/distributed/dask.py: chunks against the whole array, on threads and on processes."""

from __future__ import annotations

import numpy as np
import pytest
from cases import generator, same_bytes, within
from tolerances import u, var_bound, y_bound

import cbn

da = pytest.importorskip("dask.array", reason="Dask is not installed: pip install --group dask")
cbn_dask = pytest.importorskip("cbn.distributed.dask")

CHUNKS = {
    "one": (200, 30),
    "rows": (64, 30),
    "channels": (200, 7),
    "both": (33, 11),
    "uneven": ((1, 150, 49), (29, 1)),
}


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes of one thread each."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def data(shape, dtype, key=0):
    rng = generator(shape, key)
    return rng.normal(100, 3, shape).astype(dtype), *rng.normal(1, 0.3, (2, shape[1]))


def check(y, m, x, gamma, beta, axis=1):
    right, cache = cbn.batch_norm_forward(x, gamma, beta, axis=axis)
    assert m.count == cache.count
    within(m.var(), cache.var, 2 * var_bound(x.dtype, cache.var))
    assert y.dtype == right.dtype and y.shape == right.shape
    xhat = np.moveaxis((x.astype(float) - 100) / 3, axis, -1)
    bound = 2 * y_bound(right.dtype, gamma, beta, xhat)
    within(np.moveaxis(y, axis, -1).astype(float), np.moveaxis(right, axis, -1), bound)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_chunks_are_the_whole(chunks, dtype):
    x, gamma, beta = data((200, 30), dtype)
    array = da.from_array(x, chunks=chunks)
    lazy = cbn_dask.batch_norm(array, gamma, beta)
    assert isinstance(lazy, da.Array) and lazy.chunks == array.chunks and lazy.dtype == dtype
    y = lazy.compute(scheduler="threads")
    m = cbn_dask.moments(array).compute(scheduler="threads")
    check(y, m, x, gamma, beta)
    if chunks == CHUNKS["one"]:
        same_bytes(y, cbn.batch_norm_forward(x, gamma, beta)[0])


@pytest.mark.parametrize(("axis", "chunks"), [(1, (2, 3, 4, 6)), (-1, (6, 2, 7, 2)), (0, 4)])
def test_images(axis, chunks):
    x = generator("images").normal(100, 3, (6, 5, 9, 6)).astype(np.float32)
    gamma, beta = generator("images").normal(size=(2, x.shape[axis]))
    array = da.from_array(x, chunks=chunks)
    y = cbn_dask.batch_norm(array, gamma, beta, axis=axis).compute()
    check(y, cbn_dask.moments(array, axis=axis).compute(), x, gamma, beta, axis)


def test_processes_have_the_bytes_of_threads(cluster):
    x, gamma, beta = data((500, 12), np.float32)
    array = da.from_array(x, chunks=(70, 5))
    lazy, m = cbn_dask.batch_norm(array, gamma, beta), cbn_dask.moments(array)
    right = lazy.compute(scheduler="synchronous")
    same_bytes(lazy.compute(scheduler="threads"), right)
    same_bytes(cluster.compute(lazy, sync=True), right)
    found = cluster.compute(m, sync=True)
    assert isinstance(found, cbn.Moments) and found == m.compute(scheduler="synchronous")
    check(right, found, x, gamma, beta)


def test_given_moments():
    x, gamma, beta = data((90, 4), np.float64)
    other, _, _ = data((80, 4), np.float64, key=1)
    lazy = cbn_dask.moments(da.from_array(other, chunks=20))
    m = lazy.compute()
    array = da.from_array(x, chunks=(40, 3))
    right, _ = cbn.batch_norm_normalize(x, m, gamma, beta)
    for given in (m, lazy):
        same_bytes(cbn_dask.batch_norm(array, gamma, beta, m=given).compute(), right)


@pytest.mark.parametrize("channels", [0, 3, 5, 400])
def test_moments_of_other_channels_are_refused_when_they_are_known(channels):
    array = da.ones((8, 4), chunks=(3, 2))
    other = cbn_dask.moments(da.ones((8, channels), chunks=5))
    with pytest.raises(ValueError, match=f"^m: expected 4 channels, got {channels}"):
        cbn_dask.batch_norm(array, m=other).compute()


def test_no_channels():
    array = da.ones((6, 0), chunks=4)
    assert cbn_dask.moments(array).compute().mean.shape == (0,)
    assert cbn_dask.batch_norm(array).compute().shape == (6, 0)


def test_nothing_is_computed_before_it_is_asked_for():
    def load(block):
        raise AssertionError("computed")

    array = da.ones((8, 3), chunks=4).map_blocks(load, dtype=float, meta=np.empty((0, 0)))
    lazy = cbn_dask.batch_norm(array, np.ones(3)), cbn_dask.moments(array)
    for value in lazy:
        with pytest.raises(AssertionError, match="computed"):
            value.compute()


def test_chunks_of_unknown_size_and_without_rows():
    x, gamma, beta = data((60, 5), np.float32)
    x[:20, 0] = -1
    array = da.from_array(x, chunks=(20, 5))
    array = array[array[:, 0] > 0]
    y = cbn_dask.batch_norm(array, gamma, beta).compute()
    check(y, cbn_dask.moments(array).compute(), x[x[:, 0] > 0], gamma, beta)


def test_integers_and_options():
    x = generator("integers").integers(0, 9, (50, 3))
    y = cbn_dask.batch_norm(da.from_array(x, chunks=13), eps=0.5).compute()
    right = cbn.batch_norm_forward(x, eps=0.5)[0]
    np.testing.assert_allclose(y, right, rtol=0, atol=64 * u(np.float64))


def test_one_thread_in_a_chunk(monkeypatch):
    asked = []
    from_batch = cbn.Moments.from_batch.__func__

    def noting(cls, *arguments, num_threads=None):
        asked.append(num_threads)
        return from_batch(cls, *arguments, num_threads=num_threads)

    monkeypatch.setattr(cbn.Moments, "from_batch", classmethod(noting))
    cbn_dask.moments(da.ones((8, 3), chunks=4)).compute(scheduler="synchronous")
    assert asked == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((np.ones((3, 2)),), {}, TypeError, "^array: expected a dask.array.Array, got ndarray"),
        ((da.ones((3, 2, 2)),), {}, ValueError, "^axis: expected the channel axis"),
        ((da.ones((3, 2), dtype=complex),), {}, TypeError, "^array: expected a real dtype"),
        ((da.ones((0, 2)),), {}, ValueError, "^x: expected at least one value per channel"),
        ((da.ones((3, 2)), np.ones(3)), {}, ValueError, r"^gamma: expected shape \(2,\)"),
        ((da.ones((3, 2)),), {"eps": -1}, ValueError, "^eps: expected"),
        ((da.ones((3, 2)),), {"m": 3}, TypeError, "^m: expected Moments, got int"),
    ],
)
def test_bad_arguments(arguments, options, error, text):
    with pytest.raises(error, match=text):
        cbn_dask.batch_norm(*arguments, **options)


def test_without_dask_the_error_names_the_extra(run_python):
    code = (
        "import sys; sys.modules['dask'] = None\n"
        "try:\n    import cbn.distributed.dask\nexcept ImportError as error:\n    print(error)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert 'pip install "cbn[dask]"' in done.stdout
