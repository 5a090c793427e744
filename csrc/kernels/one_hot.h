/* Converts exact one-hot targets of any integer dtype to labels. */

static int64_t one_hot_labels(const struct segloss_one_hot* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    ALIGNED int64_t value[SEGLOSS_BLOCK];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        ALIGNED int32_t label[SEGLOSS_BLOCK] = {0};
        ALIGNED int32_t ones[SEGLOSS_BLOCK] = {0};
        ALIGNED int32_t strange[SEGLOSS_BLOCK] = {0};
        for (int64_t c = 0; c < a->num_classes; ++c) {
            read_integers(value, &a->target, &b, c);
            for (int i = 0; i < b.count; ++i) {
                label[i] = value[i] == 1 ? (int32_t)c : label[i];
                ones[i] += value[i] == 1;
                strange[i] |= value[i] != 0 && value[i] != 1;
            }
        }
        for (int i = 0; i < b.count; ++i) {
            if (ones[i] != 1 || strange[i]) {
                return p + i;
            }
        }
        memcpy(a->labels + p, label, (size_t)b.count * sizeof *label);
    }
    return -1;
}
