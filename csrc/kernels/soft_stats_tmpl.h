/* Soft statistics, the losses summed in the same walk, and their gradient; the formulas are in kernels.h. Those of
 * sigmoids are in sigmoid_stats_tmpl.h. */

static void FN(add_sigmoid_stats)(const struct segloss_soft_stats* s, VOXELS* v, REAL* loss, double* const* stats);
static void FN(write_sigmoid_grad)(const struct segloss_soft_stats* s, VOXELS* v);

/* Finds the parts of a block. Voxels that do not count belong to any. Returns -1 or the lane of the first bad key. */
static int FN(find_parts)(const struct segloss_soft_stats* s, VOXELS* v) {
    static const struct segloss_label_table no_table = {0};
    struct block_parts* parts = &v->parts;
    parts->count = 1;
    parts->end[0] = v->block.count;
    parts->index[0] = 0;
    if (s->sample_size > 0) {
        find_samples(parts, &v->block, s->sample_size);
    }
    if (!s->keys.data) {
        return -1;
    }
    ALIGNED int32_t key[SEGLOSS_BLOCK];
    const int bad = read_labels(key, &s->keys, &no_table, &v->block, s->num_keys, INT64_MIN);
    parts->count = 0;
    for (int i = 0; bad < 0 && i < v->block.count; ++i) {
        if (v->weight[i] != 0 && (parts->count == 0 || key[i] != parts->index[parts->count - 1])) {
            parts->end[parts->count > 0 ? parts->count - 1 : 0] = i;
            parts->index[parts->count++] = key[i];
        }
    }
    parts->end[parts->count > 0 ? parts->count - 1 : 0] = v->block.count;
    return bad;
}

/* Whether the lanes of a block may belong to different parts. Small samples are added voxel by voxel in any case, so
 * that their sums do not depend on the others. */
static inline int FN(has_parts)(const struct segloss_soft_stats* s, const VOXELS* v) {
    return s->sample_size > 0 || v->parts.count > 1;
}

/* The targets of a chunk, unless they are labels. */
static const REAL* FN(target_rows)(VOXELS* v, const struct segloss_cross_entropy* a, int64_t first, int n) {
    return a->target_kind == SEGLOSS_SETS ? FN(read_sets)(v, first, n, 1) : FN(read_target)(v, first, n);
}

/* The target of one class: a row of the target's chunk, or one-hot from the labels, written to `buffer`. */
static const REAL* FN(target_row)(VOXELS* v, const struct segloss_cross_entropy* a, int64_t first, int n, int c,
                                  REAL* buffer) {
    if (a->target_kind != SEGLOSS_LABELS) {
        return FN(target_rows)(v, a, first, n) + c * ROW_LANES;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const MASK is_label = FN(load_labels)(v->label + i) == (BITS)(first + c);
        FN(store)(buffer + i, FN(only)(is_label, FN(splat)(1)));
    }
    return buffer;
}

/* p_c of a chunk is rows[c] * v->share. */
static const REAL* FN(activations)(const struct segloss_soft_stats* s, VOXELS* v, int64_t first, int n) {
    return s->activation == SEGLOSS_SOFTMAX ? FN(exponentials)(v, first, n) : FN(read_input)(v, first, n);
}

/* Prepares the softmax; for other activations sets share to 1, so that p_c = rows[c]. */
static void FN(prepare_activations)(const struct segloss_soft_stats* s, VOXELS* v) {
    if (s->activation == SEGLOSS_SOFTMAX) {
        FN(find_softmax)(v, &s->voxels, 1);
        FN(find_share)(v);
        return;
    }
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        FN(store)(v->share + i, FN(splat)(1));
    }
}

/* min(p, g); nan for p = nan. */
static inline VEC FN(overlap)(VEC p, VEC g) { return FN(select)(g < p, g, p); }

/* The sums of a block keep this many lanes of REAL, which are added to those in double. */
enum { FN(summed_lanes) = WIDTH < SUM_LANES ? SUM_LANES : WIDTH, FN(summed) = FN(summed_lanes) / WIDTH };

