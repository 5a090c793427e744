/* Defines LABEL_NAME, which maps labels of type FROM, with any stride, to a class, IGNORED or BAD, and returns whether
 * any is BAD. CONVERT converts a label to WIDE (default: a C cast; then WIDE must hold every value of FROM). The
 * narrower WIDE is, the more labels fit into a vector. */
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

#undef LABEL_NAME
#undef FROM
#undef WIDE
#undef CONVERT
#undef CAN_BE_NO_LABEL
