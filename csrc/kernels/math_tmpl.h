/* Elementary functions of one REAL, written so that a loop over them vectorises: no branch, no call, no table.
 *
 * Every function passes nan through. The coefficients are minimax fits (Remez exchange, 60 digits) on the interval
 * named beside them; tests/c holds the errors quoted, against arithmetic of more digits.
 */

#if REAL_IS_DOUBLE
#define EXP_LOWEST (-0x1.6232bdd7abcd2p+9) /* log of the smallest normal double, -708.396 */
#define ROUND_MAGIC 0x1.8p52               /* adding it rounds to an integer, found in the low bits */
#define EXPONENT_BIAS 1023
#define MANTISSA_BITS 52
#define LN2_HIGH 0x1.62e42fee00000p-1 /* ln 2 to 33 bits: times an exponent it is exact */
#define LN2_LOW 0x1.a39ef35793c76p-33
#define SQRT_HALF_BITS INT64_C(0x3fe6a09e667f3bcd)
#else
#define EXP_LOWEST (-0x1.5d589ep+6f) /* log of the smallest normal float, -87.3365 */
#define ROUND_MAGIC 0x1.8p23f
#define EXPONENT_BIAS 127
#define MANTISSA_BITS 23
#define LN2_HIGH 0x1.62e400p-1f /* ln 2 to 15 bits */
#define LN2_LOW 0x1.7f7d1cp-20f
#define SQRT_HALF_BITS 0x3f3504f3
#endif
#define LOG2_E REAL_C(0x1.71547652b82fep+0)

static inline BITS FN(bits_of)(REAL x) {
    BITS bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline REAL FN(of_bits)(BITS bits) {
    REAL x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* exp(x) for x <= 0, within 1.1 ulp.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2; exp(x) = 2^n (1 + r + r^2 q(r)). Below EXP_LOWEST, where the result is no
 * longer normal, it is 0; so it is for -inf. Above 0 the result is right until 2^n overflows, but no caller goes there.
 */
static inline REAL FN(exp_nonpositive)(REAL x) {
    const REAL clamped = x < EXP_LOWEST ? EXP_LOWEST : x;
    const REAL shifted = clamped * LOG2_E + ROUND_MAGIC;
    const REAL n = shifted - ROUND_MAGIC;
    const REAL r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
#if REAL_IS_DOUBLE
    REAL q = 0x1.af857972c962ep-26;
    q = q * r + 0x1.28b03ea496b9bp-22;
    q = q * r + 0x1.71dddfd49946dp-19;
    q = q * r + 0x1.a019969eb95fap-16;
    q = q * r + 0x1.a01a01bade7e1p-13;
    q = q * r + 0x1.6c16c185a3677p-10;
    q = q * r + 0x1.111111110d644p-7;
    q = q * r + 0x1.5555555550041p-5;
    q = q * r + 0x1.5555555555561p-3;
    q = q * r + 0x1.000000000000bp-1;
#else
    REAL q = 0x1.6db416p-10f;
    q = q * r + 0x1.123b46p-7f;
    q = q * r + 0x1.55545ep-5f;
    q = q * r + 0x1.555490p-3f;
    q = q * r + 0x1.000000p-1f;
#endif
    const REAL fraction = q * (r * r) + r + 1;
    const REAL power = FN(of_bits)((BITS)(((UBITS)FN(bits_of)(shifted) + EXPONENT_BIAS) << MANTISSA_BITS));
    return x < EXP_LOWEST ? 0 : fraction * power;
}

/* u = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), for a normal u. */
static inline BITS FN(exponent_of)(REAL u) { return (FN(bits_of)(u) - SQRT_HALF_BITS) >> MANTISSA_BITS; }

static inline REAL FN(reduced)(REAL u, BITS k) {
    return FN(of_bits)(FN(bits_of)(u) - k * ((BITS)1 << MANTISSA_BITS)) - 1;
}

/* log(2^k (1 + f)) + lost = k ln 2 + f - f^2/2 + s (f^2/2 + R(s^2)) + lost, s = f / (2 + f). */
static inline REAL FN(log_of_reduced)(REAL f, BITS k, REAL lost) {
    const REAL exponent = (REAL)k;
    const REAL s = f / (2 + f);
    const REAL z = s * s;
#if REAL_IS_DOUBLE
    REAL r = 0x1.2f052ab7cad11p-3;
    r = r * z + 0x1.39a1c0c7e037cp-3;
    r = r * z + 0x1.74663ea6d9cadp-3;
    r = r * z + 0x1.c71c520ac0031p-3;
    r = r * z + 0x1.24924941ef323p-2;
    r = r * z + 0x1.999999997fde2p-2;
    r = r * z + 0x1.5555555555592p-1;
#else
    REAL r = 0x1.31e2e0p-2f;
    r = r * z + 0x1.995ebap-2f;
    r = r * z + 0x1.55557ap-1f;
#endif
    const REAL half_square = f * f / 2;
    return exponent * LN2_HIGH + (f - (half_square - s * (half_square + z * r) - (exponent * LN2_LOW + lost)));
}

/* log(x) for a normal x > 0, within 1.0 ulp; 0 gives -inf, nan gives nan. */
static inline REAL FN(log)(REAL x) {
    const BITS k = FN(exponent_of)(x);
    const REAL result = FN(log_of_reduced)(FN(reduced)(x, k), k, 0);
    return x == 0 ? -(REAL)INFINITY : result + (x - x);
}

/* log(1 + x) for x >= 0, within 2.1 ulp relative to the result, however small x is.
 *
 * What rounding 1 + x lost is put back as `lost`; for k = 0, f is x itself, so nothing is lost. x = -1 gives -inf,
 * nan gives nan. */
static inline REAL FN(log1p)(REAL x) {
    const REAL u = 1 + x;
    const BITS k = FN(exponent_of)(u);
    const REAL f = k == 0 ? x : FN(reduced)(u, k);
    const REAL lost = k == 0 ? 0 : (u - 1 > x ? 1 - (u - x) : x - (u - 1)) / u;
    const REAL result = FN(log_of_reduced)(f, k, lost);
    return x == -1 ? -(REAL)INFINITY : result + (x - x);
}

#undef EXP_LOWEST
#undef ROUND_MAGIC
#undef EXPONENT_BIAS
#undef MANTISSA_BITS
#undef LN2_HIGH
#undef LN2_LOW
#undef SQRT_HALF_BITS
#undef LOG2_E
