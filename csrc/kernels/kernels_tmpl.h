/* All kernels of one instruction set. The including file defines
 *
 *   SEGLOSS_ISA_NAME, and SEGLOSS_KERNELS, the name of the table;
 *   SEGLOSS_VECTOR_BYTES, the size of its vectors;
 *
 * and, where there are instructions for it,
 *
 *   LARGER_F32 and LARGER_F64(x, y), which give x > y ? x : y in each lane;
 *   PERMUTE_F32 and PERMUTE_F64(x, from), which give x[from[k]] in lane k;
 *   SUM_F32 and SUM_F64(x), which add up all lanes in the order of sum_of_vector, and LARGEST_F32 and LARGEST_F64(x);
 *   STREAM(to, x), which writes past the caches to an aligned address, and FENCE(), which makes such writes visible.
 *
 * REAL is the type that the kernels compute in, REAL_DTYPE its dtype, BITS and UBITS the integers of its size, and
 * FN(name) makes a name unique for this REAL. */

#include <math.h>
#include <stdlib.h>

#include "block.h"
#include "kernels.h"
#include "labels.h"
#include "confusion.h"
#include "hull.h"
#include "nearest.h"
#include "one_hot.h"
#include "soft_skeleton.h"
#include "surface.h"
#include "components.h"
#include "skeleton.h"

#define REAL float
#define REAL_C(constant) constant##f
#define REAL_IS_DOUBLE 0
#define REAL_DTYPE SEGLOSS_FLOAT32
#define REAL_LOWEST (-0x1.fffffep+127f)
#define BITS int32_t
#define UBITS uint32_t
#ifdef LARGER_F32
#define LARGER LARGER_F32
#endif
#ifdef PERMUTE_F32
#define PERMUTE PERMUTE_F32
#endif
#ifdef SUM_F32
#define SUM SUM_F32
#define LARGEST LARGEST_F32
#endif
#define FN(name) name##_f32
#include "real_tmpl.h"

#define REAL double
#define REAL_C(constant) constant
#define REAL_IS_DOUBLE 1
#define REAL_DTYPE SEGLOSS_FLOAT64
#define REAL_LOWEST (-0x1.fffffffffffffp+1023)
#define BITS int64_t
#define UBITS uint64_t
#ifdef LARGER_F64
#define LARGER LARGER_F64
#endif
#ifdef PERMUTE_F64
#define PERMUTE PERMUTE_F64
#endif
#ifdef SUM_F64
#define SUM SUM_F64
#define LARGEST LARGEST_F64
#endif
#define FN(name) name##_f64
#include "real_tmpl.h"

const struct segloss_kernels SEGLOSS_KERNELS = {
    .isa = SEGLOSS_ISA_NAME,
    .cross_entropy_weight = {cross_entropy_weight_f32, cross_entropy_weight_f64},
    .cross_entropy_forward = {cross_entropy_forward_f32, cross_entropy_forward_f64},
    .cross_entropy_backward = {cross_entropy_backward_f32, cross_entropy_backward_f64},
    .binary_weight = {binary_weight_f32, binary_weight_f64},
    .binary_forward = {binary_forward_f32, binary_forward_f64},
    .binary_backward = {binary_backward_f32, binary_backward_f64},
    .soft_stats_forward = {soft_stats_forward_f32, soft_stats_forward_f64},
    .soft_stats_backward = {soft_stats_backward_f32, soft_stats_backward_f64},
    .confusion = {confusion_f32, confusion_f64},
    .predict = {predict_f32, predict_f64},
    .largest_label = largest_label,
    .compare_maps = compare_maps,
    .topk_count = {topk_count_f32, topk_count_f64},
    .topk_ties = {topk_ties_f32, topk_ties_f64},
    .topk_backward = {topk_backward_f32, topk_backward_f64},
    .distance_marks = {distance_marks_f32, distance_marks_f64},
    .distance_boundary = {distance_boundary_f32, distance_boundary_f64},
    .distance_lines = {distance_lines_f32, distance_lines_f64},
    .lovasz_forward = {lovasz_forward_f32, lovasz_forward_f64},
    .lovasz_backward = {lovasz_backward_f32, lovasz_backward_f64},
    .lovasz_extent = {lovasz_extent_f32, lovasz_extent_f64},
    .lovasz_count = {lovasz_count_f32, lovasz_count_f64},
    .lovasz_move = {lovasz_move_f32, lovasz_move_f64},
    .lovasz_ones = {lovasz_ones_f32, lovasz_ones_f64},
    .lovasz_slopes = {lovasz_slopes_f32, lovasz_slopes_f64},
    .nearest_columns = nearest_columns,
    .nearest_lines = nearest_lines,
    .one_hot = one_hot_labels,
    .resize_plan = {resize_plan_f32, resize_plan_f64},
    .resize_row = {resize_row_f32, resize_row_f64},
    .resize_row_grad = {resize_row_grad_f32, resize_row_grad_f64},
    .probabilities = {probabilities_f32, probabilities_f64},
    .probabilities_backward = {probabilities_backward_f32, probabilities_backward_f64},
    .soft_skeleton_workspace = soft_skeleton_workspace,
    .soft_skeleton = {soft_skeleton_f32, soft_skeleton_f64},
    .soft_skeleton_of_mask = soft_skeleton_of_mask,
    .soft_skeleton_backward = {soft_skeleton_backward_f32, soft_skeleton_backward_f64},
    .surface_boxes = surface_boxes,
    .surface_mask = surface_mask,
    .surface_boundary = surface_boundary,
    .surface_elements = surface_elements,
    .components_runs = components_runs,
    .components_start = components_start,
    .components_unite = components_unite,
    .components_number = components_number,
    .components_write = components_write,
    .places_add = places_add,
    .places_search = places_search,
    .class_map = class_map,
    .skeleton_mask = skeleton_mask,
    .skeleton_thin = skeleton_thin,
    .skeleton_widen = skeleton_widen,
    .skeleton_write = skeleton_write,
};
