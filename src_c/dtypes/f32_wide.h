/* float32 elements or those of half types, float64 arithmetic: for channels whose squares or
 * coefficients leave the range of float32. It is rarely run, so that its kernels are compiled
 * without the variants that are only faster. */
#define CBN_DTYPE f32_wide
#define CBN_ELEMENT float
#define CBN_WORK double
#define CBN_KEEP_LOW 0
#define CBN_TUNED 0
#define CBN_HALVES 1
#define CBN_LOAD(row, j) ((double)(row)[j])
#define CBN_STORE(row, j, value) ((row)[j] = (float)(value))
