/* Defines LABEL_NAME, which maps labels of type FROM, with any stride, to a class, IGNORED or BAD, and returns whether
 * any is BAD. CONVERT converts a label to WIDE (default: a C cast; then WIDE must hold every value of FROM). The
 * narrower WIDE is, the more labels fit into a vector.
 *
 * Also defines keys_LABEL_NAME, which reads label - base, or UINT16_MAX for all others, of labels that are in int64.
 * `base` must lie between INT16_MIN and INT32_MAX - UINT16_MAX. */
#ifdef CONVERT
#define CAN_BE_NO_LABEL 1
#else
#define CAN_BE_NO_LABEL 0
#define CONVERT(x) ((WIDE)(x))
#endif

static inline int32_t JOIN(one_, LABEL_NAME)(WIDE value, WIDE classes, WIDE ignored, int occurs) {
    const int in_range = (value >= 0) & (value < classes);
    const int is_ignored = (value == ignored) & occurs;
    const int32_t class = in_range ? (int32_t)value : BAD;
    return is_ignored ? IGNORED : class;
}

static int LABEL_NAME(int32_t* restrict label, const struct plane* from, int count, int64_t num_classes,
                      int64_t ignore_index) {
    const FROM* restrict f = from->data;
    const WIDE classes = (WIDE)num_classes;
    const WIDE ignored = (WIDE)ignore_index;
    const int occurs = (int64_t)ignored == ignore_index && !(CAN_BE_NO_LABEL && ignore_index == NO_LABEL);
    int32_t lowest = IGNORED;
    if (from->stride_voxel == 1) { /* a loop with a known stride vectorises */
        for (int i = 0; i < count; ++i) {
            label[i] = JOIN(one_, LABEL_NAME)(CONVERT(f[i]), classes, ignored, occurs);
            lowest = label[i] < lowest ? label[i] : lowest;
        }
    } else {
        for (int i = 0; i < count; ++i) {
            label[i] = JOIN(one_, LABEL_NAME)(CONVERT(f[i * from->stride_voxel]), classes, ignored, occurs);
            lowest = label[i] < lowest ? label[i] : lowest;
        }
    }
    return lowest == BAD;
}

#if !CAN_BE_NO_LABEL
static void JOIN(keys_, LABEL_NAME)(uint16_t* restrict key, const struct plane* from, int count, int64_t base) {
    typedef __typeof__(_Generic((WIDE)0, int32_t: (uint32_t)0, int64_t: (uint64_t)0)) unsigned_wide;
    const FROM* restrict f = from->data;
    if (from->stride_voxel == 1) {
        for (int i = 0; i < count; ++i) {
            const unsigned_wide distance = (unsigned_wide)f[i] - (unsigned_wide)base;
            key[i] = distance < UINT16_MAX ? (uint16_t)distance : UINT16_MAX;
        }
    } else {
        for (int i = 0; i < count; ++i) {
            const unsigned_wide distance = (unsigned_wide)f[i * from->stride_voxel] - (unsigned_wide)base;
            key[i] = distance < UINT16_MAX ? (uint16_t)distance : UINT16_MAX;
        }
    }
}
#endif

#undef LABEL_NAME
#undef FROM
#undef WIDE
#undef CONVERT
#undef CAN_BE_NO_LABEL
