/* Defines FEW_NAME, which finds the classes of a block's labels by comparing them with each label of a sorted row in
 * turn. A key is label - base, of the unsigned type KEY; a class must fit into SIGNED, the signed one. Labels of the
 * row outside [low, high] cannot occur. Returns whether any class is BAD. */
typedef KEY JOIN(FEW_NAME, _keys) __attribute__((vector_size(SEGLOSS_VECTOR_BYTES)));
typedef SIGNED JOIN(FEW_NAME, _classes) __attribute__((vector_size(SEGLOSS_VECTOR_BYTES)));
#define KEYS JOIN(FEW_NAME, _keys)
#define CLASSES JOIN(FEW_NAME, _classes)

static inline
    __attribute__((always_inline)) int JOIN(FEW_NAME, _if)(int32_t* restrict label, const KEY* restrict key,
                                                           const int64_t* restrict row, int count, int64_t num_classes,
                                                           int64_t base, int64_t low, int64_t high, int all_occur) {
    enum { LANES = SEGLOSS_VECTOR_BYTES / sizeof(KEY) };
    const int64_t length = row[SEGLOSS_ROW_LENGTH], other = row[SEGLOSS_ROW_OTHER];
    const int64_t* entries = row + SEGLOSS_ROW_HEADER;
    const int64_t* labels = entries + length;
    const SIGNED end = (SIGNED)(num_classes < SIGNED_MAX ? num_classes : SIGNED_MAX);
    ALIGNED SIGNED class[SEGLOSS_BLOCK];
    CLASSES any_bad = {0};
    for (int i = 0; i < SEGLOSS_BLOCK; i += LANES) {
        KEYS keys;
        memcpy(&keys, key + i, sizeof keys);
        CLASSES classes = (CLASSES){0} + (SIGNED)other;
        if (other == SEGLOSS_SAME) {
            const CLASSES same = (CLASSES)(keys + (KEY)base), is_class = same >= 0;
            classes = (is_class & same) | (~is_class & BAD);
        }
        for (int64_t k = 0; k < length; ++k) {
            if (all_occur || (labels[k] >= low && labels[k] <= high)) {
                const CLASSES is_label = (CLASSES)(keys == (KEY)(labels[k] - base));
                classes = (is_label & (SIGNED)entries[k]) | (~is_label & classes);
            }
        }
        const CLASSES is_beyond = classes >= end;
        classes = (is_beyond & BAD) | (~is_beyond & classes);
        any_bad |= classes == BAD;
        memcpy(class + i, &classes, sizeof classes);
    }
    for (int i = 0; i < count; ++i) {
        label[i] = class[i]; /* NOLINT(bugprone-signed-char-misuse): IGNORED and BAD are negative */
    }
    int is_any = 0;
    for (size_t k = 0; k < LANES; ++k) {
        is_any |= any_bad[k];
    }
    return is_any;
}

static int FEW_NAME(int32_t* restrict label, const KEY* restrict key, const int64_t* restrict row, int count,
                    int64_t num_classes, int64_t base, int64_t low, int64_t high) {
    const int64_t* labels = row + SEGLOSS_ROW_HEADER + row[SEGLOSS_ROW_LENGTH];
    if (count == SEGLOSS_BLOCK && labels[0] >= low && labels[row[SEGLOSS_ROW_LENGTH] - 1] <= high) {
        return JOIN(FEW_NAME, _if)(label, key, row, SEGLOSS_BLOCK, num_classes, base, low, high, 1);
    }
    return JOIN(FEW_NAME, _if)(label, key, row, count, num_classes, base, low, high, 0);
}

#undef KEYS
#undef CLASSES
#undef KEY
#undef SIGNED
#undef SIGNED_MAX
#undef FEW_NAME