/* What a class of a block adds to its statistics: sums of the lanes, or the lanes themselves where these belong to more
 * than one part. */
struct FN(class_sums) {
    VEC lanes[SEGLOSS_STATISTICS][FN(summed)];
    REAL (*rows)[SEGLOSS_BLOCK]; /* NULL for one part */
};

/* Adds four vectors, from lane i on. */
static inline __attribute__((always_inline)) void FN(add_four)(struct FN(class_sums) * sums,
                                                               enum segloss_statistic statistic, int i, const VEC* x) {
    if (sums->rows) {
        memcpy(sums->rows[statistic] + i, x, 4 * sizeof *x);
    } else {
        sums->lanes[statistic][i / (4 * WIDTH) % FN(summed)] += (x[0] + x[1]) + (x[2] + x[3]);
    }
}

/* The sum of some values. Neighbours are added to different lanes, so that no addition waits for the one before. */
static inline double FN(sum_of_part)(const REAL* values, int count) {
    double lanes[SUM_LANES] = {0}, rest = 0;
    int i = 0;
    for (; i + SUM_LANES <= count; i += SUM_LANES) {
        for (int k = 0; k < SUM_LANES; ++k) {
            lanes[k] += (double)values[i + k];
        }
    }
    for (; i < count; ++i) {
        rest += (double)values[i];
    }
    return rest + FN(total_of_lanes)(lanes);
}

/* Adds a row to the sums of its parts, which lie `stride` apart. */
static void FN(add_to_parts)(const struct block_parts* parts, const REAL* row, double* sums, int64_t stride) {
    for (int k = 0, begin = 0; k < parts->count; begin = parts->end[k++]) {
        sums[parts->index[k] * stride] += FN(sum_of_part)(row + begin, parts->end[k] - begin);
    }
}

static inline __attribute__((always_inline)) void
FN(add_to_statistic)(const struct segloss_soft_stats* s, const VOXELS* v, double* const* stats, int64_t class,
                     const struct FN(class_sums) * sums, enum segloss_statistic statistic) {
    if (sums->rows) {
        FN(add_to_parts)(&v->parts, sums->rows[statistic], stats[statistic] + class, s->voxels.num_classes);
        return;
    }
    ALIGNED REAL values[FN(summed_lanes)];
    double lanes[SUM_LANES] = {0};
    memcpy(values, sums->lanes[statistic], sizeof values);
    FN(add_to_sums)(lanes, values, FN(summed_lanes));
    stats[statistic][v->parts.index[0] * s->voxels.num_classes + class] += FN(total_of_lanes)(lanes);
}

/* Adds the statistics of one class; those with the target only if `has_target`. `target` is its row, NULL for labels.
 */
static inline __attribute__((always_inline)) void FN(add_class)(const struct segloss_soft_stats* s, const VOXELS* v,
                                                                const REAL* row, const REAL* target, int64_t class,
                                                                int has_target, int squared, double* const* stats) {
    ALIGNED REAL rows[SEGLOSS_STATISTICS][SEGLOSS_BLOCK];
    struct FN(class_sums) sums = {.rows = FN(has_parts)(s, v) ? rows : NULL};
    for (int i = 0; i < SEGLOSS_BLOCK; i += 4 * WIDTH) {
        VEC p_part[4], both_part[4], g_part[4];
        for (int k = 0; k < 4; ++k) {
            const int lane = i + k * WIDTH;
            const VEC weight = FN(load)(v->weight + lane);
            const VEC p = FN(load)(row + lane) * FN(load)(v->share + lane), weighted = p * weight;
            p_part[k] = squared ? p * weighted : weighted;
            if (target) {
                const VEC g = FN(load)(target + lane);
                both_part[k] = s->soft_label ? FN(overlap)(p, g) * weight : g * weighted;
                g_part[k] = squared ? g * g * weight : g * weight;
            } else if (has_target) {
                const MASK is_label = FN(load_labels)(v->label + lane) == (BITS)(class);
                both_part[k] = FN(only)(is_label, weighted);
                g_part[k] = FN(only)(is_label, weight);
            }
        }
        FN(add_four)(&sums, SEGLOSS_PREDICTION, i, p_part);
        if (has_target) {
            FN(add_four)(&sums, SEGLOSS_INTERSECTION, i, both_part);
            FN(add_four)(&sums, SEGLOSS_TARGET, i, g_part);
        }
    }
    FN(add_to_statistic)(s, v, stats, class, &sums, SEGLOSS_PREDICTION);
    if (has_target) {
        FN(add_to_statistic)(s, v, stats, class, &sums, SEGLOSS_INTERSECTION);
        FN(add_to_statistic)(s, v, stats, class, &sums, SEGLOSS_TARGET);
    }
}

