/* One voxel in REAL. The formulas are in kernels.h; softmax_tmpl.h says how a confident voxel keeps its digits.
 *
 * q_c is the factor of -log p_c in the loss, and Q = sum_c q_c. */

/* factor * nll, but 0 for a zero factor even at nll = inf. */
VOXEL_FUNCTION REAL FN(weighted)(REAL factor, REAL nll) {
    return factor == 0 && nll == (REAL)INFINITY ? 0 : factor * nll;
}

/* A softmax and what losses need of it. Over thousands of classes a plain sum in REAL loses digits, so classes are
 * summed in groups, and the groups by Kahan's compensated summation. Sums that can overflow REAL are double. */
struct STRUCT(softmax) {
    REAL max;    /* the largest logit so far */
    REAL tail;   /* of this group, relative to max */
    REAL groups; /* of the previous groups, relative to groups_max */
    REAL groups_max;
    REAL groups_lost; /* what rounding added to `groups` */
    double spread;    /* sum of q_c (max - x_c) */
    double mass;      /* sum of q_c */
};

/* The tail is the sum of exp(x_c - max) over all classes but one with the largest logit. max starts at the lowest
 * finite number, as if a class had that logit, and `groups` at -1, which removes this class again. Without classes, or
 * if all logits are -inf, the sum stays -1. */
VOXEL_FUNCTION void FN(start_softmax)(struct STRUCT(softmax) * s) {
    s->max = s->groups_max = REAL_LOWEST;
    s->groups = -1;
    s->tail = s->groups_lost = 0;
    s->spread = s->mass = 0;
}

/* Log probabilities are relative to 0: -log p_c = (0 - x_c) + log1p(0). */
VOXEL_FUNCTION void FN(start_log_probabilities)(struct STRUCT(softmax) * s) {
    FN(start_softmax)(s);
    s->max = 0;
}

/* A larger logit x scales 1 + tail down, which becomes the new tail. Both cases take one exponential and no branch. */
VOXEL_FUNCTION void FN(add_logit)(struct STRUCT(softmax) * s, REAL x) {
    const REAL above = x - s->max, e = MATH(exp)(-MATH(fabs)(above));
    s->tail = s->tail * (above > 0 ? e : 1) + e;
    s->max = above > 0 ? x : s->max;
}

/* Call it after at most VOXEL_GROUP classes. */
VOXEL_FUNCTION void FN(finish_group)(struct STRUCT(softmax) * s) {
    const REAL scale = MATH(exp)(s->groups_max - s->max);
    const REAL before = s->groups * scale, added = s->tail - s->groups_lost * scale;
    s->groups = before + added;
    s->groups_lost = (s->groups - before) - added;
    s->groups_max = s->max;
    s->tail = 0;
}

/* Sets the tail to that of all groups; nan if a logit is nan or +inf, if all are -inf, or if there are none. */
VOXEL_FUNCTION void FN(finish_softmax)(struct STRUCT(softmax) * s) {
    const REAL tail = s->groups + (s->max - s->max);
    s->tail = tail < 0 ? (REAL)NAN : tail;
}

/* Adds a class to the losses, after finish_softmax. */
VOXEL_FUNCTION void FN(add_factor)(struct STRUCT(softmax) * s, REAL x, REAL q) {
    const REAL below = s->max - x;
    s->mass += (double)q;
    s->spread += q == 0 && below == (REAL)INFINITY ? 0 : (double)q * (double)below;
}

/* The factor of -log p_y in the focal loss, (1 - p)^gamma; or, with `of_gradient`, the factor of the gradient of
 * -log p_y, (1 - p)^gamma (1 + gamma p (-log p) / (1 - p)). The quotient is 0 for p = 0; for p = 1 the power is 0, so
 * its value does not matter. */
VOXEL_FUNCTION REAL FN(focal_factor)(const struct STRUCT(softmax) * s, REAL x_y, REAL gamma, int of_gradient) {
    const REAL e = MATH(exp)(x_y - s->max), others = (1 - e) + s->tail, log_sum = MATH(log1p)(s->tail);
    const REAL power = MATH(exp)(gamma * (MATH(log)(others) - log_sum));
    const REAL quotient = e != 0 && others != 0 ? e * ((s->max - x_y) + log_sum) / others : 0;
    return of_gradient ? power * (1 + gamma * quotient) : power;
}

/* The loss for v = 1, from the factor `sharp` at the label and the q_c passed to add_factor. */
VOXEL_FUNCTION REAL FN(softmax_loss)(const struct STRUCT(softmax) * s, REAL x_y, REAL sharp) {
    const REAL log_sum = MATH(log1p)(s->tail);
    return FN(weighted)(sharp, (s->max - x_y) + log_sum) + (REAL)(s->spread + s->mass * (double)log_sum);
}

/* 1 / (1 + tail), so that p_c = exp(x_c - max) share. */
VOXEL_FUNCTION REAL FN(softmax_share)(const struct STRUCT(softmax) * s) { return 1 / (1 + s->tail); }

VOXEL_FUNCTION REAL FN(softmax_probability)(const struct STRUCT(softmax) * s, REAL share, REAL x) {
    return MATH(exp)(x - s->max) * share;
}

/* The gradient for v = 1, Q p_c - q_c, computed as p_c (Q - q_c) - q_c (1 - p_c). `total` is Q. */
VOXEL_FUNCTION REAL FN(softmax_grad)(const struct STRUCT(softmax) * s, REAL share, REAL x, REAL q, REAL total) {
    const REAL e = MATH(exp)(x - s->max);
    return share * (e * (total - q) - q * ((1 - e) + s->tail));
}

