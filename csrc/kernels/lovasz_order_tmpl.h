/* Sorts the errors of one class by their digits, the lowest first, and finds the slopes of their order; see kernels.h.
 * Included for each way to store items: ITEM is their type, IN(name) makes a name unique for it, and
 *
 *   MAKE_ITEM(rank, is_one, position)   makes one
 *   RANK(item)                          its rank, without the highest bit, IS_ONE(item), which is that bit
 *   POSITION(item)                      its position
 *
 * An order does not change equal ranks: each pass keeps the items of a digit in their order. */

/* The items of a block of `count` errors, at most SEGLOSS_BLOCK. Returns their number. */
static int IN(make_items)(const struct segloss_lovasz_order* o, int64_t begin, int count, ITEM* items) {
    const REAL* error = (const REAL*)o->slopes + begin;
    const UBITS smallest = (UBITS)o->smallest, largest = (UBITS)o->largest;
    int num_items = 0;
    for (int i = 0; i < count; ++i) { /* without a branch, which would be mispredicted */
        const UBITS bits = FN(bits_of_error)(error[i]), key = FN(key_of_error)(bits);
        items[num_items] = MAKE_ITEM(largest - key, bits >> (8 * sizeof(UBITS) - 1), (uint64_t)(begin + i));
        num_items += key >= smallest;
    }
    return num_items;
}

/* The items [begin, begin + count), at most SEGLOSS_BLOCK of them, or those of so many errors, in `buffer`. */
static const ITEM* IN(items_at)(const struct segloss_lovasz_order* o, const ITEM* items, int64_t begin, int* count,
                                ITEM* buffer) {
    if (items) {
        return items + begin;
    }
    *count = IN(make_items)(o, begin, *count, buffer);
    return buffer;
}

static void IN(count_items)(const struct segloss_lovasz_order* o, const ITEM* items, int64_t begin, int64_t end,
                            int64_t* counts) {
    const int shift = o->shift;
    const uint64_t mask = ((uint64_t)1 << o->bits) - 1;
    ITEM buffer[SEGLOSS_BLOCK];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        int count = smaller(end - p, SEGLOSS_BLOCK);
        const ITEM* item = IN(items_at)(o, items, p, &count, buffer);
        for (int i = 0; i < count; ++i) {
            ++counts[RANK(item[i]) >> shift & mask];
        }
    }
}

static void IN(move_items)(const struct segloss_lovasz_order* o, const ITEM* items, int64_t begin, int64_t end,
                           ITEM* to, int64_t* next) {
    const int shift = o->shift;
    const uint64_t mask = ((uint64_t)1 << o->bits) - 1;
    ITEM buffer[SEGLOSS_BLOCK];
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        int count = smaller(end - p, SEGLOSS_BLOCK);
        const ITEM* item = IN(items_at)(o, items, p, &count, buffer);
        for (int i = 0; i < count; ++i) {
            const int64_t at = next[RANK(item[i]) >> shift & mask]++;
            to[at] = item[i];
            __builtin_prefetch((const char*)(to + at) + CACHE_LINE, 1); /* makes it 2.5 times as fast */
        }
    }
    if (!items) {
        memset((REAL*)o->slopes + begin, 0, (size_t)(end - begin) * sizeof(REAL));
    }
}

static int64_t IN(count_ones)(const ITEM* items, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t k = begin; k < end; ++k) {
        count += (int64_t)IS_ONE(items[k]);
    }
    return count;
}

static double IN(write_slopes)(const struct segloss_lovasz_order* o, const ITEM* items, int64_t begin, int64_t end,
                               int64_t ones_before) {
    REAL* slopes = o->slopes;
    double sums[SUM_LANES] = {0};
    ALIGNED double ones[SEGLOSS_BLOCK], error[SEGLOSS_BLOCK], loss[SEGLOSS_BLOCK];
    ALIGNED REAL slope[SEGLOSS_BLOCK];
    ALIGNED int64_t is_one[SEGLOSS_BLOCK];
    for (int64_t k = begin; k < end; k += SEGLOSS_BLOCK) {
        const ITEM* item = items + k;
        const int count = smaller(end - k, SEGLOSS_BLOCK);
        for (int i = 0; i < count; ++i) {
            __builtin_prefetch(slopes + POSITION(item[i]), 1); /* makes it 2.5 times as fast */
            ones[i] = (double)ones_before;
            is_one[i] = (int64_t)IS_ONE(item[i]);
            error[i] = (double)FN(error_of_key)((UBITS)o->largest - (UBITS)RANK(item[i]));
            ones_before += is_one[i];
        }
        FN(find_slopes)((double)o->num_ones, (double)k, ones, is_one, error, count, slope, loss);
        for (int i = 0; i < count; ++i) {
            slopes[POSITION(item[i])] = slope[i];
            sums[i % SUM_LANES] += loss[i];
        }
    }
    return FN(total_of_lanes)(sums);
}

#undef ITEM
#undef IN
#undef MAKE_ITEM
#undef RANK
#undef IS_ONE
#undef POSITION
