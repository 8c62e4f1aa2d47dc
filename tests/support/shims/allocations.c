/* Preloaded: makes the k-th allocation fail that cbn/_core asks for, and counts bytes in use.
 *
 * cbn_fail_at(k) arms the calling thread: of its allocations from now on with a function of
 * cbn/_core among their callers, the k-th, counted from 0, returns NULL, and only that one. Those
 * of NumPy for itself do not count: its ufuncs do not survive them all. cbn_fail_never() disarms it
 * and returns how many there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <malloc.h>
#include <stddef.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

static __thread long until_failure = -1, allocations;
static __thread int armed, looking;

static int from_core(void)
{
    void *callers[12];
    Dl_info info;
    int found = 0;
    looking = 1; /* which may allocate */
    for (int i = backtrace(callers, 12); i-- > 0 && !found;) {
        found = dladdr(callers[i], &info) && strstr(info.dli_fname, "cbn/_core") != NULL;
    }
    looking = 0;
    return found;
}

static int fails(void)
{
    return armed && !looking && from_core() && allocations++ == until_failure;
}

EXPORT void cbn_fail_at(long k)
{
    until_failure = k;
    allocations = 0;
    armed = 1;
}

EXPORT long cbn_fail_never(void)
{
    armed = 0;
    return allocations;
}

EXPORT size_t cbn_bytes_in_use(void)
{
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

static void *refuse(void)
{
    errno = ENOMEM;
    return NULL;
}

EXPORT void *malloc(size_t size) { return fails() ? refuse() : __libc_malloc(size); }

EXPORT void *calloc(size_t count, size_t size)
{
    return fails() ? refuse() : __libc_calloc(count, size);
}

EXPORT void *realloc(void *memory, size_t size)
{
    return fails() ? refuse() : __libc_realloc(memory, size);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? refuse() : __libc_memalign(alignment, size);
}

EXPORT int posix_memalign(void **memory, size_t alignment, size_t size)
{
    *memory = fails() ? NULL : __libc_memalign(alignment, size);
    return *memory == NULL ? ENOMEM : 0;
}
