"""Batch norm's normalization as a scikit-learn transformer, over `cbn.Moments`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check
from cbn.functional import batch_norm_inference
from cbn.interop._extra import extra
from cbn.moments import Moments

with extra("sklearn"):
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils import Tags, check_array, check_consistent_length
    from sklearn.utils.validation import FLOAT_DTYPES, check_is_fitted, validate_data

__all__ = ["BatchNormalizer"]


class BatchNormalizer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Standardize features: y = (x - mean) / sqrt(var + eps), equation (42).

    As StandardScaler, with an exact merge of any number of parts (`partial_fit`), float64
    statistics of float32 data, the same bytes on any number of threads, and eps.

    Parameters
    ----------
    eps : float, default=1e-5
        Added to the variance, finite and >= 0. A feature with var == 0 and eps == 0 becomes 0.
    correction : float, default=0
        The variance is m2 / (n - correction): 0 biased, as batch normalization and StandardScaler
        have it, 1 unbiased.

    Attributes
    ----------
    mean_, var_ : ndarray of float64, shape (n_features,)
    scale_ : ndarray of float64, shape (n_features,)
        sqrt(var_ + eps).
    n_samples_seen_ : int or float
        Rows, or the sum of their weights.
    moments_ : cbn.Moments
        What has been seen, to be merged with others.
    n_features_in_ : int
    feature_names_in_ : ndarray of str, shape (n_features_in_,)
        If X had names for its columns.

    Notes
    -----
    float32 and float16 stay what they are; all else becomes float64. NaN and sparse matrices are
    refused.

    Examples
    --------
    >>> import numpy as np
    >>> from cbn.interop.sklearn import BatchNormalizer
    >>> X = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 7.0]])
    >>> scaler = BatchNormalizer(eps=0.0).partial_fit(X[:2]).partial_fit(X[2:])
    >>> scaler.mean_, scaler.n_samples_seen_
    (array([2., 3.]), 3)
    >>> scaler.transform(X)[0].round(3)
    array([-1.225, -0.707])
    """

    def __init__(self, *, eps: float = 1e-5, correction: float = 0) -> None:
        self.eps = eps
        self.correction = correction

    def fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> BatchNormalizer:
        """Take the moments of X alone.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)
        y : ignored
        sample_weight : array_like, shape (n_samples,), optional
            Weights >= 0: mean = sum(w x) / sum(w).

        Returns
        -------
        BatchNormalizer
            self.

        Raises
        ------
        ValueError, TypeError
            A bad parameter, NaN or infinity, another number of features, weights that are negative
            or all zero, no more rows than `correction`; nothing has changed then.
        """
        return self._see(X, sample_weight, None)

    def partial_fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> BatchNormalizer:
        """Take in the moments of more rows, equation (44); see `fit`."""
        return self._see(X, sample_weight, getattr(self, "moments_", None))

    def _see(
        self, X: ArrayLike, sample_weight: ArrayLike | None, seen: Moments | None
    ) -> BatchNormalizer:
        eps = _check.epsilon(self.eps)
        X = validate_data(self, X, dtype=FLOAT_DTYPES, reset=seen is None)
        if sample_weight is not None:
            options = {"dtype": np.float64, "ensure_2d": False, "input_name": "sample_weight"}
            sample_weight = check_array(sample_weight, **options)
            check_consistent_length(X, sample_weight)
        moments = Moments.from_batch(X, sample_weight=sample_weight)
        if seen is not None:
            moments = Moments(seen.count, seen.mean, seen.m2, seen.mean_low).merge(moments)
        var = moments.var(self.correction)
        self.moments_, self.n_samples_seen_ = moments, moments.count
        self.mean_, self.var_, self.scale_ = moments.mean, var, np.sqrt(var + eps)
        return self

    def transform(self, X: ArrayLike) -> NDArray:
        """Standardize.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)

        Returns
        -------
        ndarray of X's shape
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOAT_DTYPES, reset=False)
        return batch_norm_inference(X, self.mean_, self.var_, eps=float(self.eps))

    def inverse_transform(self, X: ArrayLike) -> NDArray:
        """Undo `transform`: y * scale_ + mean_, to rounding.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)

        Returns
        -------
        ndarray of X's shape
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOAT_DTYPES, reset=False)
        zeros = np.zeros(X.shape[1])
        return batch_norm_inference(X, zeros, zeros + 1, self.scale_, self.mean_, eps=0.0)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags
