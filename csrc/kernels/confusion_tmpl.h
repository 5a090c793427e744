/* Argmax, and counting of pairs (label, predicted class) in the same walk. */

/* A chunk of logits, in the tensor itself or copied to `buffer`. */
static ROWS FN(logit_rows)(const struct segloss_tensor* logits, const struct block* b, int64_t first, int n,
                           REAL* buffer) {
    const struct run r = first_run(b);
    const struct plane now = tensor_plane(logits, b, &r, first);
    if (FN(reads_in_place)(logits, &now, n, r.count)) {
        return (ROWS){now.data, now.stride_class, 0};
    }
    FN(read_classes)(buffer, logits, b, first, n);
    return (ROWS){buffer, ROW_LANES, 0};
}

/* The first class with the largest logit; nan counts as larger than any number. */
static void FN(argmax)(const struct segloss_tensor* logits, const struct block* b, int64_t num_classes,
                       int32_t* predicted) {
    ALIGNED REAL values[CLASS_CHUNK * ROW_LANES];
    ALIGNED REAL best[SEGLOSS_BLOCK];
    memset(predicted, 0, SEGLOSS_BLOCK * sizeof *predicted);
    for (int64_t first = 0; first < num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, num_classes);
        const ROWS x = FN(logit_rows)(logits, b, first, n, values);
        if (first == 0) {
            memcpy(best, x.values, sizeof best);
        }
        for (int c = 0; c < n; ++c) {
            const REAL* x_c = x.values + c * x.stride;
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                const int better = !(x_c[i] <= best[i]) && best[i] == best[i];
                best[i] = better ? x_c[i] : best[i];
                predicted[i] = better ? (int32_t)(first + c) : predicted[i];
            }
        }
    }
}

/* Of one chunk after another: whether each logit is larger than the threshold. */
static void FN(compare)(const struct segloss_predict* a, const struct block* b) {
    ALIGNED REAL values[CLASS_CHUNK * ROW_LANES];
    ALIGNED int32_t is_larger[SEGLOSS_BLOCK];
    const REAL threshold = (REAL)a->threshold;
    for (int64_t first = 0; first < a->num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, a->num_classes);
        const ROWS x = FN(logit_rows)(&a->logits, b, first, n, values);
        for (int c = 0; c < n; ++c) {
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                is_larger[i] = x.values[c * x.stride + i] > threshold;
            }
            write_labels(is_larger, &a->prediction, b, first + c);
        }
    }
}

static int64_t FN(predict)(const struct segloss_predict* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    ALIGNED int32_t predicted[SEGLOSS_BLOCK];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        if (a->has_threshold) {
            FN(compare)(a, &b);
        } else {
            FN(argmax)(&a->logits, &b, a->num_classes, predicted);
            write_labels(predicted, &a->prediction, &b, 0);
        }
    }
    return -1;
}

static int64_t FN(confusion)(const struct segloss_confusion* a, int64_t begin, int64_t end, int64_t* counts) {
    assert_range(&a->positions, begin, end);
    ALIGNED int32_t label[SEGLOSS_BLOCK];
    ALIGNED int32_t predicted[SEGLOSS_BLOCK];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        int bad = read_labels(label, &a->target, &a->labels, &b, a->num_classes, a->ignore_index);
        if (bad < 0 && a->prediction_is_labels) {
            bad = read_predictions(predicted, &a->prediction, &b, label, a->num_classes);
        }
        if (bad >= 0) {
            return p + bad;
        }
        if (!a->prediction_is_labels) {
            FN(argmax)(&a->prediction, &b, a->num_classes, predicted);
        }
        (a->per_class ? count_classes : count_pairs)(counts, label, predicted, a->num_classes);
    }
    return -1;
}