/* Adds the statistics of a chunk of classes, class by class; of many classes with labels those of v p alone. */
static void FN(add_classes)(const struct segloss_soft_stats* s, VOXELS* v, const REAL* rows, int64_t first, int n,
                            double* const* stats) {
    const int by_label = s->voxels.target_kind == SEGLOSS_LABELS;
    for (int c = 0; c < n; ++c) {
        const REAL* row = rows + c * ROW_LANES;
        if (!by_label) {
            FN(add_class)(s, v, row, FN(target_rows)(v, &s->voxels, first, n) + c * ROW_LANES, first + c, 1, s->squared,
                          stats);
        } else if (s->squared) {
            FN(add_class)(s, v, row, NULL, first + c, n <= FN(few_classes), 1, stats);
        } else if (n <= FN(few_classes)) {
            FN(add_class)(s, v, row, NULL, first + c, 1, 0, stats);
        } else {
            FN(add_class)(s, v, row, NULL, first + c, 0, 0, stats);
        }
    }
}

/* Adds v p g and v g for labels, voxel by voxel. Neighbouring voxels add to different lanes, so that no addition waits
 * for the one before. */
static void FN(add_labels)(const struct segloss_soft_stats* s, const VOXELS* v, const REAL* rows, int64_t first, int n,
                           double* const* stats) {
    enum { LANES = 4 };
    const int64_t begin = v->parts.index[0] * s->voxels.num_classes + first;
    double intersection[CLASS_CHUNK][LANES], truth[CLASS_CHUNK][LANES];
    ALIGNED REAL p[SEGLOSS_BLOCK] = {0};
    memset(intersection, 0, (size_t)n * sizeof intersection[0]);
    memset(truth, 0, (size_t)n * sizeof truth[0]);
    FN(pick_labels)(rows, first, n, v->label, p);
    for (int i = 0; i < v->block.count; ++i) {
        const int64_t c = v->label[i] - first;
        if (v->label[i] >= 0 && c >= 0 && c < n) {
            intersection[c][i % LANES] += (double)(p[i] * v->share[i] * v->weight[i]);
            truth[c][i % LANES] += (double)v->weight[i];
        }
    }
    for (int c = 0; c < n; ++c) {
        const double *both = intersection[c], *target = truth[c];
        stats[SEGLOSS_INTERSECTION][begin + c] += (both[0] + both[1]) + (both[2] + both[3]);
        stats[SEGLOSS_TARGET][begin + c] += (target[0] + target[1]) + (target[2] + target[3]);
    }
}

/* The same where voxels belong to more than one part. */
static void FN(add_labels_of_parts)(const struct segloss_soft_stats* s, const VOXELS* v, const REAL* rows,
                                    int64_t first, int n, double* const* stats) {
    ALIGNED REAL p[SEGLOSS_BLOCK] = {0};
    FN(pick_labels)(rows, first, n, v->label, p);
    for (int k = 0, i = 0; k < v->parts.count; ++k) {
        const int64_t part = v->parts.index[k] * s->voxels.num_classes;
        for (; i < v->parts.end[k]; ++i) {
            if (v->label[i] >= first && v->label[i] < first + n) {
                stats[SEGLOSS_INTERSECTION][part + v->label[i]] += (double)(p[i] * v->share[i] * v->weight[i]);
                stats[SEGLOSS_TARGET][part + v->label[i]] += (double)v->weight[i];
            }
        }
    }
}

