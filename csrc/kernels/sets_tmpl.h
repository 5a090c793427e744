/* The marginal loss: cross entropy of labels that stand for any class of a set.
 *
 * Let M be the largest logit of the set, m that of all classes, and
 *   inside  = sum of exp(x_c - M) over the set       outside = sum of exp(x_c - m) over the other classes
 * Then the odds against the set are R = outside / inside * exp(m - M), and with q = 1 / (1 + R)
 *   -log q = log1p(R)        gradient: -(exp(x_c - M) / inside) R q in the set, p_c outside of it
 * Nothing cancels, so a confident voxel keeps its digits. */

#define SET_SUMS struct FN(set_sums)

SET_SUMS {
    ALIGNED REAL max[SEGLOSS_BLOCK]; /* M */
    ALIGNED REAL inside[SEGLOSS_BLOCK];
    ALIGNED REAL outside[SEGLOSS_BLOCK];
};

/* M; it starts at the lowest number, so that a set of logits of -inf has inside = 0. */
static void FN(find_set_max)(VOXELS* v, int64_t num_classes, REAL* max) {
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        max[i] = REAL_LOWEST;
    }
    for (int64_t first = 0; first < num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, num_classes);
        const REAL* x = FN(read_input)(v, first, n);
        const REAL* is_in = FN(read_sets)(v, first, n, 0);
        for (int c = 0; c < n; ++c) {
            for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
                const VEC x_c = FN(load)(x + c * ROW_LANES + i), largest = FN(load)(max + i);
                const VEC larger = FN(larger)(x_c, largest);
                FN(store)(max + i, FN(select)(FN(load)(is_in + c * ROW_LANES + i) != 0, larger, largest));
            }
        }
    }
}

/* After find_softmax, or with v->max of 0 for log probabilities, for which `outside` is meaningless. */
static void FN(find_set_sums)(VOXELS* v, int64_t num_classes, SET_SUMS* s) {
    ALIGNED double inside_sum[SEGLOSS_BLOCK], outside_sum[SEGLOSS_BLOCK];
    FN(find_set_max)(v, num_classes, s->max);
    for (int64_t first = 0; first < num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, num_classes);
        const REAL* x = FN(read_input)(v, first, n);
        const REAL* is_in = FN(read_sets)(v, first, n, 0);
        ALIGNED REAL inside[SEGLOSS_BLOCK] = {0}, outside[SEGLOSS_BLOCK] = {0};
        for (int c = 0; c < n; ++c) {
            for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
                const MASK is_inside = FN(load)(is_in + c * ROW_LANES + i) != 0;
                const VEC reference = FN(select)(is_inside, FN(load)(s->max + i), FN(load)(v->max + i));
                const VEC e = FN(exp_nonpositive)(FN(load)(x + c * ROW_LANES + i) - reference);
                FN(store)(inside + i, FN(load)(inside + i) + FN(only)(is_inside, e));
                FN(store)(outside + i, FN(load)(outside + i) + FN(only)(~is_inside, e));
            }
        }
        FN(add_chunk)(s->inside, inside_sum, inside, first, num_classes);
        FN(add_chunk)(s->outside, outside_sum, outside, first, num_classes);
    }
}

/* The odds against the set; inf where they overflow. */
static inline VEC FN(odds_against_set)(const VOXELS* v, const SET_SUMS* s, int i) {
    const VEC below = FN(exp_nonpositive)(FN(load)(s->max + i) - FN(load)(v->max + i));
    return FN(load)(s->outside + i) / (FN(load)(s->inside + i) * below);
}

/* -log q. Where the odds are large their logarithm is found from the parts, which do not overflow. */
static inline VEC FN(set_nll)(const VOXELS* v, const SET_SUMS* s, int i) {
    const VEC distance = FN(load)(v->max + i) - FN(load)(s->max + i);
    const VEC outside = FN(load)(s->outside + i), inside = FN(load)(s->inside + i);
    const VEC below = FN(exp_nonpositive)(-distance);
    const VEC near = FN(log1p)(outside / (inside * below));
    const VEC far = distance + (FN(log)(outside + inside * below) - FN(log)(inside));
    return FN(select)(distance < 16, near, far);
}

/* -log q for log probabilities: their sum over the set is q. */
static inline VEC FN(set_log_nll)(const SET_SUMS* s, int i) {
    return -(FN(load)(s->max + i) + FN(log)(FN(load)(s->inside + i)));
}

/* (1 - q)^gamma, or with `of_gradient` the factor of the gradient of -log q, as focal_factors has it. */
static inline VEC FN(set_focal_factor)(REAL gamma, int of_gradient, VEC odds, VEC nll) {
    const VEC log_odds_for =
        FN(select)(odds > 1, FN(log1p)(1 / odds), FN(log1p)(odds) - FN(log)(odds)); /* -log(1 - q) */
    const VEC power = FN(exp_nonpositive)(-gamma * log_odds_for);
    const VEC quotient = FN(only)((odds != 0) & (odds != (REAL)INFINITY), nll / odds);
    return of_gradient ? power * (1 + gamma * quotient) : power;
}

/* The gradient of the voxel losses but for smoothing: sharp times this is that of class c with exponential e_c. */
static inline VEC FN(set_grad)(const VOXELS* v, const SET_SUMS* s, int i, VEC x, VEC e, VEC is_in) {
    const VEC odds = FN(odds_against_set)(v, s, i);
    const VEC complement = FN(select)(odds == (REAL)INFINITY, FN(splat)(1), odds / (1 + odds)); /* 1 - q */
    const VEC share = FN(exp_nonpositive)(x - FN(load)(s->max + i)) / FN(load)(s->inside + i);
    return FN(select)(is_in != 0, -share * complement, e * FN(load)(v->share + i));
}
