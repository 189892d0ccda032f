/* Transcendental functions over the vector words; included once per width.
 *
 * ULP figures: the largest error against a 100-bit result over all exponents, as tests/kernels/ulp.json records them
 * for each instruction set (baseline has no fused operation and is the worst). Denormals count as zero.
 * Coefficients: tools/fit_activations.py. All operations are elementwise without branches on the data, so a lane's
 * result does not depend on the width or on its neighbours.
 */
#ifndef FRNN_BODY_MATH_H
#define FRNN_BODY_MATH_H
#define vec_round FRNN_WIDE(vec_round)
#define vec_floor FRNN_WIDE(vec_floor)
#define vec_exp_parts FRNN_WIDE(vec_exp_parts)
#define vec_exp FRNN_WIDE(vec_exp)
#define vec_expm1 FRNN_WIDE(vec_expm1)
#define vec_sigmoid FRNN_WIDE(vec_sigmoid)
#define vec_tanh FRNN_WIDE(vec_tanh)
#define vec_log FRNN_WIDE(vec_log)
#define vec_softplus FRNN_WIDE(vec_softplus)
#define vec_mish FRNN_WIDE(vec_mish)
#define vec_erf FRNN_WIDE(vec_erf)
#define vec_each FRNN_WIDE(vec_each)
#define vec_each2 FRNN_WIDE(vec_each2)
#define vec_pow FRNN_WIDE(vec_pow)
#define FRNN_ROUND_MAGIC 12582912.0f /* 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits */
#define FRNN_LN2_HI 0.69317627f      /* 14 bits: n * hi is exact for |n| < 1024 */
#define FRNN_LN2_LO -2.90889711e-05f
#define FRNN_LOG2E 1.44269504f

