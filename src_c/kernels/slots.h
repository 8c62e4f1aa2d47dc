/* Scratch of a tile. A slot has room for a number of up to eight bytes a column; the enumerations
 * say which slot is for what in a call, and no call uses the slots of two of them.
 *
 * Rows of an array have CBN_GROUP_ROWS slots from the named one on. Rows of direct arrays are
 * used where they are, so that tiles of direct arrays have the first CBN_DIRECT_SLOTS alone. */
#ifndef CBN_SLOTS_H
#define CBN_SLOTS_H

#include "columns.h"

enum map_slot {
    MAP_COEFFICIENTS,
    MAP_DIRECT_SLOTS = MAP_COEFFICIENTS + COEFFICIENTS,
    MAP_IN = MAP_DIRECT_SLOTS, /* rows of each operand */
    MAP_OUT = MAP_IN + CBN_OPERANDS * CBN_GROUP_ROWS,
    MAP_SLOTS = MAP_OUT + CBN_GROUP_ROWS
};

enum moments_slot {
    MOMENTS_S,
    MOMENTS_T,
    MOMENTS_ANCHOR,
    MOMENTS_SUM,                        /* two: of the differences and of their squares */
    MOMENTS_WIDE_SUM = MOMENTS_SUM + 2, /* two: the same by the wide kernels */
    MOMENTS_DIRECT_SLOTS = MOMENTS_WIDE_SUM + 2,
    MOMENTS_X = MOMENTS_DIRECT_SLOTS, /* rows */
    MOMENTS_SLOTS = MOMENTS_X + CBN_GROUP_ROWS
};

enum sums_slot {
    SUMS_S,
    SUMS_T,
    SUMS_HIGH,
    SUMS_POWER,
    SUMS_SCALE,
    SUMS_ZEROS,                /* a row of them */
    SUMS_SPARE_DX,             /* a row of dx that nobody reads */
    SUMS_SUM,                  /* two: float64 sums of the columns */
    SUMS_ERROR = SUMS_SUM + 2, /* two: their rounding errors */
    SUMS_DIRECT_SLOTS = SUMS_ERROR + 2,
    SUMS_X = SUMS_DIRECT_SLOTS, /* rows, and so are the next two */
    SUMS_DY = SUMS_X + CBN_GROUP_ROWS,
    SUMS_DX = SUMS_DY + CBN_GROUP_ROWS,
    SUMS_SLOTS = SUMS_DX + CBN_GROUP_ROWS
};

_Static_assert(MAP_DIRECT_SLOTS <= CBN_DIRECT_SLOTS && MAP_SLOTS <= CBN_SLOTS, "slots of maps");
_Static_assert(MOMENTS_DIRECT_SLOTS <= CBN_DIRECT_SLOTS && MOMENTS_SLOTS <= CBN_SLOTS,
               "slots of moments");
_Static_assert(SUMS_DIRECT_SLOTS <= CBN_DIRECT_SLOTS && SUMS_SLOTS <= CBN_SLOTS,
               "slots of backward_sums");

/* Slot i of a tile. Scratch lies in its lines as the rows of the tile do in theirs, and slots and
 * rows at different distances from a 4 KiB boundary, since the same column of all of them would
 * fall into one set of the first-level cache [slot-distance]. */
CBN_INLINE void *scratch_at(const cbn_tile *tile, int i)
{
    char *const slot = (char *)tile->scratch + (size_t)i * tile->slot_bytes;
    const uintptr_t row = (uintptr_t)tile->first_row / sizeof(double) * sizeof(double);
    /* same(1 -> 2): any place in a slot's 4 KiB */
    const uintptr_t wanted = row + 448 * (uintptr_t)(i + 1);
#ifdef CBN_CHECK_SCRATCH
    if (i >= tile->slots || (size_t)tile->cols * sizeof(double) + 4095 > tile->slot_bytes) {
        __builtin_trap();
    }
#endif
    return slot + (wanted - (uintptr_t)slot) % 4096;
}

#endif
