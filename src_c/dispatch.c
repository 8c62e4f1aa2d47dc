#include "dispatch.h"

#include <stdlib.h>
#include <string.h>

#include "compiler.h"

#if CBN_X86_64 && defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>

/* Bits of CPUID leaves 1 and 7, and of XCR0: the system must save the wide registers as well. */
static int has(int leaf, int reg, unsigned bits)
{
    int info[4];
    __cpuidex(info, leaf, 0);
    return ((unsigned)info[reg] & bits) == bits;
}

static int system_saves(unsigned state)
{
    return has(1, 2, 1u << 27) && ((unsigned)_xgetbv(0) & state) == state;
}

CBN_UNUSED static int cpu_has_avx2(void)
{
    const unsigned fma = 1u << 12, f16c = 1u << 29, avx2 = 1u << 5;
    return system_saves(0x6) && has(1, 2, fma | f16c) && has(7, 1, avx2);
}

CBN_UNUSED static int cpu_has_avx512(void)
{
    const unsigned f = 1u << 16, dq = 1u << 17, cd = 1u << 28, bw = 1u << 30, vl = 1u << 31;
    return cpu_has_avx2() && system_saves(0xe6) && has(7, 1, f | dq | cd | bw | vl);
}
#elif CBN_X86_64
#include <cpuid.h>

/* Not every compiler's __builtin_cpu_supports knows the name: clang 14's does not. */
static int cpu_has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

CBN_UNUSED static int cpu_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
}

CBN_UNUSED static int cpu_has_avx512(void)
{
    /* uncovered: a CPU without AVX-512 stops at the first of them */
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

CBN_UNUSED static int always(void) { return 1; }

typedef struct tier {
    const char *name;
    int (*supported)(void);
    const cbn_kernels *kernels[CBN_DTYPE_COUNT];
} tier;

#define CBN_TIER(name_, supported_)                                                                \
    {                                                                                              \
        .name = #name_,                                                                            \
        .supported = supported_,                                                                   \
        .kernels = {[CBN_FLOAT32] = &cbn_float32_##name_,                                          \
                    [CBN_FLOAT64] = &cbn_float64_##name_,                                          \
                    [CBN_FLOAT16] = &cbn_float16_##name_,                                          \
                    [CBN_BFLOAT16] = &cbn_bfloat16_##name_},                                       \
    }

/* Slowest first. A build for development may leave some out (CBN_TIERS in setup.py). */
static const tier tiers[] = {
#ifndef CBN_WITHOUT_BASELINE
    CBN_TIER(baseline, always),
#endif
#if CBN_X86_64 && !defined(CBN_WITHOUT_AVX2)
    CBN_TIER(avx2, cpu_has_avx2),
#endif
#if CBN_X86_64 && !defined(CBN_WITHOUT_AVX512)
    CBN_TIER(avx512, cpu_has_avx512),
#endif
#if CBN_AARCH64 && !defined(CBN_WITHOUT_NEON)
    CBN_TIER(neon, always),
#endif
};

enum { TIERS = sizeof tiers / sizeof tiers[0] };

static const char *const known_names[] = {"baseline", "avx2", "avx512", "neon"};

static const tier *chosen;

const char *cbn_isa_name(int i) { return i >= 0 && i < TIERS ? tiers[i].name : NULL; }

int cbn_isa_supported(int i) { return i >= 0 && i < TIERS && tiers[i].supported(); }

static cbn_status choose_by_name(const char *name)
{
    for (int i = 0; i < TIERS; ++i) {
        if (strcmp(name, tiers[i].name) == 0 && tiers[i].supported()) {
            chosen = &tiers[i];
            return CBN_OK;
        }
    }
    for (size_t i = 0; i < sizeof known_names / sizeof known_names[0]; ++i) {
        if (strcmp(name, known_names[i]) == 0) {
            return CBN_ERROR_ISA_UNSUPPORTED;
        }
    }
    return CBN_ERROR_ISA_UNKNOWN;
}

cbn_status cbn_isa_choose(void)
{
    const char *const name = getenv("CBN_ISA");
    if (name != NULL && name[0] != '\0') {
        return choose_by_name(name);
    }
    for (int i = 0; i < TIERS; ++i) {
        if (tiers[i].supported()) {
            chosen = &tiers[i];
        }
    }
    return chosen == NULL ? CBN_ERROR_ISA_UNSUPPORTED : CBN_OK;
}

const char *cbn_isa_chosen(void) { return chosen == NULL ? NULL : chosen->name; }

const cbn_kernels *cbn_dispatch(cbn_dtype dtype)
{
    return chosen == NULL ? NULL : chosen->kernels[dtype];
}
