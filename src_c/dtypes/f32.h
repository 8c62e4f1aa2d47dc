/* float32 in memory and in arithmetic. Channels that float32 cannot hold go to the wide kernels. */
#define CBN_TUNED 1
#define CBN_BLOCKS 0

typedef float element;
typedef float work;
enum { KEEPS_ERRORS = 0, HAS_WIDE = 1 };
