"""Batch normalization for NumPy: compiled, accurate, the same bytes on any number of threads."""

from cbn._version import __version__
from cbn.functional import (
    BatchNormCache,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from cbn.runtime import (
    get_num_threads,
    num_threads,
    set_num_threads,
    show_config,
    show_runtime,
)

__all__ = [
    "BatchNormCache",
    "__version__",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "get_num_threads",
    "num_threads",
    "set_num_threads",
    "show_config",
    "show_runtime",
]
