/* The reductions: what a few rows add to the two sums of a column. Sums are trees, whose depth is
 * in the error bounds of docs/accuracy.md; their order is part of what is promised.
 *
 * Both take high - x and anchor - x instead of x - high: only the second operand of a subtraction
 * may come from memory, which saves a load [second-operand]. The sums come out with the other sign,
 * which whoever adds them up turns back. */
#ifndef CBN_REDUCTIONS_H
#define CBN_REDUCTIONS_H

typedef struct terms {
    work s, t;
} terms;

CBN_INLINE work sum_of_4(const work v[4]) { return (v[0] + v[1]) + (v[2] + v[3]); }

CBN_INLINE work sum_of_8(const work v[8]) { return sum_of_4(v) + sum_of_4(v + 4); }

typedef struct differences {
    work d[8];
} differences;

/* d = anchor - x of eight rows. */
CBN_INLINE differences differences_from(work anchor, const work x[8])
{
    return (differences){{anchor - x[0], anchor - x[1], anchor - x[2], anchor - x[3], anchor - x[4],
                          anchor - x[5], anchor - x[6], anchor - x[7]}};
}

/* s = -sum(x - anchor) of eight rows.                                        docs/math.md (1) */
CBN_INLINE work sum_of_differences(differences from) { return sum_of_8(from.d); }

/* s = -sum(x - anchor), t = sum((x - anchor)^2) of eight rows.          docs/math.md (1), (2) */
CBN_INLINE terms moments_terms(differences from)
{
    const work *const d = from.d;
    const work d_d[8] = {d[0] * d[0], d[1] * d[1], d[2] * d[2], d[3] * d[3],
                         d[4] * d[4], d[5] * d[5], d[6] * d[6], d[7] * d[7]};
    return (terms){sum_of_8(d), sum_of_8(d_d)};
}

/* s = sum(dy), t = -sum(dy * (x - high) * power) of four rows; power is the power of two next below
 * invstd, a factor that costs no rounding.                              docs/math.md (7), (8) */
CBN_INLINE terms backward_sums_terms(work high, work power, const work x[4], const work dy[4])
{
    const work dy_d[4] = {dy[0] * ((high - x[0]) * power), dy[1] * ((high - x[1]) * power),
                          dy[2] * ((high - x[2]) * power), dy[3] * ((high - x[3]) * power)};
    return (terms){sum_of_4(dy), sum_of_4(dy_d)};
}

/* sum += term; of float64 the rounding error goes to `low`. */
CBN_INLINE void add_with_error(double *sum, double *low, double term)
{
    if (KEEPS_ERRORS) {
        cbn_two_sum(sum, low, term);
    } else {
        (void)low;
        *sum += term;
    }
}

#endif
