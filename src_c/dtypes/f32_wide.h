/* float32 in memory and float64 in arithmetic: for channels whose squares or coefficients leave the
 * range of float32. They are rare, so that no function is compiled that is only faster. */
#define CBN_TUNED 0
#define CBN_BLOCKS 0

typedef float element;
typedef double work;
enum { KEEPS_ERRORS = 0, HAS_WIDE = 0 };
