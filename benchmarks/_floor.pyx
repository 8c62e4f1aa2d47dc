"""The extension cbn._floor: what `cbn bench` compares with. No part of cbn calls it."""


cdef extern from "floor.h" nogil:
    void floor_stream(unsigned char *out, const unsigned char *a, const unsigned char *b,
                      size_t size, int threads, int non_temporal)


def stream(unsigned char[::1] out not None, const unsigned char[::1] a not None,
           const unsigned char[::1] b=None, int threads=1, bint non_temporal=False):
    """Read a, or a and b, once and write out once: out = a, or a ^ b.

    Parameters
    ----------
    out, a, b : C-contiguous buffers of bytes, of one size
        out overlaps neither a nor b.
    threads : int
        Threads that share the work, at least 1.
    non_temporal : bool
        Store past the caches, on CPUs that can (x86-64); else an ordinary store.
    """
    cdef const unsigned char *b_data = NULL
    cdef size_t size = out.shape[0]
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    if a.shape[0] != out.shape[0] or (b is not None and b.shape[0] != out.shape[0]):
        raise ValueError(f"a, b: expected {size} bytes as out has")
    if size == 0:
        return
    if b is not None:
        b_data = &b[0]
    with nogil:
        floor_stream(&out[0], &a[0], b_data, size, threads, non_temporal)
