/* LABEL_NAME: labels of type FROM, anywhere, to classes, IGNORED or BAD. CONVERT gives a label as WIDE, which holds
 * every FROM (default: C's own conversion); the narrower WIDE is, the more labels a vector compares. */
#ifdef CONVERT
#define CAN_BE_NO_LABEL 1
#else
#define CAN_BE_NO_LABEL 0
#define CONVERT(x) ((WIDE)(x))
#endif

static void LABEL_NAME(int32_t* restrict label, const struct plane* from, int count, int64_t num_classes,
                       int64_t ignore_index) {
    const FROM* f = from->data;
    const WIDE classes = (WIDE)num_classes;
    const WIDE ignored = (WIDE)ignore_index;
    const int occurs = (int64_t)ignored == ignore_index && !(CAN_BE_NO_LABEL && ignore_index == NO_LABEL);
    WIDE value[SEGLOSS_BLOCK];
    if (from->stride_voxel == 1) { /* known strides vectorise */
        for (int i = 0; i < count; ++i) {
            value[i] = CONVERT(f[i]);
        }
    } else {
        for (int i = 0; i < count; ++i) {
            value[i] = CONVERT(f[i * from->stride_voxel]);
        }
    }
    for (int i = 0; i < count; ++i) {
        const int in_range = (value[i] >= 0) & (value[i] < classes);
        const int is_ignored = (value[i] == ignored) & occurs;
        const int32_t class = in_range ? (int32_t)value[i] : BAD;
        label[i] = is_ignored ? IGNORED : class;
    }
}

#undef LABEL_NAME
#undef FROM
#undef WIDE
#undef CONVERT
#undef CAN_BE_NO_LABEL
