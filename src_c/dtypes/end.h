/* Undoes any dtypes/ header. */
#undef CBN_DTYPE
#undef CBN_ELEMENT
#undef CBN_WORK
#undef CBN_KEEP_LOW
#undef CBN_TUNED
#undef CBN_HALVES
#undef CBN_LOAD
#undef CBN_STORE
#undef CBN_WIDE
