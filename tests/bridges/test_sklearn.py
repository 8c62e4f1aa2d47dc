"""cbn.interop.sklearn: scikit-learn's own checks of an estimator, and StandardScaler beside it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cases import generator, same_bytes, within
from tolerances import REFERENCE_RTOL, u, y_bound

import cbn

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install --group interop")
BatchNormalizer = pytest.importorskip("cbn.interop.sklearn").BatchNormalizer

from sklearn.base import clone  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402


@parametrize_with_checks([BatchNormalizer(), BatchNormalizer(eps=0.0)])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture
def data():
    return generator("sklearn").normal(3, 2, (50, 4))


@pytest.fixture
def weight():
    return generator("sklearn weight").integers(0, 4, 50).astype(float)


@pytest.mark.parametrize("weighted", [False, True])
def test_beside_standard_scaler(data, weight, weighted):
    weight = weight if weighted else None
    found = BatchNormalizer(eps=0.0).fit(data, sample_weight=weight)
    right = StandardScaler().fit(data, sample_weight=weight)
    for a, b in (
        (found.mean_, right.mean_),
        (found.var_, right.var_),
        (found.scale_, right.scale_),
    ):
        np.testing.assert_allclose(a, b, rtol=REFERENCE_RTOL)
    np.testing.assert_allclose(found.transform(data), right.transform(data), atol=REFERENCE_RTOL)
    assert found.n_samples_seen_ == right.n_samples_seen_


def test_partial_fit_is_exact_far_from_zero(data):
    data = data + 1e9
    whole = BatchNormalizer().fit(data)
    parts = BatchNormalizer()
    for rows in np.array_split(data, 7):
        assert parts.partial_fit(rows) is parts
    assert parts.n_samples_seen_ == 50
    np.testing.assert_allclose(parts.var_, whole.var_, rtol=REFERENCE_RTOL)
    right = np.var(data - np.float64(1e9), axis=0)
    np.testing.assert_allclose(parts.var_, right, rtol=64 * u(np.float64))


def test_weights_are_repetitions(data, weight):
    repeated = np.repeat(data, weight.astype(int), axis=0)
    for correction in (0, 1):
        found = BatchNormalizer(correction=correction)
        found.partial_fit(data[:20], sample_weight=weight[:20])
        found.partial_fit(data[20:], sample_weight=weight[20:])
        np.testing.assert_allclose(found.mean_, repeated.mean(0), rtol=REFERENCE_RTOL)
        right = repeated.var(0, ddof=correction)
        np.testing.assert_allclose(found.var_, right, rtol=REFERENCE_RTOL)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_are_kept_and_the_inverse_is_one(data, dtype):
    data = data.astype(dtype)
    scaler = BatchNormalizer().fit(data)
    y = scaler.transform(data)
    same_bytes(y, cbn.batch_norm_inference(data, scaler.mean_, scaler.var_))
    back = scaler.inverse_transform(y)
    assert y.dtype == back.dtype == dtype and scaler.mean_.dtype == np.float64
    rounded_y = u(dtype) * abs(y.astype(float)) * scaler.scale_
    bound = y_bound(dtype, scaler.scale_, scaler.mean_, y) + 8 * u(dtype) * scaler.scale_
    within(back, data.astype(float), 2 * (bound + rounded_y))


def test_eps_and_constant_features():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    y = BatchNormalizer(eps=3.0).fit_transform(x)
    np.testing.assert_allclose(y, [[-0.5, 0], [0.5, 0]], rtol=1e-15)
    scaler = BatchNormalizer(eps=0.0).fit(x)
    assert np.array_equal(scaler.transform(x), [[-1, 0], [1, 0]])
    assert np.array_equal(scaler.inverse_transform([[-1, 7], [1, 7]]), x)


def test_what_was_given_out_does_not_change(data):
    scaler = BatchNormalizer().partial_fit(data[:20])
    kept, mean = scaler.moments_, scaler.mean_.copy()
    scaler.partial_fit(data[20:])
    assert kept.count == 20 and np.array_equal(kept.mean, mean)
    with pytest.raises(ValueError, match="5 features"):
        scaler.partial_fit(np.ones((3, 5)))
    assert scaler.n_samples_seen_ == 50


def test_in_a_pipeline_with_names_and_as_a_pickle(data):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(data, columns=list("abcd"))
    pipeline = make_pipeline(BatchNormalizer()).set_output(transform="pandas")
    out = pipeline.fit_transform(frame)
    assert list(out.columns) == list(pipeline.get_feature_names_out()) == list("abcd")
    again = pickle.loads(pickle.dumps(pipeline))
    same_bytes(again.transform(frame).to_numpy(), out.to_numpy())
    assert clone(pipeline[0]).get_params() == {"eps": 1e-5, "correction": 0}


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"eps": -1.0}, ValueError, "eps: expected a finite number >= 0"),
        ({"eps": "a"}, TypeError, "eps: expected a real number"),
        ({"correction": None}, TypeError, "correction: expected a real number"),
    ],
)
def test_bad_parameters(data, options, error, text):
    with pytest.raises(error, match=text):
        BatchNormalizer(**options).fit(data)


def test_bad_data(data):
    with pytest.raises(ValueError, match="NaN"):
        BatchNormalizer().fit(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="correction: expected less than the count"):
        BatchNormalizer(correction=1).fit(data[:1])
    with pytest.raises(ValueError, match="sample_weight"):
        BatchNormalizer().fit(data, sample_weight=np.zeros(50))
    with pytest.raises(ValueError, match="sample_weight"):
        BatchNormalizer().fit(data, sample_weight=-np.ones(50))
