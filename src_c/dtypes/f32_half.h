/* Elements of half types as float32, float32 arithmetic. */
#define CBN_DTYPE f32_half
#define CBN_ELEMENT float
#define CBN_WORK float
#define CBN_KEEP_LOW 0
#define CBN_TUNED 1
#define CBN_HALVES 1
#define CBN_LOAD(row, j) ((row)[j])
#define CBN_STORE(row, j, value) ((row)[j] = (value))
#define CBN_WIDE(verb) cbn_wide.verb
