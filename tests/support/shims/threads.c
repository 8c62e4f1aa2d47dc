/* Preloaded: counts parallel regions, and creates no threads where CBN_NO_NEW_THREADS is set.
 *
 * GOMP_parallel is what gcc makes of `#pragma omp parallel`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int cbn_parallel_regions;

EXPORT void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags)
{
    void (*real)(void (*)(void *), void *, unsigned, unsigned);
    *(void **)&real = dlsym(dlopen("libgomp.so.1", RTLD_LAZY), "GOMP_parallel");
    ++cbn_parallel_regions;
    real(body, data, threads, flags);
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *data)
{
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return getenv("CBN_NO_NEW_THREADS") != NULL ? EAGAIN : real(thread, attributes, start, data);
}
