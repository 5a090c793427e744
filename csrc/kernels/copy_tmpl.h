/* COPY_NAME: classes x voxels of type FROM, anywhere, to type TO, anywhere, each element through CONVERT (default: C's
 * own conversion). */
#ifndef CONVERT
#define CONVERT(x) ((TO)(x))
#endif

static void COPY_NAME(const struct plane* to, const struct plane* from, int64_t num_classes, int count) {
    for (int64_t c = 0; c < num_classes; ++c) {
        TO* t = (TO*)to->data + c * to->stride_class;
        const FROM* f = (const FROM*)from->data + c * from->stride_class;
        if (to->stride_voxel == 1 && from->stride_voxel == 1) { /* known strides vectorise */
            for (int i = 0; i < count; ++i) {
                t[i] = CONVERT(f[i]);
            }
        } else {
            for (int i = 0; i < count; ++i) {
                t[i * to->stride_voxel] = CONVERT(f[i * from->stride_voxel]);
            }
        }
    }
}

#undef COPY_NAME
#undef FROM
#undef CONVERT
