/* What is compiled for each REAL. */
#include "math_tmpl.h"
#include "classes_tmpl.h"
#include "voxels_tmpl.h"
#include "softmax_tmpl.h"
#include "cross_entropy_tmpl.h"
#include "binary_tmpl.h"
#include "soft_stats_tmpl.h"
#include "confusion_tmpl.h"

#undef CHUNK
#undef CLASS_CHUNK
#undef ROWS
#undef LABEL_GRAD
#undef VOXELS
#undef REAL
#undef REAL_C
#undef REAL_IS_DOUBLE
#undef REAL_DTYPE
#undef REAL_LOWEST
#undef BITS
#undef UBITS
#undef FN
