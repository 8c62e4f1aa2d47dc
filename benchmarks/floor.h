/* The memory's own speed. */
#ifndef FLOOR_H
#define FLOOR_H

#include <stddef.h>

/* out = a (a copy), or a ^ b (a triad: two reads, one write) if b is not NULL. out overlaps
 * neither. non_temporal: stores go past the caches, on x86-64; elsewhere they are ordinary. */
void floor_stream(unsigned char *out, const unsigned char *a, const unsigned char *b, size_t size,
                  int threads, int non_temporal);

#endif
