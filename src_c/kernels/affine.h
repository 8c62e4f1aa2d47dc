/* (x - mean) * slope + plus = (x - high) * a + b, with the mean as high + low: x - high is exact
 * for x near the mean, and b = plus - low * slope has what high left out. No number of the working
 * type is nearer to the mean than high, so |low * slope| is at most |(x - mean) * slope|, and
 * rounding b costs no more than rounding the product. */
CBN_INLINE void CBN_NAME(affine)(CBN_WORK *high, CBN_WORK *a, CBN_WORK *b, double mean,
                                 double mean_low, double slope, double plus)
{
    *high = (CBN_WORK)mean;
    *a = (CBN_WORK)slope;
    *b = (CBN_WORK)(plus - ((mean - (double)*high) + mean_low) * slope);
}
