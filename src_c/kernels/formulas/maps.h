/* The maps: what becomes of the values at one place. Every operation is rounded once, in this
 * order, on every tier; the order is part of what is promised.
 *
 * The affine map (x - mean) * slope + plus is computed as high - x, an exact difference for an x
 * near the mean, with mean = high + low. What high leaves out of the mean is in the constant:
 * plus stands for plus - low * slope. No number of the working type is nearer to the mean than
 * high, so |low * slope| is at most |(x - mean) * slope|, and to round it costs no more than to
 * round the product. x * slope + (plus - mean * slope) would cancel for a large mean.
 */
#ifndef CBN_MAPS_H
#define CBN_MAPS_H

/* What a map reads at one place of its arrays, and the coefficients of the place's channel. */
typedef struct values {
    work x, dy, residual;
} values;

typedef struct coefficients {
    work high, slope, plus, scale;
} coefficients;

/* The constants of (x - mean) * slope + plus. */
CBN_INLINE void affine(work *high, work *rounded_slope, work *rounded_plus, double mean,
                       double mean_low, double slope, double plus)
{
    *high = (work)mean;
    *rounded_slope = (work)slope;
    *rounded_plus = (work)(plus - ((mean - (double)*high) + mean_low) * slope);
}

/* y = (x - mean) * scale + beta                                        docs/math.md (4), (5) */
CBN_INLINE work normalized(values v, coefficients c) { return c.plus - (c.high - v.x) * c.slope; }

CBN_INLINE work normalized_residual(values v, coefficients c)
{
    return normalized(v, c) + v.residual;
}

/* max(0, y); -0 becomes 0, and NaN stays. */
CBN_INLINE work relu(work y) { return y <= 0 ? 0 : y; }

CBN_INLINE work normalized_relu(values v, coefficients c) { return relu(normalized(v, c)); }

CBN_INLINE work normalized_residual_relu(values v, coefficients c)
{
    return relu(normalized_residual(v, c));
}

/* The gradient of max(0, y): dy where y > 0, else 0. */
CBN_INLINE work relu_gradient(work y, work dy) { return y > 0 ? dy : 0; }

CBN_INLINE work normalized_relu_gradient(values v, coefficients c)
{
    return relu_gradient(normalized(v, c), v.dy);
}

CBN_INLINE work normalized_residual_relu_gradient(values v, coefficients c)
{
    return relu_gradient(normalized_residual(v, c), v.dy);
}

/* dx = dy * scale + xhat * along_xhat + along_one                      docs/math.md (16), (30)
 *
 * With scale = gamma * invstd, along_xhat = -scale * sum(dy * xhat) / N and
 * along_one = -scale * sum(dy) / N this is the backward pass. The Jacobian is symmetric, so the
 * same map with other coefficients gives the tangent of y and the parts of the double backward.
 * xhat * along_xhat + along_one is the affine map with the slope invstd * along_xhat. */
CBN_INLINE work input_gradient(values v, coefficients c)
{
    return v.dy * c.scale + (c.plus - (c.high - v.x) * c.slope);
}

/* dx = dy * scale, the gradient of fixed statistics; -0 becomes 0.           docs/math.md (42) */
CBN_INLINE work scaled(values v, coefficients c) { return v.dy * c.scale + 0; }

#endif
