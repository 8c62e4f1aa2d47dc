"""Batch normalization for NumPy: compiled, accurate, the same bytes on any number of threads.

`batch_norm_forward` and `batch_norm_backward` are the operator, `BatchNorm` is the layer, `Moments`
merges the statistics of parts of a batch. Numbers in brackets are equations of docs/math.md, in
the repository and the sdist. `test` checks this copy on this machine; ``cbn --help`` lists the
commands.

Examples
--------
>>> import numpy as np, cbn
>>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
>>> y, cache = cbn.batch_norm_forward(x, gamma=np.ones(2), beta=np.zeros(2), eps=0)
>>> y
array([[-1., -1.],
       [ 1.,  1.]])
>>> dx, dgamma, dbeta = cbn.batch_norm_backward(np.array([[1.0, 2.0], [3.0, 4.0]]), cache)
>>> dgamma, dbeta
(array([2., 2.]), array([4., 6.]))
"""

from cbn import _built, fold  # noqa: F401
from cbn._self_check import test
from cbn._version import __version__
from cbn.cache import BatchNormCache
from cbn.derivatives import (
    StagedGradients,
    batch_norm_backward_staged,
    batch_norm_double_backward,
    batch_norm_inference_cache,
    batch_norm_jacobian,
    batch_norm_jvp,
)
from cbn.functional import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
    lengths_to_mask,
)
from cbn.layer import BatchNorm
from cbn.moments import BackwardSums, Moments, update_running_stats
from cbn.parts import batch_norm_backward_apply, batch_norm_normalize
from cbn.runtime import (
    get_include,
    get_num_threads,
    num_threads,
    set_num_threads,
    show_config,
    show_runtime,
)

__all__ = [
    "BackwardSums",
    "BatchNorm",
    "BatchNormCache",
    "Moments",
    "StagedGradients",
    "__version__",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_staged",
    "batch_norm_double_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "batch_norm_inference_cache",
    "batch_norm_jacobian",
    "batch_norm_jvp",
    "batch_norm_normalize",
    "fold",
    "get_include",
    "get_num_threads",
    "lengths_to_mask",
    "num_threads",
    "set_num_threads",
    "show_config",
    "show_runtime",
    "test",
    "update_running_stats",
]
