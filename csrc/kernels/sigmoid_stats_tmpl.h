/* Soft statistics of sigmoids, with the losses summed in the same walk, and their gradient: each class by itself. */

/* How a class's probabilities and losses are computed; constant in the loops that are compiled for it. */
struct FN(sigmoid_kind) {
    int with_loss;
    int is_hard; /* all targets are 0 or 1, also after label smoothing */
    int gamma;
};

static struct FN(sigmoid_kind) FN(sigmoid_kind_of)(const struct segloss_soft_stats* s) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const int is_hard = a->target_kind != SEGLOSS_PROBABILITIES && (!s->with_loss || FN(has_hard_targets)(a));
    return (struct FN(sigmoid_kind)){s->with_loss, is_hard, FN(kind_of_gamma)((REAL)a->gamma)};
}

/* Adds the statistics of a class, and its losses to the lanes of `loss`. */
static inline __attribute__((always_inline)) void
FN(add_sigmoid_class)(const struct segloss_soft_stats* s, const VOXELS* v, const BINARY_CLASS* class, const REAL* x,
                      struct FN(sigmoid_kind) kind, int c, REAL* restrict loss, double* const* stats) {
    ALIGNED REAL rows[SEGLOSS_STATISTICS][SEGLOSS_BLOCK];
    struct FN(class_sums) sums = {.rows = FN(has_parts)(s, v) ? rows : NULL};
    for (int i = 0; i < SEGLOSS_BLOCK; i += 4 * WIDTH) {
        VEC p_part[4], both_part[4], g_part[4];
        for (int k = 0; k < 4; ++k) {
            const int lane = i + k * WIDTH;
            FN(prefetch_ahead)(v, c, lane);
            const VEC weight = FN(load)(v->weight + lane);
            const SIGMOID sigmoid = FN(sigmoid_of)(FN(only)(weight != 0, FN(load)(x + lane)));
            const VEC p = FN(probability)(&sigmoid), share = p * weight;
            p_part[k] = s->squared ? p * share : share;
            if (kind.is_hard) {
                const MASK is_one = FN(is_one)(class, v, lane);
                both_part[k] = FN(only)(is_one, share);
                g_part[k] = FN(only)(is_one, weight);
            } else {
                const VEC g = FN(target_at)(class, v, lane), weighted = g * weight;
                both_part[k] = s->soft_label ? FN(overlap)(p, g) * weight : p * weighted;
                g_part[k] = s->squared ? g * weighted : weighted;
            }
            if (kind.with_loss) {
                const BINARY_TERM term = FN(binary_loss)(class, v, lane, &sigmoid, kind.is_hard, kind.gamma);
                FN(store)(loss + lane, FN(load)(loss + lane) + weight * term.loss);
            }
        }
        FN(add_four)(&sums, SEGLOSS_INTERSECTION, i, both_part);
        FN(add_four)(&sums, SEGLOSS_PREDICTION, i, p_part);
        FN(add_four)(&sums, SEGLOSS_TARGET, i, g_part);
    }
    for (enum segloss_statistic statistic = 0; statistic < SEGLOSS_STATISTICS; ++statistic) {
        FN(add_to_statistic)(s, v, stats, class->index, &sums, statistic);
    }
}

static inline __attribute__((always_inline)) void FN(add_sigmoid_chunk)(const struct segloss_soft_stats* s, VOXELS* v,
                                                                        ROWS x, int64_t first, int n,
                                                                        struct FN(sigmoid_kind) kind, REAL* loss,
                                                                        double* const* stats) {
    for (int c = 0; c < n; ++c) {
        const BINARY_CLASS class = FN(binary_class_of)(&s->voxels, v, first, n, c);
        FN(add_sigmoid_class)(s, v, &class, x.values + c * x.stride, kind, c, loss, stats);
    }
}