static void FN(add_stats)(const struct segloss_soft_stats* s, VOXELS* v, double* const* stats) {
    FN(prepare_activations)(s, v);
    for (int64_t first = 0; first < s->voxels.num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, s->voxels.num_classes);
        const REAL* rows = FN(activations)(s, v, first, n);
        FN(add_classes)(s, v, rows, first, n, stats);
        const int by_label = s->voxels.target_kind == SEGLOSS_LABELS && n > FN(few_classes);
        if (by_label && FN(has_parts)(s, v)) {
            FN(add_labels_of_parts)(s, v, rows, first, n, stats);
        } else if (by_label) {
            FN(add_labels)(s, v, rows, first, n, stats);
        }
    }
}

/* Adds a row to the sums of its keys, as vectors if there is one. */
static void FN(add_to_keys)(const struct block_parts* parts, const REAL* row, double* sums, int64_t stride) {
    double lanes[SUM_LANES] = {0};
    if (parts->count > 1) {
        FN(add_to_parts)(parts, row, sums, stride);
        return;
    }
    FN(add_to_sums)(lanes, row, SEGLOSS_BLOCK);
    sums[parts->index[0] * stride] += FN(total_of_lanes)(lanes);
}

/* Adds the statistics of a block and, if with_loss, its voxels' losses and what they add to the denominator. Where each
 * class has a loss, this denominator is that of one class. */
static void FN(add_block_stats)(const struct segloss_soft_stats* s, VOXELS* v, REAL total_class_weight,
                                double* const* stats, double* loss_sums, double* weight_sums,
                                struct segloss_sums* of_parts) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const int is_softmax = s->activation == SEGLOSS_SOFTMAX;
    ALIGNED REAL loss[SEGLOSS_BLOCK] = {0}, buffer[SEGLOSS_BLOCK];
    const REAL* weight = v->weight;
    if (s->activation == SEGLOSS_SIGMOID) {
        FN(add_sigmoid_stats)(s, v, loss, stats);
    } else {
        FN(add_stats)(s, v, stats);
    }
    if (s->with_loss && is_softmax) {
        weight = FN(find_weights)(a, v, buffer);
        FN(block_losses)(a, v, total_class_weight, weight, loss);
    }
    const int64_t stride = sizeof *of_parts / sizeof of_parts->loss;
    if (s->keys.data) {
        FN(add_to_keys)(&v->parts, loss, &of_parts->loss, stride);
        FN(add_to_keys)(&v->parts, weight, &of_parts->weight, stride);
    } else if (s->with_loss && s->sample_size > 0) {
        FN(add_to_parts)(&v->parts, loss, &of_parts->loss, stride);
        FN(add_to_parts)(&v->parts, weight, &of_parts->weight, stride);
    } else if (s->with_loss) {
        FN(add_to_sums)(loss_sums, loss, SEGLOSS_BLOCK);
        FN(add_weights)(a, v, weight, weight_sums);
    }
}

static void FN(assert_soft_stats)(const struct segloss_soft_stats* s, int64_t begin, int64_t end) {
    assert_range(&s->voxels.positions, begin, end);
    assert(s->sample_size == 0 || begin % (s->sample_size * SEGLOSS_BLOCK) == 0);
    assert(!s->keys.data || (s->sample_size == 0 && s->num_keys >= 1 && s->num_keys <= INT32_MAX));
    assert((s->voxels.num_classes == 0 || s->voxels.target.data) && !s->voxels.log_probabilities);
    assert(!s->with_loss || s->activation != SEGLOSS_IDENTITY);
    assert(s->activation != SEGLOSS_SOFTMAX || s->voxels.target_kind != SEGLOSS_MASKS);
    assert(!s->soft_label || (s->voxels.target_kind == SEGLOSS_PROBABILITIES && !s->squared));
    (void)s;
    (void)begin;
    (void)end;
}