/* a mod b with the sign of b, as numpy.mod. */
static inline __attribute__((unused)) double frnn_mod(double a, double b) {
    double rest = fmod(a, b);
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
#endif

/* Nearest integer, ties to even; the sign of a zero, infinities and NaN are kept. Exact. */
FRNN_INLINE vec vec_round(vec x) {
    vec size = vec_abs(x), whole = vec_splat(8388608.0f); /* 2^23: from there on every float is an integer */
    return vec_select(size < whole, vec_copysign((size + whole) - whole, x), x);
}

/* Largest integer <= x. Exact. */
FRNN_INLINE vec vec_floor(vec x) {
    vec r = vec_round(x);
    return vec_select(r > x, r - vec_splat(1.0f), r);
}

/* x = n ln 2 + r, |r| <= ln 2 / 2 (1 + 2^-20), for |x| < 700; n as a float, and as an integer in *bits' low bits. */
FRNN_INLINE vec vec_exp_parts(vec x, vec *r, vec_int *bits) {
    vec shifted = vec_fma(x, vec_splat(FRNN_LOG2E), vec_splat(FRNN_ROUND_MAGIC));
    vec n = shifted - vec_splat(FRNN_ROUND_MAGIC);
    *bits = vec_bits(shifted);
    *r = vec_fma(n, vec_splat(-FRNN_LN2_LO), vec_fma(n, vec_splat(-FRNN_LN2_HI), x));
    return n;
}

/* e^x. Range [0, inf]: 0 below -87.34 (results below 2^-126 are flushed), inf above 88.73; NaN kept. 1 ULP. */
FRNN_INLINE vec vec_exp(vec x) {
    vec r, p;
    vec_int bits;
    x = vec_max(vec_splat(-120.0f), vec_min(vec_splat(120.0f), x));
    vec_exp_parts(x, &r, &bits);
    p = vec_fma(vec_splat(0.00138367631f), r, vec_splat(0.00836991891f));
    p = vec_fma(p, r, vec_splat(0.0416680165f));
    p = vec_fma(p, r, vec_splat(0.166665077f));
    p = vec_fma(p, r, vec_splat(0.49999994f));
    p = vec_fma(p, r * r, r) + vec_splat(1.0f);
    /* 2^n as 2^(n/2) twice: n reaches 128, and -173 if the result must flush to 0. The low 9 bits of the shifted
     * number hold n + a multiple of 512, and shifting by 23 drops all but n. */
    vec_int half = (((bits << 22) >> 22) >> 1);
    vec_int rest = ((bits << 22) >> 22) - half;
    return p * vec_of_bits((half + 127) << 23) * vec_of_bits((rest + 127) << 23);
}

/* e^x - 1 for x <= 0 without cancellation (x > 0 up to 88: also right). Used by elu, selu, erf. 2 ULP, NaN kept. */
FRNN_INLINE vec vec_expm1(vec x) {
    vec r, p;
    vec_int bits;
    x = vec_max(vec_splat(-40.0f), vec_min(vec_splat(88.0f), x)); /* -1 to the last bit below -17.4 */
    vec_exp_parts(x, &r, &bits);
    p = vec_fma(vec_splat(0.000199076399f), r, vec_splat(0.00139288628f));
    p = vec_fma(p, r, vec_splat(0.00833328627f));
    p = vec_fma(p, r, vec_splat(0.0416665524f));
    p = vec_fma(p, r, vec_splat(0.166666672f));
    p = vec_fma(p, r, vec_splat(0.5f));
    p = vec_fma(p, r * r, r);
    vec scale = vec_of_bits((bits << 23) + 0x3f800000);
    return vec_fma(p, scale, scale - vec_splat(1.0f));
}

/* 1 / (1 + e^-x). Range [0, 1], 0.5 exactly at 0, 0 below -87.4; NaN kept. 2.1 ULP.
 * 2^n p + 1 is one operation: p 2^n is exact, so nothing is lost by not rounding it. e^r as (C + r) / (C - r), as in
 * tanh, takes 11.0 cycles for 16 floats on a Zen 4 instead of about 14, but rounds once more: 2.4 ULP, and for silu 3.4
 * instead of 2.4. A step of an LSTM or a GRU would gain 1 to 4 %, which was not worth the error. */
FRNN_INLINE vec vec_sigmoid(vec x) {
    vec r, p;
    vec_int bits;
    x = vec_max(vec_splat(-88.0f), vec_min(vec_splat(88.0f), x));
    vec_exp_parts(-x, &r, &bits);
    p = vec_fma(vec_splat(0.00138367631f), r, vec_splat(0.00836991891f));
    p = vec_fma(p, r, vec_splat(0.0416680165f));
    p = vec_fma(p, r, vec_splat(0.166665077f));
    p = vec_fma(p, r, vec_splat(0.49999994f));
    p = vec_fma(p, r * r, r) + vec_splat(1.0f);
    return vec_splat(1.0f) / vec_fma(p, vec_of_bits((bits << 23) + 0x3f800000), vec_splat(1.0f));
}

/* tanh x. Range [-1, 1], odd, exact at 0 and -0; NaN kept. 2.1 ULP.
 * With |x| = n ln 2 / 2 + r and C = r coth r, an even function, e^2r is (C + r) / (C - r), and one division gives
 *     tanh |x| = (2^n (C + r) - (C - r)) / (2^n (C + r) + (C - r)) = m / (m + (C - r)),
 * m being half the numerator with C and r gathered: r = |x| itself at n = 0, and the quotient is never above 1. n is 0
 * up to |x| = 0.25, and not only to 0.17 (hence 0.0778), because where n = 1 begins m is (C + 3 r) / 2, which cancels:
 * C + 3 r is 0.7 there and not 0.5. From 9.3 on the result is 1. 14.2 cycles for 16 floats on a Zen 4 (by way of expm1:
 * 18.6, 2.5 ULP). */
FRNN_INLINE vec vec_tanh(vec x) {
    vec size = vec_min(vec_splat(10.0f), vec_abs(x));
    vec shifted = vec_fma(size - vec_splat(0.0778f), vec_splat(2 * FRNN_LOG2E), vec_splat(FRNN_ROUND_MAGIC));
    vec n = shifted - vec_splat(FRNN_ROUND_MAGIC);
    vec r = vec_fma(n, vec_splat(-FRNN_LN2_LO / 2), vec_fma(n, vec_splat(-FRNN_LN2_HI / 2), size));
    vec s = r * r;
    vec C = vec_fma(vec_fma(vec_splat(-0.0220377967f), s, vec_splat(0.333329737f)), s, vec_splat(1.0f));
    vec scale = vec_of_bits((vec_bits(shifted) << 23) + 0x3f000000); /* 2^n / 2 */
    vec m = vec_fma(scale - vec_splat(0.5f), C, (scale + vec_splat(0.5f)) * r);
    return vec_copysign(m / (m + (C - r)), x);
}

/* Natural logarithm. -inf at 0 (and denormals), NaN below 0, inf at inf; NaN kept. 1 ULP. */
FRNN_INLINE vec vec_log(vec x) {
    /* x = m 2^e with m in [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) makes e the arithmetic shift */
    vec_int offset = vec_bits(x) - 0x3f3504f3;
    vec e = vec_of_int(offset >> 23);
    vec f = vec_of_bits((offset & 0x7fffff) + 0x3f3504f3) - vec_splat(1.0f);
    vec p = vec_fma(vec_splat(0.069155395f), f, vec_splat(-0.117898479f));
    p = vec_fma(p, f, vec_splat(0.118729167f));
    p = vec_fma(p, f, vec_splat(-0.123843372f));
    p = vec_fma(p, f, vec_splat(0.142186657f));
    p = vec_fma(p, f, vec_splat(-0.166692525f));
    p = vec_fma(p, f, vec_splat(0.200022265f));
    p = vec_fma(p, f, vec_splat(-0.249999866f));
    p = vec_fma(p, f, vec_splat(0.333333105f));
    vec f2 = f * f;
    vec low = vec_fma(p, f * f2, vec_fma(f2, vec_splat(-0.5f), e * vec_splat(FRNN_LN2_LO)));
    vec y = vec_fma(e, vec_splat(FRNN_LN2_HI), low + f);
    y = vec_select(x < vec_splat(1.17549435e-38f), vec_splat(-INFINITY), y);
    y = vec_select(x < vec_splat(0.0f), vec_splat(NAN), y);
    return vec_select(x < vec_splat(INFINITY), y, x); /* inf and NaN */
}

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|). Range [0, inf]; NaN kept. 2 ULP. */
FRNN_INLINE vec vec_softplus(vec x) {
    vec e = vec_exp(-vec_abs(x));
    vec u = vec_splat(1.0f) + e;
    vec lost = e - (u - vec_splat(1.0f)); /* what rounding 1 + e dropped, exact */
    vec tail = vec_log(u) + lost / u;
    return vec_keep_nan(x, vec_max(vec_splat(0.0f), x) + tail);
}

