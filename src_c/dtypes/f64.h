/* float64 elements, float64 arithmetic. */
#define CBN_DTYPE f64
#define CBN_ELEMENT double
#define CBN_WORK double
#define CBN_KEEP_LOW 1
#define CBN_TUNED 1
#define CBN_HALVES 0
#define CBN_LOAD(row, j) ((row)[j])
#define CBN_STORE(row, j, value) ((row)[j] = (value))