static int64_t FN(soft_stats_forward)(const struct segloss_soft_stats* s, int64_t begin, int64_t end,
                                      double* const* stats, struct segloss_sums* sums) {
    FN(assert_soft_stats)(s, begin, end);
    const REAL total_class_weight = FN(total_class_weight)(&s->voxels);
    const int64_t first_part = s->sample_size > 0 ? begin / s->sample_size : 0;
    const int64_t end_part = s->sample_size > 0 ? end / s->sample_size : s->keys.data ? s->num_keys : 1;
    double loss_sums[SUM_LANES] = {0}, weight_sums[SUM_LANES] = {0};
    VOXELS v;
    for (int k = 0; k < SEGLOSS_STATISTICS; ++k) { /* no memset: stats[k] may be NULL without classes */
        for (int64_t i = first_part * s->voxels.num_classes; i < end_part * s->voxels.num_classes; ++i) {
            stats[k][i] = 0;
        }
    }
    for (int64_t n = first_part; n < end_part; ++n) {
        sums[n] = (struct segloss_sums){0, 0};
    }
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        int bad = FN(read_block)(&v, &s->voxels, p, end);
        bad = bad < 0 ? FN(find_parts)(s, &v) : bad;
        if (bad >= 0) {
            return p + bad;
        }
        if (v.num_active > 0) {
            FN(add_block_stats)(s, &v, total_class_weight, stats, loss_sums, weight_sums, sums);
        }
    }
    for (int64_t n = first_part; n < end_part; ++n) {
        sums[n].loss += FN(total_of_lanes)(loss_sums);
        sums[n].weight += FN(total_of_lanes)(weight_sums);
        sums[n].weight *= s->activation == SEGLOSS_SOFTMAX || s->keys.data ? 1 : (double)s->voxels.num_classes;
    }
    return -1;
}

/* ---- gradient ----
 *
 * Let a and b be grad_intersection and grad_prediction, and d_c = a_c g_c + b_c, or a_c g_c + 2 b_c p_c if squared. The
 * gradient of the statistics is v p_c (d_c - sum_k p_k d_k) for a softmax, v p_c (1 - p_c) d_c for a sigmoid and v d_c
 * for the identity. With soft_label, [p_c < g_c] replaces g_c in d_c; it is 1/2 where they are equal. */

/* The a_c or b_c of the lanes: one value, or a row where these belong to more than one part. */
struct FN(by_lane) {
    REAL value;
    const REAL* row;
};

static inline VEC FN(at_lane)(struct FN(by_lane) of, int i) {
    return of.row ? FN(load)(of.row + i) : FN(splat)(of.value);
}

static struct FN(by_lane)
    FN(of_class)(const struct segloss_soft_stats* s, const VOXELS* v, const void* table, int64_t class, REAL* buffer) {
    const REAL* values = (const REAL*)table + class;
    if (!FN(has_parts)(s, v)) {
        return (struct FN(by_lane)){values[v->parts.index[0] * s->voxels.num_classes], NULL};
    }
    for (int k = 0, i = 0; k < v->parts.count; ++k) {
        const REAL value = values[v->parts.index[k] * s->voxels.num_classes];
        for (; i < v->parts.end[k]; ++i) {
            buffer[i] = value;
        }
    }
    return (struct FN(by_lane)){0, buffer};
}

/* The a_y or b_y of the lanes; 0 where there is no label. */
static void FN(of_labels)(const struct segloss_soft_stats* s, const VOXELS* v, const void* table, REAL* value) {
    const int64_t num_classes = s->voxels.num_classes;
    if (!FN(has_parts)(s, v)) {
        FN(look_up)((const REAL*)table + v->parts.index[0] * num_classes, num_classes, v->label, value);
        return;
    }
    memset(value, 0, SEGLOSS_BLOCK * sizeof *value);
    for (int k = 0, i = 0; k < v->parts.count; ++k) {
        const REAL* of_part = (const REAL*)table + v->parts.index[k] * num_classes;
        for (; i < v->parts.end[k]; ++i) {
            value[i] = v->label[i] < 0 ? 0 : of_part[v->label[i]];
        }
    }
}