/* x tanh(log(1 + e^x)) = x w / (w + 2), w = e (e + 2), e = e^x. NaN kept. 4 ULP. */
FRNN_INLINE vec vec_mish(vec x) {
    vec e = vec_exp(vec_min(vec_splat(20.0f), x)); /* from 20 on the quotient is 1 */
    vec w = e * (e + vec_splat(2.0f));
    return x * (w / (w + vec_splat(2.0f)));
}

/* Error function. Range [-1, 1], odd, exact at 0; NaN kept. 2 ULP. */
FRNN_INLINE vec vec_erf(vec x) {
    vec a = vec_abs(x), s = x * x;
    vec p = vec_fma(vec_splat(8.3700972e-05f), s, vec_splat(-0.000814270345f));
    p = vec_fma(p, s, vec_splat(0.00520103239f));
    p = vec_fma(p, s, vec_splat(-0.0268593989f));
    p = vec_fma(p, s, vec_splat(0.112836957f));
    p = vec_fma(p, s, vec_splat(-0.376126349f));
    p = vec_fma(p, s, vec_splat(0.12837917f)); /* 2 / sqrt(pi) = 1 + 0.128...: one more digit than in one float */
    vec near = vec_fma(p, a, a);
    vec t = vec_min(vec_splat(3.95f), a);
    vec q = vec_fma(vec_splat(-4.37735963e-07f), t, vec_splat(-1.54755944e-05f));
    q = vec_fma(q, t, vec_splat(0.0004035928f));
    q = vec_fma(q, t, vec_splat(-0.00407624152f));
    q = vec_fma(q, t, vec_splat(0.0249412041f));
    q = vec_fma(q, t, vec_splat(-0.108070053f));
    q = vec_fma(q, t, vec_splat(-0.633498549f));
    q = vec_fma(q, t, vec_splat(-1.12945354f));
    q = vec_fma(q, t, vec_splat(0.000164004014f));
    vec far = -vec_expm1(q);
    return vec_copysign(vec_select(a < vec_splat(0.921875f), near, far), x);
}

/* A double function of libm lane by lane, rounded to float: 0.5 ULP over the whole range, about 20 ns per lane. For
 * functions that recurrent models call rarely (sin, cos, pow, mod): exact reduction of any argument for free. */
FRNN_INLINE vec vec_each(double (*f)(double), vec x) {
    for (int i = 0; i < VEC_W; i++) x[i] = (float)f((double)x[i]);
    return x;
}
FRNN_INLINE vec vec_each2(double (*f)(double, double), vec x, vec y) {
    for (int i = 0; i < VEC_W; i++) x[i] = (float)f((double)x[i], (double)y[i]);
    return x;
}

/* a^b. The exponents that models use (0, 1/2, 1, 2) by arithmetic, 0.5 ULP; any other through libm, 0.5 ULP. */
FRNN_INLINE vec vec_pow(vec a, vec b) {
    vec_int zero = b == vec_splat(0.0f), half = b == vec_splat(0.5f), one = b == vec_splat(1.0f);
    vec_int two = b == vec_splat(2.0f), known = zero | half | one | two;
    int32_t all = -1;
    for (int i = 0; i < VEC_W; i++) all &= known[i];
    vec y = all ? a : vec_each2(pow, a, b);
    vec root = vec_select(a == vec_splat(-INFINITY), vec_splat(INFINITY), vec_sqrt(a));
    y = vec_select(half, root, vec_select(one, a, y));
    return vec_select(two, a * a, vec_select(zero, vec_splat(1.0f), y));
}
