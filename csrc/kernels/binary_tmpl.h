/* The sigmoids of a block, and binary cross entropy and binary focal loss of each class.
 *
 * With e = exp(-|x|), p = sigmoid(x):
 *   -log p        = max(-x, 0) + log1p(e)
 *   -log (1 - p)  = max(x, 0) + log1p(e)
 * and the smaller of p and 1 - p is e / (1 + e): nothing cancels. */

static inline VEC FN(exp_minus_abs)(VEC x) { return FN(exp_nonpositive)(FN(select)(x > 0, -x, x)); }

/* For x = -inf, e and p are 0. */
static inline VEC FN(sigmoid)(VEC x, VEC e) { return FN(select)(x >= 0, FN(splat)(1), e) / (1 + e); }

/* p_c of a chunk: sigmoids, or the input itself. Valid until the next chunk is requested. */
static const REAL* FN(probabilities)(VOXELS* v, enum segloss_activation activation, int64_t first_class,
                                     int num_classes) {
    const REAL* input = FN(read_input)(v, first_class, num_classes);
    REAL* p = v->activations.values;
    if (activation == SEGLOSS_IDENTITY) {
        return input;
    }
    if (v->activations.first_class == first_class) {
        return p;
    }
    v->activations.first_class = first_class;
    for (int c = 0; c < num_classes; ++c) {
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC x = FN(load)(input + c * ROW_LANES + i);
            FN(store)(p + c * ROW_LANES + i, FN(sigmoid)(x, FN(exp_minus_abs)(x)));
        }
    }
    return p;
}

/* The target of one class: a row of the target's chunk, or one-hot from the labels, written to `buffer`. */
static const REAL* FN(target_row)(VOXELS* v, const struct segloss_cross_entropy* a, int64_t first, int n, int c,
                                  REAL* buffer) {
    if (a->target_kind != SEGLOSS_LABELS) {
        return FN(read_target)(v, first, n) + c * ROW_LANES;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const MASK is_label = FN(load_labels)(v->label + i) == (BITS)(first + c);
        FN(store)(buffer + i, FN(only)(is_label, FN(splat)(1)));
    }
    return buffer;
}

/* The smoothed target is (1 - s) g + s / 2. */
static inline VEC FN(smoothed)(VEC target, REAL smoothing) { return (1 - smoothing) * target + smoothing / 2; }

/* max(x, 0), nan for nan. */
static inline VEC FN(positive_part)(VEC x) { return FN(only)(~(x < 0), x); }

/* The losses of one class. */
static inline VEC FN(binary_loss)(const struct segloss_cross_entropy* a, int64_t class, VEC x, VEC target) {
    const REAL gamma = (REAL)a->gamma;
    const VEC g = FN(smoothed)(target, (REAL)a->label_smoothing);
    const VEC log_sum = FN(log1p)(FN(exp_minus_abs)(x));
    const VEC minus_log_p = FN(positive_part)(-x) + log_sum;
    const VEC minus_log_q = FN(positive_part)(x) + log_sum;
    VEC factor_p = g, factor_q = 1 - g;
    if (gamma != 0) {
        factor_p *= FN(exp_nonpositive)(-gamma * minus_log_q);
        factor_q *= FN(exp_nonpositive)(-gamma * minus_log_p);
    }
    const VEC sum = FN(weighted)(factor_p, minus_log_p) + FN(weighted)(factor_q, minus_log_q);
    return FN(weighted)(FN(splat)(FN(class_weight)(a, class)), sum);
}

/* The gradient of one class's loss, times scale: with q = 1 - p,
 * h p^gamma (gamma q -log q + p) - g q^gamma (gamma p -log p + q), h = 1 - g. */
static inline VEC FN(binary_grad)(const struct segloss_cross_entropy* a, int64_t class, VEC x, VEC target, VEC scale) {
    const REAL gamma = (REAL)a->gamma;
    const VEC g = FN(smoothed)(target, (REAL)a->label_smoothing);
    const VEC e = FN(exp_minus_abs)(x);
    const VEC p = FN(sigmoid)(x, e), q = FN(sigmoid)(-x, e);
    VEC slope_p = q, slope_q = p;
    if (gamma != 0) {
        const VEC log_sum = FN(log1p)(e);
        const VEC minus_log_p = FN(positive_part)(-x) + log_sum;
        const VEC minus_log_q = FN(positive_part)(x) + log_sum;
        slope_p = FN(exp_nonpositive)(-gamma * minus_log_q) * (gamma * FN(weighted)(p, minus_log_p) + q);
        slope_q = FN(exp_nonpositive)(-gamma * minus_log_p) * (gamma * FN(weighted)(q, minus_log_q) + p);
    }
    return scale * FN(class_weight)(a, class) * ((1 - g) * slope_q - g * slope_p);
}

/* Writes the loss of each class at each position of a range. */
static int64_t FN(binary_forward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    assert(a->num_classes == 0 || (a->target.data && a->loss.data));
    assert(!a->log_probabilities);
    ALIGNED REAL buffer[SEGLOSS_BLOCK];
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_block)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
            const int n = FN(chunk_length)(first, a->num_classes);
            const REAL* x = FN(read_input)(&v, first, n);
            const ROWS loss = FN(output_of_chunk)(&v, &a->loss, first, 0);
            for (int c = 0; c < n; ++c) {
                const REAL* target = FN(target_row)(&v, a, first, n, c, buffer);
                for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
                    const VEC x_c = FN(load)(x + c * ROW_LANES + i);
                    const VEC value = FN(binary_loss)(a, first + c, x_c, FN(load)(target + i));
                    FN(put)(loss, c * loss.stride + i, FN(load)(v.weight + i) * value);
                }
            }
            FN(finish_output)(&v, loss, &a->loss, first, n, 0);
        }
    }
    return -1;
}

static int64_t FN(binary_backward)(const struct segloss_cross_entropy* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    assert(a->num_classes == 0 || (a->target.data && a->grad_loss.data));
    assert(!a->log_probabilities);
    ALIGNED REAL buffer[SEGLOSS_BLOCK], scale[SEGLOSS_BLOCK];
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const int bad = FN(read_voxels)(&v, a, p, end);
        if (bad >= 0) {
            return p + bad;
        }
        for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
            const int n = FN(chunk_length)(first, a->num_classes);
            const REAL* x = FN(read_input)(&v, first, n);
            const ROWS grad = FN(output_of_chunk)(&v, &a->grad_logits, first, a->stream_grad);
            for (int c = 0; c < n; ++c) {
                const REAL* target = FN(target_row)(&v, a, first, n, c, buffer);
                FN(read_scale)(a, &v, first + c, scale);
                for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
                    const VEC x_c = FN(load)(x + c * ROW_LANES + i), t = FN(load)(target + i);
                    FN(put)(grad, c * grad.stride + i, FN(binary_grad)(a, first + c, x_c, t, FN(load)(scale + i)));
                }
            }
            FN(finish_output)(&v, grad, &a->grad_logits, first, n, a->stream_grad);
        }
    }
    FN(end_streams)();
    return -1;
}