/* The b_c of one part. */
static const REAL* FN(prediction_grads)(const struct segloss_soft_stats* s, const VOXELS* v) {
    return (const REAL*)s->grad_prediction + v->parts.index[0] * s->voxels.num_classes;
}

/* The b_c of a chunk in rows, for labels, which leave the buffer of the target unused; NULL for one part. */
static const REAL* FN(prediction_rows)(const struct segloss_soft_stats* s, VOXELS* v, int64_t first, int n) {
    for (int c = 0; FN(has_parts)(s, v) && c < n; ++c) {
        FN(of_class)(s, v, s->grad_prediction, first + c, v->target.values + c * ROW_LANES);
    }
    return FN(has_parts)(s, v) ? v->target.values : NULL;
}

static inline VEC FN(prediction_slope)(const struct segloss_soft_stats* s, VEC b, VEC p) {
    return s->squared ? 2 * b * p : b;
}

/* sum_{c != y} e_c (d_c - d_y): relative to the label's d_y, so that the gradient of a confident voxel keeps its
 * digits. */
static void FN(find_differences)(const struct segloss_soft_stats* s, VOXELS* v, const REAL* restrict at_label,
                                 REAL* restrict difference) {
    const REAL* b = FN(prediction_grads)(s, v);
    ALIGNED double sum[SEGLOSS_BLOCK];
    ALIGNED REAL part[SEGLOSS_BLOCK];
    for (int64_t first = 0; first < s->voxels.num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, s->voxels.num_classes);
        const REAL* exponentials = FN(exponentials)(v, first, n);
        const REAL* b_rows = FN(prediction_rows)(s, v, first, n);
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const MASK label = FN(load_labels)(v->label + i) - (BITS)first;
            const VEC d_y = FN(load)(at_label + i), share = FN(load)(v->share + i);
            VEC total = {0};
            for (int c = 0; c < n; ++c) {
                const VEC e = FN(load)(exponentials + c * ROW_LANES + i);
                const VEC b_c = b_rows ? FN(load)(b_rows + c * ROW_LANES + i) : FN(splat)(b[first + c]);
                const VEC d = FN(prediction_slope)(s, b_c, e * share);
                total += FN(only)(label != c, e * (d - d_y));
            }
            FN(store)(part + i, total);
        }
        FN(add_chunk)(difference, sum, part, first, s->voxels.num_classes);
    }
}

/* Adds the gradient of the statistics to that of a block with labels. */
static void FN(add_to_label_grad)(const struct segloss_soft_stats* s, VOXELS* v, LABEL_GRAD* g) {
    ALIGNED REAL at_label[SEGLOSS_BLOCK], difference[SEGLOSS_BLOCK], a_y[SEGLOSS_BLOCK], b_y[SEGLOSS_BLOCK];
    FN(of_labels)(s, v, s->grad_intersection, a_y);
    FN(of_labels)(s, v, s->grad_prediction, b_y);
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC p = FN(load)(v->label_e + i) * FN(load)(v->share + i);
        FN(store)(at_label + i, FN(load)(a_y + i) + FN(prediction_slope)(s, FN(load)(b_y + i), p));
    }
    FN(find_differences)(s, v, at_label, difference);
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC share = FN(load)(v->share + i), e = FN(load)(v->label_e + i);
        const VEC scale = FN(load)(v->weight + i) * share;
        const VEC mean_difference = FN(load)(difference + i) * share;
        FN(store)(g->slope + i, FN(load)(g->slope + i) - scale * (FN(load)(at_label + i) + mean_difference));
        FN(store)(g->curve + i, s->squared ? 2 * scale * share : scale);
        FN(store)(g->at_label + i, FN(load)(g->at_label + i) - scale * e * mean_difference);
    }
    g->b = FN(prediction_grads)(s, v);
    g->squared = s->squared;
}

/* The target of one class and the a_c and b_c of its d_c. */
struct FN(slopes) {
    const REAL* target;
    struct FN(by_lane) a;
    struct FN(by_lane) b;
};