/* Adds the statistics of a block, and its losses to the lanes of `loss`. */
static void FN(add_sigmoid_stats)(const struct segloss_soft_stats* s, VOXELS* v, REAL* loss, double* const* stats) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const struct FN(sigmoid_kind) kind = FN(sigmoid_kind_of)(s);
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const ROWS x = FN(input_rows)(v, first, n);
        if (!kind.with_loss) {
            FN(add_sigmoid_chunk)(s, v, x, first, n, (struct FN(sigmoid_kind)){0, kind.is_hard, 0}, loss, stats);
        } else if (kind.is_hard && kind.gamma == FN(gamma_zero)) {
            FN(add_sigmoid_chunk)(s, v, x, first, n, (struct FN(sigmoid_kind)){1, 1, FN(gamma_zero)}, loss, stats);
        } else {
            FN(add_sigmoid_chunk)(s, v, x, first, n, (struct FN(sigmoid_kind)){1, kind.is_hard, kind.gamma}, loss,
                                  stats);
        }
    }
}

/* The gradient v p (1 - p) d_c of the statistics, and that of the losses. */
static inline __attribute__((always_inline)) void
FN(write_sigmoid_class)(const struct segloss_soft_stats* s, const VOXELS* v, const BINARY_CLASS* class, const REAL* x,
                        const REAL* scale, struct FN(sigmoid_kind) kind, ROWS grad, int c) {
    const int64_t row = c * grad.stride;
    ALIGNED REAL buffers[2][SEGLOSS_BLOCK];
    const struct FN(by_lane) a = FN(of_class)(s, v, s->grad_intersection, class->index, buffers[0]);
    const struct FN(by_lane) b = FN(of_class)(s, v, s->grad_prediction, class->index, buffers[1]);
    for (int i = 0; i < v->block.count; i += WIDTH) {
        FN(prefetch_ahead)(v, c, i);
        const VEC weight = FN(load)(v->weight + i);
        const SIGMOID sigmoid = FN(sigmoid_of)(FN(only)(weight != 0, FN(load)(x + i)));
        const VEC p = FN(probability)(&sigmoid);
        VEC d = FN(prediction_slope)(s, FN(at_lane)(b, i), p);
        if (kind.is_hard) {
            d += FN(only)(FN(is_one)(class, v, i), FN(at_lane)(a, i));
        } else {
            const VEC g = FN(target_at)(class, v, i);
            d += FN(at_lane)(a, i) * (s->soft_label ? FN(overlap_slope)(p, g) : g);
        }
        VEC value = weight * (sigmoid.larger * sigmoid.smaller) * d;
        if (kind.with_loss) {
            const BINARY_TERM term = FN(binary_loss)(class, v, i, &sigmoid, kind.is_hard, kind.gamma);
            value += FN(load)(scale + i) * term.slope;
        }
        FN(put)(grad, row + i, value);
    }
}

static inline __attribute__((always_inline)) void FN(write_sigmoid_chunk)(const struct segloss_soft_stats* s, VOXELS* v,
                                                                          ROWS x, int64_t first, int n,
                                                                          const REAL* scale,
                                                                          struct FN(sigmoid_kind) kind, ROWS grad) {
    for (int c = 0; c < n; ++c) {
        const BINARY_CLASS class = FN(binary_class_of)(&s->voxels, v, first, n, c);
        FN(write_sigmoid_class)(s, v, &class, x.values + c * x.stride, scale, kind, grad, c);
    }
}

static void FN(write_sigmoid_grad)(const struct segloss_soft_stats* s, VOXELS* v) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const struct FN(sigmoid_kind) kind = FN(sigmoid_kind_of)(s);
    ALIGNED REAL scale[SEGLOSS_BLOCK];
    FN(read_scale_of_parts)(s, v, scale);
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const ROWS x = FN(input_rows)(v, first, n);
        const ROWS grad = FN(output_of_chunk)(v, &a->grad_logits, first, a->stream_grad);
        if (!kind.with_loss) {
            FN(write_sigmoid_chunk)(s, v, x, first, n, scale, (struct FN(sigmoid_kind)){0, kind.is_hard, 0}, grad);
        } else if (kind.is_hard && kind.gamma == FN(gamma_zero)) {
            FN(write_sigmoid_chunk)(s, v, x, first, n, scale, (struct FN(sigmoid_kind)){1, 1, FN(gamma_zero)}, grad);
        } else {
            FN(write_sigmoid_chunk)(s, v, x, first, n, scale, (struct FN(sigmoid_kind)){1, kind.is_hard, kind.gamma},
                                    grad);
        }
        FN(finish_output)(v, grad, &a->grad_logits, first, n, a->stream_grad);
    }
}
