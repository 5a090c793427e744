/* What is compiled for each REAL. */
#include "vector_tmpl.h"
#include "math_tmpl.h"
#include "classes_tmpl.h"
#include "voxels_tmpl.h"
#include "softmax_tmpl.h"
#include "interleaved_tmpl.h"
#include "sparse_grad_tmpl.h"
#include "sets_tmpl.h"
#include "cross_entropy_tmpl.h"
#include "binary_tmpl.h"
#include "soft_stats_tmpl.h"
#include "sigmoid_stats_tmpl.h"
#include "confusion_tmpl.h"
#include "topk_tmpl.h"
#include "lovasz_tmpl.h"
#include "resize_tmpl.h"
#include "distance_tmpl.h"
#include "probabilities_tmpl.h"

#define ELEMENT REAL
#define SKELETON FN
#include "soft_skeleton_tmpl.h"
#include "soft_skeleton_grad_tmpl.h"

#undef MARK_INSIDE
#undef MARK_OUTSIDE
#undef MARK_IGNORED
#undef CHUNK
#undef CLASS_CHUNK
#undef ROWS
#undef LABEL_GRAD
#undef SET_SUMS
#undef SIGMOID
#undef BINARY_TERM
#undef BINARY_CLASS
#undef PACKED
#undef COLUMNS
#undef VOXELS
#undef VEC
#undef MASK
#undef UMASK
#undef WIDTH
#undef LARGER
#undef PERMUTE
#undef SUM
#undef LARGEST
#undef REAL
#undef REAL_C
#undef REAL_IS_DOUBLE
#undef REAL_DTYPE
#undef REAL_LOWEST
#undef BITS
#undef UBITS
#undef FN