static struct FN(slopes) FN(slopes_of_class)(const struct segloss_soft_stats* s, VOXELS* v, int64_t first, int n, int c,
                                             REAL (*buffers)[SEGLOSS_BLOCK]) {
    return (struct FN(slopes)){FN(target_row)(v, &s->voxels, first, n, c, buffers[0]),
                               FN(of_class)(s, v, s->grad_intersection, first + c, buffers[1]),
                               FN(of_class)(s, v, s->grad_prediction, first + c, buffers[2])};
}

/* The derivative of min(p, g) by p. */
static inline VEC FN(overlap_slope)(VEC p, VEC g) {
    return FN(select)(p < g, FN(splat)(1), FN(only)(p == g, FN(splat)(REAL_C(0.5))));
}

static inline VEC FN(slope_at)(const struct segloss_soft_stats* s, const struct FN(slopes) * slopes, int i, VEC p) {
    const VEC g = FN(load)(slopes->target + i);
    return FN(at_lane)(slopes->a, i) * (s->soft_label ? FN(overlap_slope)(p, g) : g) +
           FN(prediction_slope)(s, FN(at_lane)(slopes->b, i), p);
}

/* sum_k p_k d_k. */
static void FN(find_mean_slope)(const struct segloss_soft_stats* s, VOXELS* v, REAL* mean) {
    ALIGNED double sum[SEGLOSS_BLOCK];
    ALIGNED REAL buffers[3][SEGLOSS_BLOCK];
    for (int64_t first = 0; first < s->voxels.num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, s->voxels.num_classes);
        const REAL* rows = FN(activations)(s, v, first, n);
        ALIGNED REAL part[SEGLOSS_BLOCK] = {0};
        for (int c = 0; c < n; ++c) {
            const struct FN(slopes) slopes = FN(slopes_of_class)(s, v, first, n, c, buffers);
            for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
                const VEC p = FN(load)(rows + c * ROW_LANES + i) * FN(load)(v->share + i);
                FN(store)(part + i, FN(load)(part + i) + p * FN(slope_at)(s, &slopes, i, p));
            }
        }
        FN(add_chunk)(mean, sum, part, first, s->voxels.num_classes);
    }
}

/* The factor of each voxel's loss in the gradient. */
static void FN(read_scale_of_parts)(const struct segloss_soft_stats* s, const VOXELS* v, REAL* scale) {
    FN(read_scale)(&s->voxels, v, 0, scale);
    for (int k = 0, i = 0; s->with_loss && s->keys.data && k < v->parts.count; ++k) {
        const REAL of_key = ((const REAL*)s->grad_loss)[v->parts.index[k]];
        for (; i < v->parts.end[k]; ++i) {
            scale[i] = v->weight[i] != 0 ? scale[i] * of_key : 0;
        }
    }
}

/* Writes the gradient of a block class by class; `mean` comes from find_mean_slope for a softmax and is 0 otherwise. */
static void FN(write_stats_grad)(const struct segloss_soft_stats* s, VOXELS* v, const REAL* mass, const REAL* mean,
                                 const REAL* scale, const struct FN(set_grad) * set_grad, int64_t first, int n) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const REAL* rows = FN(activations)(s, v, first, n);
    const REAL* x = set_grad ? FN(read_input)(v, first, n) : NULL; /* each is read before the results take its place */
    const ROWS grad = FN(output_of_chunk)(v, &a->grad_logits, first, a->stream_grad);
    ALIGNED REAL buffers[3][SEGLOSS_BLOCK], is_in[SEGLOSS_BLOCK];
    ALIGNED uint32_t bits[SEGLOSS_BLOCK];
    for (int c = 0; c < n; ++c) {
        const struct FN(slopes) slopes = FN(slopes_of_class)(s, v, first, n, c, buffers);
        if (set_grad) {
            FN(read_set_row)(v, bits, first + c, c == 0, 0, is_in);
        }
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            const VEC activation = FN(load)(rows + c * ROW_LANES + i);
            const VEC p = activation * FN(load)(v->share + i);
            const VEC derivative = s->activation == SEGLOSS_IDENTITY ? FN(splat)(1) : p;
            VEC value = FN(load)(v->weight + i) * derivative * (FN(slope_at)(s, &slopes, i, p) - FN(load)(mean + i));
            if (set_grad) {
                const VEC x_c = FN(load)(x + c * ROW_LANES + i), is_member = FN(load)(is_in + i);
                value += FN(set_grad_of_class)(a, v, set_grad, first + c, i, x_c, activation, is_member);
            } else if (s->with_loss) {
                const VEC target = FN(load)(slopes.target + i);
                value += FN(probability_grad)(a, v, first + c, i, target, activation, mass, scale);
            }
            FN(put)(grad, c * grad.stride + i, value);
        }
    }
    FN(finish_output)(v, grad, &a->grad_logits, first, n, a->stream_grad);
}

