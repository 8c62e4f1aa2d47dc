"""Batch normalization for NumPy: compiled, accurate, the same bytes on any number of threads."""

from cbn import fold
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
