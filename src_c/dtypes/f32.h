/* float32 elements, float32 arithmetic; channels that float32 cannot hold go to the wide twin. */
#define CBN_DTYPE f32
#define CBN_ELEMENT float
#define CBN_WORK float
#define CBN_KEEP_LOW 0
#define CBN_TUNED 1
#define CBN_HALVES 0
#define CBN_LOAD(row, j) ((row)[j])
#define CBN_STORE(row, j, value) ((row)[j] = (value))
#define CBN_WIDE(verb) cbn_wide.verb