/* The same for labels with a softmax, where only the label's class differs. */
static void FN(write_label_stats_grad)(const struct segloss_soft_stats* s, VOXELS* v, LABEL_GRAD* label_grad,
                                       int64_t first, int n) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const REAL* e = FN(exponentials)(v, first, n);
    const ROWS grad = FN(output_of_chunk)(v, &a->grad_logits, first, a->stream_grad);
    label_grad->b_rows = FN(prediction_rows)(s, v, first, n);
    FN(write_label_grad)(a, v, e, label_grad, first, n, grad);
    FN(finish_output)(v, grad, &a->grad_logits, first, n, a->stream_grad);
}

static void FN(block_stats_grad)(const struct segloss_soft_stats* s, VOXELS* v, REAL total_class_weight) {
    const struct segloss_cross_entropy* a = &s->voxels;
    const int is_softmax = s->activation == SEGLOSS_SOFTMAX;
    const int by_label = is_softmax && a->target_kind == SEGLOSS_LABELS;
    ALIGNED REAL scale[SEGLOSS_BLOCK], mass[SEGLOSS_BLOCK], mean[SEGLOSS_BLOCK] = {0};
    LABEL_GRAD label_grad;
    struct FN(set_grad) set_grad;
    const int by_set = s->with_loss && a->target_kind == SEGLOSS_SETS;
    FN(read_scale_of_parts)(s, v, scale);
    FN(prepare_activations)(s, v);
    if (by_set) {
        FN(start_set_grad)(a, v, total_class_weight, scale, &set_grad);
    }
    if (by_label) {
        FN(start_label_grad)(a, v, total_class_weight, scale, &label_grad);
        FN(add_to_label_grad)(s, v, &label_grad);
    } else if (is_softmax) {
        if (!by_set) {
            FN(find_mass)(a, v, mass);
        }
        FN(find_mean_slope)(s, v, mean);
    }
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        if (by_label) {
            FN(write_label_stats_grad)(s, v, &label_grad, first, n);
        } else {
            FN(write_stats_grad)(s, v, mass, mean, scale, by_set ? &set_grad : NULL, first, n);
        }
    }
}

static int64_t FN(soft_stats_backward)(const struct segloss_soft_stats* s, int64_t begin, int64_t end) {
    FN(assert_soft_stats)(s, begin, end);
    assert(s->voxels.num_classes == 0 || (s->grad_intersection && s->grad_prediction));
    assert(!s->with_loss || s->voxels.grad_loss.data);
    const REAL total_class_weight = FN(total_class_weight)(&s->voxels);
    VOXELS v;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        int bad = FN(read_voxels)(&v, &s->voxels, p, end);
        bad = bad < 0 ? FN(find_parts)(s, &v) : bad;
        if (bad >= 0) {
            return p + bad;
        }
        if (v.num_active > 0 && s->activation == SEGLOSS_SIGMOID) {
            FN(write_sigmoid_grad)(s, &v);
        } else if (v.num_active > 0) {
            FN(block_stats_grad)(s, &v, total_class_weight);
        } else {
            FN(zero_grad)(&s->voxels, &v.block);
        }
    }
    FN(end_streams)();
    return -1;
}
