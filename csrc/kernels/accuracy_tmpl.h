/* Argmax and comparison with the labels in one walk. */

/* The first class with the largest logit; nan counts as larger than any number. */
static void FN(argmax)(const struct segloss_tensor* logits, const struct block* b, int64_t num_classes,
                       int32_t* predicted) {
    ALIGNED REAL best[SEGLOSS_BLOCK];
    ALIGNED REAL values[CLASS_CHUNK * SEGLOSS_BLOCK];
    for (int64_t first = 0; first < num_classes; first += CLASS_CHUNK) {
        const int n = FN(chunk_length)(first, num_classes);
        FN(read_classes)(values, logits, b, first, n);
        if (first == 0) {
            memcpy(best, values, sizeof best);
            memset(predicted, 0, SEGLOSS_BLOCK * sizeof *predicted);
        }
        for (int c = 0; c < n; ++c) {
            const REAL* x = values + c * SEGLOSS_BLOCK;
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                const int better = !(x[i] <= best[i]) && best[i] == best[i];
                best[i] = better ? x[i] : best[i];
                predicted[i] = better ? (int32_t)(first + c) : predicted[i];
            }
        }
    }
}

static int64_t FN(accuracy)(const struct segloss_accuracy* a, int64_t begin, int64_t end,
                            struct segloss_counts* counts) {
    assert_range(&a->positions, begin, end);
    ALIGNED int32_t label[SEGLOSS_BLOCK];
    ALIGNED int32_t predicted[SEGLOSS_BLOCK];
    *counts = (struct segloss_counts){0, 0};
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        const int bad = read_labels(label, &a->target, &b, a->num_classes, a->ignore_index);
        if (bad >= 0) {
            return p + bad;
        }
        FN(argmax)(&a->logits, &b, a->num_classes, predicted);
        int correct = 0, valid = 0;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            valid += label[i] >= 0;
            correct += label[i] >= 0 && label[i] == predicted[i];
        }
        counts->correct += correct;
        counts->valid += valid;
    }
    return -1;
}
