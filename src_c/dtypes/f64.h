/* float64 in memory and in arithmetic. Sums keep their rounding errors, and are made of
 * blocks of rows (CBN_BLOCKS). */
#define CBN_TUNED 1
#define CBN_BLOCKS 1

typedef double element;
typedef double work;
enum { KEEPS_ERRORS = 1, HAS_WIDE = 0 };
