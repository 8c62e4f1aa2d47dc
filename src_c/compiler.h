/* The only home for differences between compilers and machines. */
#ifndef CBN_COMPILER_H
#define CBN_COMPILER_H

#if defined(__FAST_MATH__) || defined(_M_FP_FAST)
#error "cbn keeps its promises only under strict IEEE arithmetic: build without fast-math"
#endif

#include <float.h>
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "cbn keeps its promises only where float and double are computed in their own precision"
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define CBN_X86_64 1
#else
#define CBN_X86_64 0
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
#define CBN_AARCH64 1
#else
#define CBN_AARCH64 0
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define CBN_INLINE static __forceinline
#define CBN_NOINLINE __declspec(noinline)
#define CBN_UNUSED
#define CBN_SIMD __pragma(loop(ivdep))
#define CBN_SIMD_SHORT CBN_SIMD
#pragma fp_contract(off)
#else
#define CBN_INLINE static inline __attribute__((always_inline))
/* A function that is called: its registers are not the caller's. */
#define CBN_NOINLINE __attribute__((noinline))
#define CBN_UNUSED __attribute__((unused))
/* Called when the library is loaded. */
#define CBN_AT_LOAD __attribute__((constructor))
/* No iteration depends on another one: true of every kernel loop, also when the output is an
   input, since then each iteration reads its element before it writes it. */
#define CBN_SIMD _Pragma("omp simd")
#define CBN_SIMD_SHORT _Pragma("omp simd simdlen(LINE / 2)")
#endif

#define CBN_LINE_BYTES 64 /* of a cache line */

#define CBN_JOIN_(a, b) a##_##b
#define CBN_JOIN(a, b) CBN_JOIN_(a, b)

#endif
