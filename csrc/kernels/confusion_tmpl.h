/* Argmax and counting of pairs (label, predicted class) in one walk. */

/* The first class with the largest logit; nan counts as larger than any number. */
static void FN(argmax)(const struct segloss_tensor* logits, const struct block* b, int64_t num_classes,
                       int32_t* predicted) {
    ALIGNED REAL best[SEGLOSS_BLOCK];
    ALIGNED REAL values[CLASS_CHUNK * ROW_LANES];
    memset(predicted, 0, SEGLOSS_BLOCK * sizeof *predicted);
    for (int64_t first = 0; first < num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, num_classes);
        FN(read_classes)(values, logits, b, first, n);
        if (first == 0) {
            memcpy(best, values, sizeof best);
        }
        for (int c = 0; c < n; ++c) {
            const REAL* x = values + c * ROW_LANES;
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                const int better = !(x[i] <= best[i]) && best[i] == best[i];
                best[i] = better ? x[i] : best[i];
                predicted[i] = better ? (int32_t)(first + c) : predicted[i];
            }
        }
    }
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
