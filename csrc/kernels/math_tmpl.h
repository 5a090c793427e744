/* Elementary functions of a vector: no branch, no call, no table.
 *
 * Every function passes nan through. The coefficients are minimax fits (Remez exchange, 60 digits) on the interval that
 * the comments give; tests/c checks the stated errors against arithmetic with more digits.
 */

#if REAL_IS_DOUBLE
#define EXP_LOWEST (-0x1.6232bdd7abcd2p+9) /* log of the smallest normal double, -708.396 */
#define ROUND_MAGIC 0x1.8p52               /* adding it rounds to an integer, which is in the low bits */
#define EXPONENT_BIAS 1023.0
#define MANTISSA_BITS 52
#define LN2_HIGH 0x1.62e42fee00000p-1 /* ln 2 to 33 bits: its product with an exponent is exact */
#define LN2_LOW 0x1.a39ef35793c76p-33
#define SQRT_HALF_BITS INT64_C(0x3fe6a09e667f3bcd)
#else
#define EXP_LOWEST (-0x1.5d589ep+6f) /* log of the smallest normal float, -87.3365 */
#define ROUND_MAGIC 0x1.8p23f
#define EXPONENT_BIAS 127.0f
#define MANTISSA_BITS 23
#define LN2_HIGH 0x1.62e400p-1f /* ln 2 to 15 bits */
#define LN2_LOW 0x1.7f7d1cp-20f
#define SQRT_HALF_BITS 0x3f3504f3
#endif
#define LOG2_E REAL_C(0x1.71547652b82fep+0)

/* exp(x) for x <= 0, within 1.2 ulp.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2; exp(x) = 2^n (1 + r + r^2 q(r)). Below EXP_LOWEST, where the result would be
 * subnormal, and for -inf the result is 0. For x > 0 it is right until 2^n overflows, but no caller passes such x. */
static inline VEC FN(exp_nonpositive)(VEC x) {
    const VEC shifted = x * LOG2_E + (ROUND_MAGIC + EXPONENT_BIAS);
    const VEC n = shifted - (ROUND_MAGIC + EXPONENT_BIAS);
    const VEC r = (x - n * LN2_HIGH) - n * LN2_LOW;
#if REAL_IS_DOUBLE
    VEC q = FN(splat)(0x1.af857972c962ep-26);
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
    VEC q = FN(splat)(0x1.6db416p-10f);
    q = q * r + 0x1.123b46p-7f;
    q = q * r + 0x1.55545ep-5f;
    q = q * r + 0x1.555490p-3f;
    q = q * r + 0x1.000000p-1f;
#endif
    const VEC fraction = (q * r + 1) * r + 1;
    const VEC power = (VEC)((UMASK)shifted << MANTISSA_BITS);
    return FN(only)(~(x < EXP_LOWEST), fraction * power);
}

/* Converts the integer k to REAL, |k| < 2^20. */
static inline VEC FN(of_integer)(MASK k) {
    const VEC magic = FN(splat)(ROUND_MAGIC);
    return (VEC)((UMASK)k + (UMASK)magic) - magic;
}

/* u = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), for a normal u. */
static inline MASK FN(exponent_of)(VEC u) { return (MASK)((UMASK)u - SQRT_HALF_BITS) >> MANTISSA_BITS; }

static inline VEC FN(reduced)(VEC u, MASK k) { return (VEC)((UMASK)u - ((UMASK)k << MANTISSA_BITS)) - 1; }

/* log(2^k (1 + f)) = k ln 2 + f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f). */
static inline VEC FN(log_of_reduced)(VEC f, MASK k) {
    const VEC exponent = FN(of_integer)(k);
    const VEC s = f / (2 + f);
    const VEC z = s * s;
#if REAL_IS_DOUBLE
    VEC r = FN(splat)(0x1.2f052ab7cad11p-3);
    r = r * z + 0x1.39a1c0c7e037cp-3;
    r = r * z + 0x1.74663ea6d9cadp-3;
    r = r * z + 0x1.c71c520ac0031p-3;
    r = r * z + 0x1.24924941ef323p-2;
    r = r * z + 0x1.999999997fde2p-2;
    r = r * z + 0x1.5555555555592p-1;
#else
    VEC r = FN(splat)(0x1.31e2e0p-2f);
    r = r * z + 0x1.995ebap-2f;
    r = r * z + 0x1.55557ap-1f;
#endif
    const VEC half_square = f * f / 2;
    return exponent * LN2_HIGH + (f - (half_square - s * (half_square + z * r) - exponent * LN2_LOW));
}

/* log(x) for a normal x > 0, within 1.0 ulp; 0 gives -inf, nan gives nan. */
static inline VEC FN(log)(VEC x) {
    const MASK k = FN(exponent_of)(x);
    const VEC result = FN(log_of_reduced)(FN(reduced)(x, k), k);
    return FN(select)(x == 0, FN(splat)(-(REAL)INFINITY), result + (x - x));
}

/* log(1 + x) for x >= 0, within 2.2 ulp relative to the result, however small x is; nan gives nan.
 *
 * For k = 0, f is x itself: only there does the rounding of 1 + x lose digits that matter. */
static inline VEC FN(log1p)(VEC x) {
    const VEC u = 1 + x;
    const MASK k = FN(exponent_of)(u);
    const VEC f = FN(select)(k == 0, x, FN(reduced)(u, k));
    return FN(log_of_reduced)(f, k) + (x - x);
}

/* log(1 + x) for 0 <= x <= 1, within 2.2 ulp; nan gives nan. In float it is the polynomial x + x^2 q(x), in pairs of
 * terms that do not wait for each other: fewer instructions than a reduction and a division. */
static inline VEC FN(log1p_of_fraction)(VEC x) {
#if REAL_IS_DOUBLE
    return FN(log1p)(x);
#else
    const VEC square = x * x;
    const VEC high = (0x1.5f9696p-8f * x - 0x1.ec98dcp-6f) * square + (0x1.446be4p-4f * x - 0x1.19ad82p-3f);
    const VEC low = (0x1.88444ep-3f * x - 0x1.fd1320p-3f) * square + (0x1.5535dap-2f * x - 0x1.ffff14p-2f);
    return square * (high * (square * square) + low) + x;
#endif
}

#undef EXP_LOWEST
#undef ROUND_MAGIC
#undef EXPONENT_BIAS
#undef MANTISSA_BITS
#undef LN2_HIGH
#undef LN2_LOW
#undef SQRT_HALF_BITS
#undef LOG2_E