/* The same divided by Q, if only the label has a factor: Q = q_y, and all other q_c are 0. */
VOXEL_FUNCTION REAL FN(label_grad)(const struct STRUCT(softmax) * s, REAL share, REAL x, int is_label) {
    const REAL e = MATH(exp)(x - s->max);
    return share * (is_label ? -((1 - e) + s->tail) : e);
}

/* ---- sets: sets_tmpl.h has the formulas ---- */

struct STRUCT(set_sums) {
    REAL max; /* the largest logit of the set */
    double inside, outside;
};

/* max starts at the lowest finite number, so that a set of logits of -inf has inside = 0. */
VOXEL_FUNCTION void FN(start_set)(struct STRUCT(set_sums) * set) {
    set->max = REAL_LOWEST;
    set->inside = set->outside = 0;
}

/* Adds a class to the sums, after finish_softmax; `max` is found before. */
VOXEL_FUNCTION void FN(add_to_set)(struct STRUCT(set_sums) * set, const struct STRUCT(softmax) * s, REAL x, int is_in) {
    const REAL e = MATH(exp)(x - (is_in ? set->max : s->max));
    set->inside += is_in ? (double)e : 0;
    set->outside += is_in ? 0 : (double)e;
}

/* The odds against the set; inf where they overflow. */
VOXEL_FUNCTION REAL FN(odds_against_set)(const struct STRUCT(softmax) * s, const struct STRUCT(set_sums) * set) {
    return (REAL)set->outside / ((REAL)set->inside * MATH(exp)(set->max - s->max));
}

/* -log q. Where the odds are large their logarithm is found from the parts, which do not overflow. */
VOXEL_FUNCTION REAL FN(set_nll)(const struct STRUCT(softmax) * s, const struct STRUCT(set_sums) * set) {
    const REAL distance = s->max - set->max, outside = (REAL)set->outside, inside = (REAL)set->inside;
    const REAL below = MATH(exp)(-distance);
    return distance < 16 ? MATH(log1p)(outside / (inside * below))
                         : distance + (MATH(log)(outside + inside * below) - MATH(log)(inside));
}

/* -log q for log probabilities: their sum over the set is q. */
VOXEL_FUNCTION REAL FN(set_log_nll)(const struct STRUCT(set_sums) * set) {
    return -(set->max + (REAL)log(set->inside));
}

/* (1 - q)^gamma, or with `of_gradient` the factor of the gradient of -log q, as focal_factor has it. */
VOXEL_FUNCTION REAL FN(set_focal_factor)(REAL odds, REAL nll, REAL gamma, int of_gradient) {
    const REAL minus_log_complement = odds > 1 ? MATH(log1p)(1 / odds) : MATH(log1p)(odds) - MATH(log)(odds);
    const REAL power = MATH(exp)(-gamma * minus_log_complement);
    const REAL quotient = odds != 0 && odds != (REAL)INFINITY ? nll / odds : 0;
    return of_gradient ? power * (1 + gamma * quotient) : power;
}

/* The gradient of -log q. `share` is that of the softmax. */
VOXEL_FUNCTION REAL FN(set_grad)(const struct STRUCT(softmax) * s, const struct STRUCT(set_sums) * set, REAL share,
                                 REAL x, int is_in) {
    const REAL odds = FN(odds_against_set)(s, set), complement = odds == (REAL)INFINITY ? 1 : odds / (1 + odds);
    return is_in ? -MATH(exp)(x - set->max) / (REAL)set->inside * complement : MATH(exp)(x - s->max) * share;
}

/* The same for log probabilities. */
VOXEL_FUNCTION REAL FN(set_log_grad)(const struct STRUCT(set_sums) * set, REAL x, int is_in) {
    return is_in ? -MATH(exp)(x - set->max) / (REAL)set->inside : 0;
}

/* ---- sigmoids: the formulas are in binary_tmpl.h ---- */

VOXEL_FUNCTION REAL FN(sigmoid)(REAL x) {
    const REAL e = MATH(exp)(-MATH(fabs)(x));
    return (x >= 0 ? 1 : e) / (1 + e);
}

/* log(1 + exp(x)); nan for nan. */
VOXEL_FUNCTION REAL FN(softplus)(REAL x) { return (x < 0 ? 0 : x) + MATH(log1p)(MATH(exp)(-MATH(fabs)(x))); }

/* The loss of one class for v = 1, from the factors of its terms: `one` is u_c h_c, `zero` is w_c (1 - h_c). */
VOXEL_FUNCTION REAL FN(binary_loss)(REAL x, REAL one, REAL zero, REAL gamma) {
    const REAL minus_log_p = FN(softplus)(-x), minus_log_q = FN(softplus)(x);
    const REAL factor_p = gamma == 0 ? one : one * MATH(exp)(-gamma * minus_log_q);
    const REAL factor_q = gamma == 0 ? zero : zero * MATH(exp)(-gamma * minus_log_p);
    return FN(weighted)(factor_p, minus_log_p) + FN(weighted)(factor_q, minus_log_q);
}

VOXEL_FUNCTION REAL FN(binary_grad)(REAL x, REAL one, REAL zero, REAL gamma) {
    const REAL p = FN(sigmoid)(x), q = FN(sigmoid)(-x);
    if (gamma == 0) {
        return zero * p - one * q;
    }
    const REAL minus_log_p = FN(softplus)(-x), minus_log_q = FN(softplus)(x);
    const REAL falling = MATH(exp)(-gamma * minus_log_q) * (gamma * FN(weighted)(p, minus_log_p) + q);
    const REAL rising = MATH(exp)(-gamma * minus_log_p) * (gamma * FN(weighted)(q, minus_log_q) + p);
    return zero * rising - one * falling;
}

#undef REAL
#undef STRUCT
#undef FN
#undef MATH
#undef REAL_LOWEST
