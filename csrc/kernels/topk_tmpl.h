/* The largest losses, found by the order of their keys; see kernels.h. */

static inline UMASK FN(load_keys)(const UBITS* key) {
    UMASK keys;
    memcpy(&keys, key, sizeof keys);
    return keys;
}

/* The key of 0, and of -0, which equals it. A loss that does not count gets the key 0, which no loss has. */
#define KEY_OF_ZERO ((UBITS)1 << (8 * sizeof(UBITS) - 1))

static void FN(drop_ignored)(const struct segloss_topk* a, const struct block* b, UBITS* key) {
    if (a->target.data) {
        ALIGNED int32_t label[SEGLOSS_BLOCK];
        read_labels(label, &a->target, &a->labels, b, INT32_MAX, a->ignore_index);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            key[i] = label[i] == IGNORED ? 0 : key[i];
        }
    }
    if (a->voxel_weight.data) {
        ALIGNED REAL weight[SEGLOSS_BLOCK];
        FN(read_classes)(weight, &a->voxel_weight, b, 0, 1);
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            key[i] = weight[i] == 0 ? 0 : key[i];
        }
    }
    memset(key + b->count, 0, (size_t)(SEGLOSS_BLOCK - b->count) * sizeof *key);
}

/* Finds the keys of a block. Returns its losses, in the tensor itself or in `buffer`. */
static const REAL* FN(read_keys)(const struct segloss_topk* a, const struct block* b, REAL* buffer, UBITS* key) {
    const struct run r = first_run(b);
    const struct plane plane = tensor_plane(&a->losses, b, &r, 0);
    const int in_place = FN(lies_in_rows)(&a->losses, &plane, r.count);
    if (!in_place) {
        FN(read_classes)(buffer, &a->losses, b, 0, 1);
    }
    const REAL* loss = in_place ? plane.data : buffer;
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const VEC x = FN(load)(loss + i) + 0; /* makes -0 the same as 0 */
        const UMASK flipped = (UMASK)((MASK)x < 0) | KEY_OF_ZERO;
        const UMASK keys = ((UMASK)x ^ flipped) | (UMASK)(x != x);
        memcpy(key + i, &keys, sizeof keys);
    }
    FN(drop_ignored)(a, b, key);
    return loss;
}

/* The digits of the keys that begin with `known` bits of a->key. Returns their number. */
static int FN(find_digits)(const struct segloss_topk* a, const UBITS* key, uint32_t* digit) {
    const UBITS known = (UBITS)a->known, begin = (UBITS)a->key;
    ALIGNED UBITS is_match[SEGLOSS_BLOCK];
    UMASK matches = {0};
    for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
        const UMASK keys = FN(load_keys)(key + i);
        const UMASK match = (UMASK)(((keys & known) == begin) & (keys != 0)) & 1;
        memcpy(is_match + i, &match, sizeof match);
        matches += match;
    }
    const int shift = a->shift;
    int count = 0;
    for (int k = 0; k < WIDTH; ++k) {
        count += (int)matches[k];
    }
    for (int i = 0; count > 0 && i < SEGLOSS_BLOCK; ++i) {
        digit[i] = (uint32_t)(key[i] >> shift) % SEGLOSS_TOPK_DIGITS;
    }
    for (int i = 0, next = 0; count > 0 && count < SEGLOSS_BLOCK && i < SEGLOSS_BLOCK; ++i) {
        digit[next] = digit[i]; /* without a branch, which would be mispredicted */
        next += (int)is_match[i];
    }
    return count;
}

/* Neighbours often have the same digit. They have different counters: an addition would wait for the one before. */
static void FN(count_digits)(const uint32_t* digit, int count, int64_t* counts) {
    int j = 0;
    for (; j + SEGLOSS_TOPK_COUNTERS <= count; j += SEGLOSS_TOPK_COUNTERS) {
        for (int64_t t = 0; t < SEGLOSS_TOPK_COUNTERS; ++t) {
            ++counts[SEGLOSS_TOPK_COUNTERS * digit[j + t] + t];
        }
    }
    for (; j < count; ++j) {
        ++counts[SEGLOSS_TOPK_COUNTERS * digit[j]];
    }
}

static void FN(topk_count)(const struct segloss_topk* a, int64_t begin, int64_t end, int64_t* counts, double* sum) {
    assert_range(&a->positions, begin, end);
    const UMASK last_of_begin = (UMASK){0} + ((UBITS)a->key | ~(UBITS)a->known);
    double sums[SUM_LANES] = {0};
    ALIGNED REAL buffer[SEGLOSS_BLOCK];
    ALIGNED UBITS key[SEGLOSS_BLOCK];
    ALIGNED uint32_t digit[SEGLOSS_BLOCK];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        const REAL* loss = FN(read_keys)(a, &b, buffer, key);
        const int count = FN(find_digits)(a, key, digit);
        FN(count_digits)(digit, count, counts);
        if (sum) {
            for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
                const MASK is_above = FN(load_keys)(key + i) > last_of_begin;
                FN(store)(buffer + i, FN(only)(is_above, FN(load)(loss + i)));
            }
            FN(add_to_sums)(sums, buffer, SEGLOSS_BLOCK);
        }
    }
    if (sum) {
        *sum = FN(total_of_lanes)(sums);
    }
}

static int64_t FN(topk_ties)(const struct segloss_topk* a, int64_t begin, int64_t end, int64_t n, int64_t* position) {
    assert_range(&a->positions, begin, end);
    ALIGNED REAL buffer[SEGLOSS_BLOCK];
    ALIGNED UBITS key[SEGLOSS_BLOCK];
    int64_t count = 0;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        FN(read_keys)(a, &b, buffer, key);
        int num_ties = 0;
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            num_ties += key[i] == (UBITS)a->key;
        }
        int64_t rank = count;
        for (int i = 0; n >= count && n < count + num_ties && i < SEGLOSS_BLOCK; ++i) {
            const int is_tie = key[i] == (UBITS)a->key;
            *position = is_tie && rank == n ? p + i : *position;
            rank += is_tie;
        }
        count += num_ties;
    }
    return count;
}

static void FN(topk_backward)(const struct segloss_topk* a, int64_t begin, int64_t end) {
    assert_range(&a->positions, begin, end);
    const UMASK smallest = (UMASK){0} + (UBITS)a->key;
    const VEC grad = FN(splat)((REAL)a->grad_sum);
    ALIGNED REAL buffer[SEGLOSS_BLOCK];
    ALIGNED UBITS key[SEGLOSS_BLOCK];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        FN(read_keys)(a, &b, buffer, key);
        for (int i = 0; a->last_tie < p + SEGLOSS_BLOCK && i < SEGLOSS_BLOCK; ++i) {
            key[i] = key[i] == (UBITS)a->key && p + i > a->last_tie ? 0 : key[i];
        }
        for (int i = 0; i < SEGLOSS_BLOCK; i += WIDTH) {
            FN(store)(buffer + i, FN(only)(FN(load_keys)(key + i) >= smallest, grad));
        }
        FN(write_classes)(buffer, &a->grad_losses, &b, 0, 1);
    }
}

#undef KEY_OF_ZERO
