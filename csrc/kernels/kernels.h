/* The C side of segloss: numbers only. No torch, no threads, no allocation, no globals.
 *
 * A voxel has a position p in [0, P), counted over all dimensions except the classes, the last dimension fastest. A
 * kernel walks a half-open range [begin, end) of positions in blocks of SEGLOSS_BLOCK; `begin` is a multiple of
 * SEGLOSS_BLOCK. The results at a position do not depend on the range: any split of [0, P) at multiples of
 * SEGLOSS_BLOCK gives the same bits. Sums over a range do depend on the split, so the caller derives it from the shape.
 */
#ifndef SEGLOSS_KERNELS_H
#define SEGLOSS_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SEGLOSS_BLOCK = 128 };

enum segloss_dtype {
    SEGLOSS_FLOAT32,
    SEGLOSS_FLOAT64,
    SEGLOSS_FLOAT16,
    SEGLOSS_BFLOAT16,
    SEGLOSS_UINT8, /* bool too */
    SEGLOSS_INT8,
    SEGLOSS_UINT16,
    SEGLOSS_INT16,
    SEGLOSS_UINT32,
    SEGLOSS_INT32,
    SEGLOSS_UINT64,
    SEGLOSS_INT64,
};

/* Bytes per element. */
static inline int64_t segloss_dtype_size(enum segloss_dtype dtype) {
    switch (dtype) {
    case SEGLOSS_UINT8:
    case SEGLOSS_INT8:
        return 1;
    case SEGLOSS_FLOAT16:
    case SEGLOSS_BFLOAT16:
    case SEGLOSS_UINT16:
    case SEGLOSS_INT16:
        return 2;
    case SEGLOSS_FLOAT32:
    case SEGLOSS_UINT32:
    case SEGLOSS_INT32:
        return 4;
    default:
        return 8;
    }
}

/* What a target holds: labels have one value per voxel; probabilities, and masks of 0 and 1, have one per class. Sets
 * are labels that stand for any class of a set, which the label table has. */
enum segloss_target { SEGLOSS_LABELS, SEGLOSS_PROBABILITIES, SEGLOSS_MASKS, SEGLOSS_SETS };

/* How the input x gives p: softmax over the classes, sigmoid, or p = x. */
enum segloss_activation { SEGLOSS_SOFTMAX, SEGLOSS_SIGMOID, SEGLOSS_IDENTITY };

/* The type that a kernel computes in, REAL. */
enum segloss_real { SEGLOSS_REAL_FLOAT, SEGLOSS_REAL_DOUBLE, SEGLOSS_REALS };

enum { SEGLOSS_MAX_DIMS = 16 };

/* The dimensions of the positions. Adjacent ones are merged where every tensor's strides allow it. */
struct segloss_positions {
    int num_dims; /* >= 1 */
    int64_t sizes[SEGLOSS_MAX_DIMS];
};

/* A tensor in memory, strides in elements. data is NULL where an optional tensor is absent or a tensor is empty. */
struct segloss_tensor {
    void* data;
    enum segloss_dtype dtype;
    int64_t stride_class; /* unused if the tensor has no classes */
    int64_t strides[SEGLOSS_MAX_DIMS];
};

/* What the labels of a data set mean. A row of int64 numbers maps them to classes: this header, an entry for each of
 * `length` labels, and, if the row is sorted, these labels in ascending order; otherwise entry k is that of label
 * first + k. With `words` > 0 each class then has a set, so many numbers whose bits say what it contains, and after all
 * sets each class has another one, its group. */
enum segloss_label_row {
    SEGLOSS_ROW_FIRST,  /* at most the smallest label */
    SEGLOSS_ROW_LENGTH, /* >= 1 */
    SEGLOSS_ROW_IS_SORTED,
    SEGLOSS_ROW_OTHER,      /* the entry of all other labels */
    SEGLOSS_ROW_MAY_IGNORE, /* whether some entry is SEGLOSS_IGNORED */
    SEGLOSS_ROW_CLASSES,    /* 1 + the largest class; 0 if labels may be classes themselves */
    SEGLOSS_ROW_WORDS,      /* 0: there are no sets; every row of a table has as many */
    SEGLOSS_ROW_HEADER
};

/* What an entry is besides a class. */
enum { SEGLOSS_IGNORED = -1, SEGLOSS_BAD = -2, SEGLOSS_SAME = -3 /* the class is the label itself */ };

/* The row of position p is number p / row_positions. */
struct segloss_label_table {
    const int64_t* rows; /* NULL: labels are classes, or ignore_index */
    int64_t row_size;
    int64_t row_positions; /* 0: one row for all */
};

/* The range that values, rounded to REAL, must lie in; not checked if low == high. */
struct segloss_range {
    double low;
    double high;
};

/* Losses summed over a range of positions. */
struct segloss_sums {
    double loss;
    double weight; /* the mean's denominator */
};

/* Cross entropy of logits x with softmax p = exp(x) / sum_k exp(x_k), for one voxel of weight v:
 *
 *   labels y:         l = v * ((1 - s) w_y * -log p_y + s / C * sum_c w_c * -log p_c)
 *   probabilities t:  l = v * sum_c w_c ((1 - s) t_c + s / C) * -log p_c
 *
 * with s = label_smoothing; focal, for labels and s = 0:
 *
 *   l = v * w_y * (1 - p_y)^gamma * -log p_y
 *
 * For sets, the sum of p_c over the classes c of y's set takes the place of p_y; with class weights, y < C.
 *
 * A product with a zero class weight or a zero target is 0, whatever the logit. A voxel does not count if its label or
 * any of its masks is ignore_index, or if v = 0: it is treated as absent, and its logits have no effect. */
struct segloss_cross_entropy {
    struct segloss_positions positions;
    int64_t num_classes; /* at most INT32_MAX */
    struct segloss_tensor logits;
    struct segloss_range logit_range; /* nan passes the check */
    struct segloss_tensor target;
    enum segloss_target target_kind;    /* no masks with a softmax */
    struct segloss_range target_range;  /* of probabilities; nan is outside */
    struct segloss_tensor voxel_weight; /* optional, of any dtype */
    const void* class_weight;           /* REAL [C], optional */
    const void* weight_of_ones;         /* REAL [C], optional, of binary losses: u_c below */
    int64_t ignore_index;               /* of labels and masks */
    struct segloss_label_table labels;  /* optional, of labels; then ignore_index is not used. With sets, the target
                                         * holds labels, and masks are whether c is in the set of the label's class */
    double label_smoothing;             /* 0 with log_probabilities */
    double gamma;                       /* focal; >= 0. With a softmax, 0 for probabilities */
    int log_probabilities;              /* logits are log p already: no softmax */

    struct segloss_tensor loss; /* forward writes one per voxel, binary_forward one per class, if given */

    struct segloss_tensor grad_loss;   /* all strides are 0 for a reduced loss */
    double grad_scale;                 /* multiplies grad_loss: 1 / denominator for a mean */
    struct segloss_tensor grad_logits; /* grad_loss * grad_scale * dl/dx; forward writes it if given */
    int stream_grad;                   /* grad_logits is larger than the caches: write past them */
};

/* Binary cross entropy of logits x for each class separately, with p = 1 / (1 + exp(-x)) and the target g (1 at the
 * label's class, else 0; or the class's probability or mask), smoothed to h = (1 - s) g + s / 2:
 *
 *   l_c = v * (u_c h_c (1 - p_c)^gamma * -log p_c + w_c (1 - h_c) p_c^gamma * -log(1 - p_c))
 *
 * with u_c = w_c unless weight_of_ones is given. The mean's denominator is C times the sum of v. The arguments are
 * those of cross entropy; log_probabilities must be 0, and forward writes either losses or a gradient. */

/* The sums over voxels, for each class, from which every region loss is computed: v p g, v p and v g for the
 * probability p and the target g (1 at the label's class, else 0). `squared` takes p^2 and g^2 in the last two;
 * `soft_label` takes v min(p, g) instead of v p g, which is the same where g is 0 or 1.
 *
 * For sets, g is 1 at the classes of the label's group, and the activation is no sigmoid.
 *
 * `with_loss` also sums the losses of the voxels in the same walk: cross entropy if p is a softmax, binary cross
 * entropy over all classes if it is a sigmoid. */
struct segloss_soft_stats {
    struct segloss_cross_entropy voxels; /* loss is unused, log_probabilities must be 0 */
    enum segloss_activation activation;
    int squared;
    int soft_label; /* only with SEGLOSS_PROBABILITIES and without `squared` */
    int with_loss;  /* not with SEGLOSS_IDENTITY */

    /* 0: all positions belong to one sample. Otherwise each sample has so many positions, and sums, statistics and the
     * gradients below have a leading dimension of samples. `begin` is then a multiple of sample_size * SEGLOSS_BLOCK.
     */
    int64_t sample_size;

    /* Optional, of any integer dtype, in [0, num_keys): each key has its own sums. These, the statistics and the
     * gradients below then have a leading dimension of keys, and the sums of weights are those of v, also without
     * losses. Not with sample_size, nor class weights. */
    struct segloss_tensor keys;
    int64_t num_keys; /* at most INT32_MAX */

    /* For backward, REAL [C]: the gradients with respect to the sums of v p g and of v p. voxels.grad_loss is that with
     * respect to the losses; with keys it is 1, and grad_loss, REAL [num_keys], has those of their sums. */
    const void* grad_intersection;
    const void* grad_prediction;
    const void* grad_loss;
};

/* The sums of each class, in double: forward overwrites the C numbers that stats[k] points to, or, of more than one
 * sample, those of the samples in its range, or of all keys. */
enum segloss_statistic { SEGLOSS_INTERSECTION, SEGLOSS_PREDICTION, SEGLOSS_TARGET, SEGLOSS_STATISTICS };

/* Predicted classes against labels. The prediction is the class of the largest logit (the first one of equal logits;
 * nan counts as largest), or the value of an integer map. Voxels with the label ignore_index are not counted, whatever
 * their prediction. Counts are int64 and are added to what `counts` holds:
 *
 *   pairs:      [C][C], first the label, then the prediction
 *   per class:  [3][C], true positives, false positives, false negatives
 *
 * followed by one more cell, whose value is meaningless. */
struct segloss_confusion {
    struct segloss_positions positions;
    int64_t num_classes;              /* at most INT32_MAX */
    struct segloss_tensor prediction; /* logits, or an integer map if prediction_is_labels */
    struct segloss_tensor target;
    int64_t ignore_index;
    struct segloss_label_table labels; /* optional, of the target; then ignore_index is not used */
    int prediction_is_labels;
    int per_class;
};

/* The prediction of each voxel: its class, as in segloss_confusion; or, with a threshold, for each class whether the
 * logit, not nan, is larger. */
struct segloss_predict {
    struct segloss_positions positions;
    int64_t num_classes; /* at most INT32_MAX */
    struct segloss_tensor logits;
    struct segloss_tensor prediction; /* of any integer dtype; uint8 with a threshold */
    int has_threshold;
    double threshold; /* rounded to REAL */
};

/* The largest losses of the voxels that count, for the top-k loss. A voxel does not count if its label is ignore_index,
 * or if its weight, rounded to REAL, is 0. Losses are ordered by their keys, unsigned integers of REAL's size:
 *
 *   key = ~bits of a negative loss, bits with the sign bit set of another one, all ones for nan
 *
 * The key of the smallest loss to keep is found digit by digit, from the highest one. Of the losses with this very key
 * the first ones are kept, up to the position last_tie. */
struct segloss_topk {
    struct segloss_positions positions;
    struct segloss_tensor losses;       /* REAL */
    struct segloss_tensor target;       /* labels; absent: none is ignore_index */
    struct segloss_tensor voxel_weight; /* optional, of any dtype */
    int64_t ignore_index;
    struct segloss_label_table labels; /* optional; then ignore_index is not used */

    uint64_t key;
    uint64_t known; /* ones where the bits of `key` are known; elsewhere these are 0. Only topk_count reads it */
    int shift;      /* of the digit that topk_count counts */

    int64_t last_tie; /* -1: none */
    double grad_sum;
    struct segloss_tensor grad_losses; /* grad_sum where the loss is kept, else 0 */
};

/* The number of values of a digit; each has several counters, whose sum is its count. */
enum { SEGLOSS_TOPK_DIGITS = 1 << 11, SEGLOSS_TOPK_COUNTERS = 4 };

/* The Lovasz extension of the Jaccard loss, of each class by itself. Let e be the errors of the voxels that count, for
 * the target g (1 at the label's class or where the mask is 1, else 0), from the largest to the smallest, equal ones in
 * the order of their positions:
 *
 *   hinge of logits x:    e = max(0, 1 - x (2 g - 1))
 *   of probabilities p:   e = |g - p|
 *
 * With G voxels of g = 1, of which A come before a voxel, as do B others, the loss is the sum of e s with
 *
 *   s = 1 / (G + B) where g = 1,    s = (G - A) / ((G + B) (G + B + 1)) elsewhere, or 1 where G + B = 0
 *
 * The derivative of the loss by p, or by the x of a hinge, is -s where g = 1 and s elsewhere: the voxel's slope; it is
 * 0 where e = 0. */
struct segloss_lovasz {
    struct segloss_cross_entropy voxels; /* labels, or with a hinge masks. For backward, grad_loss has classes */
    enum segloss_activation activation;  /* no sigmoid; the identity with a hinge */
    int hinge;
    struct segloss_tensor slopes; /* REAL, one for each class; forward writes e there, negative, or -0, where g = 1,
                                   * past the caches if voxels.stream_grad is set */
};

/* The voxels of one class that share an order. An error has a key, its bits as an unsigned integer; nan has the largest
 * one. Voxels whose key is in [smallest, largest], smallest >= 1, are sorted as items: the slopes of all others are 0.
 * An item is a struct segloss_lovasz_item; or one integer of 64 bits, the lower half for the first member and the upper
 * half for the second, if REAL is float and there are no more than 2^32 voxels. */
struct segloss_lovasz_order {
    void* slopes; /* REAL, contiguous */
    int is_wide;  /* how items are stored */
    uint64_t smallest, largest;
    int64_t num_ones; /* G */
    int shift, bits;  /* of the digit that is counted, or sorted by: of largest - key */
};

struct segloss_lovasz_item {
    uint64_t rank; /* largest - key; the highest bit is set where g = 1 */
    uint64_t position;
};

struct segloss_lovasz_extent {
    int64_t num_ones;
    uint64_t largest;      /* key */
    uint64_t least_of_one; /* the smallest key where g = 1; UINT64_MAX if there is none */
};

/* Voxels [low, high) along planes, rows and columns. */
struct segloss_box {
    int64_t low[3];
    int64_t high[3];
};

/* The surface of the mask of a class in a box of a map of classes. What is beyond the box is outside the mask, and not
 * ignored. Its elements are
 *
 *   voxels:  those of the mask with a face neighbour that is neither in the mask nor ignored;
 *   surfels: neighbourhoods of 2x2x2 voxels, or 2x2 in a flat image, that are neither all in the mask nor all outside,
 *            and have no ignored voxel. Element i along an axis has the voxels i - 1 and i.
 *
 * A surfel's code has a bit for each of its voxels, 1 in the mask; the first voxel has the highest bit. */
struct segloss_surface {
    const uint8_t* classes; /* of the box's first voxel; columns are contiguous */
    uint8_t label;          /* of the class */
    const uint8_t* target;  /* likewise, if some voxels are ignored: those with ignored_label, whatever their class */
    uint8_t ignored_label;
    int64_t sizes[3]; /* of the box: planes, rows, columns */
    int64_t stride_plane;
    int64_t stride_row;
    int is_flat; /* one plane, and no neighbours in others */
    int surfels;
    int64_t element_sizes[3]; /* of the box, one more for surfels but for a flat image's planes */
    int64_t words;            /* columns / 64 + 2, of each row of bits, of which the last one stays 0 */
    uint64_t* mask;           /* [planes][rows][words] */
    uint64_t* ignored;        /* likewise; NULL: no voxel is ignored */
    uint64_t* boundary;       /* likewise, of the elements, after one word of 0 */
};

/* A set of places in a grid: as rows of bits, and as a tree. A brick of the tree is the bits of its 4x4x4 children:
 * places on level 0, bricks of the level below on others. The last level is one brick. */
enum { SEGLOSS_BRICK_LEVELS = 16 };

/* A row of the grid, by its distance in planes and rows: the number of words to it, and the square of the distance. */
struct segloss_near_row {
    int32_t plane;
    int32_t row;
    int64_t offset;
    double squared;
};

enum { SEGLOSS_NEAR_COLUMNS = 32 };

struct segloss_places {
    double spacing[3];
    int64_t sizes[3];
    int64_t words;        /* of a row of bits, as in segloss_surface */
    const uint64_t* bits; /* `boundary` */
    int levels;
    uint64_t* bricks[SEGLOSS_BRICK_LEVELS];
    int64_t brick_sizes[SEGLOSS_BRICK_LEVELS][3];
    int num_rows;                                    /* >= 1 */
    const struct segloss_near_row* rows;             /* the nearest ones, from near to far */
    double column_squares[SEGLOSS_NEAR_COLUMNS + 1]; /* of the distances of columns */
};

/* Converts exact one-hot targets to int32 labels. */
struct segloss_one_hot {
    struct segloss_positions positions;
    int64_t num_classes;
    struct segloss_tensor target;
    int32_t* labels; /* [P] */
};

/* The axes of a volume. One that is not there has one index. */
enum segloss_axes { SEGLOSS_PLANES, SEGLOSS_ROWS, SEGLOSS_COLUMNS, SEGLOSS_AXES };

/* Logits at another size: they are interpolated along three axes, one after the other. Index i of an axis has the value
 *
 *   low_weight[i] * x[low[i]] + high_weight[i] * x[high[i]]
 *
 * with high[i] - low[i] = 1, or equal, so that a weight of 0 never meets an infinite x. The indices never fall, and no
 * weight is 0. */
struct segloss_axis {
    const int32_t* low;
    const int32_t* high;
    const void* low_weight; /* REAL */
    const void* high_weight;
    int64_t size; /* of the result */
    int64_t size_from;
};

struct segloss_resize {
    int64_t num_classes;
    struct segloss_axis axes[SEGLOSS_AXES];
    struct segloss_tensor from; /* the strides are those of the axes */
    struct segloss_tensor grad; /* REAL, columns contiguous; the gradient with respect to `from` is added to it */
    const void* plan;           /* of the columns, by resize_plan */
    void* workspace;            /* of segloss_resize_workspace REAL */
};

/* So many classes are resized at once. */
enum { SEGLOSS_RESIZED_CLASSES = 16 };

/* REAL that the workspace of one thread holds: the four rows that a row can come from, and their sum. */
static inline int64_t segloss_resize_workspace(const struct segloss_resize* args) {
    return 5 * SEGLOSS_RESIZED_CLASSES * (args->axes[SEGLOSS_COLUMNS].size_from + 32);
}

/* The probabilities of logits, both REAL [outer][num_classes][inner]: 0, with gradient 0, at positions that do not
 * count, whatever the logits are there. A position is an outer and an inner index. */
struct segloss_probabilities {
    int64_t num_classes;
    int64_t inner;
    enum segloss_activation activation; /* not the identity */
    const uint8_t* counts;              /* [outer][inner]; NULL: all do */
};

/* The soft skeleton of an image x[planes][rows][columns] of numbers in [0, 1], or of 0 and 1, with x_0 = x, s_-1 = 0
 * and for each level k in [0, iterations]:
 *
 *   x_(k+1) = the least of each element of x_k and of its neighbours along the axes
 *   d_k     = max(0, x_k - the largest of x_(k+1) among the 3 x 3 x 3 elements around)
 *   s_k     = s_(k-1) + max(0, d_k - s_(k-1) d_k)
 *
 * The skeleton is the last s_k. What lies beyond the border takes no part. Among equal elements a pool chooses the one
 * in the middle, else an erosion the first one in memory; the largest is looked for along columns, rows and planes, one
 * after the other, each of which prefers the middle, then the one before. A nan is chosen by itself alone. */
struct segloss_soft_skeleton {
    int64_t sizes[SEGLOSS_AXES]; /* all > 0; an image with one plane, or one row, is flat along that axis */
    int64_t iterations;
};

/* Maps of Euclidean distances, one for each class c of a label map: of the voxels of class c to the nearest other
 * voxel, and 0 elsewhere, where an ignored voxel is of no class; or, `of_boundary`, of every voxel to the nearest
 * boundary voxel, one of class c with a neighbour of another class, not an ignored one, along an axis, or with none, at
 * the end of the image. `is_signed`: negative where the class is c; then the others have a distance to the nearest
 * voxel of class c in place of 0. Without any voxel to measure to: inf. Maps are made in place, axis by axis, from the
 * last one:
 *
 *   distance_marks over all positions of the labels;
 *   if of_boundary, distance_boundary along all axes but the last one;
 *   distance_lines along all axes, from the last one to last_axis.
 *
 * The lines along an axis are those of all maps, counted in the order of their first elements. */
struct segloss_distance {
    struct segloss_positions positions; /* of the labels, over all samples */
    int64_t num_classes;                /* 0: one map, and class c is all classes but 0 */
    struct segloss_tensor labels;
    int64_t ignore_index;
    struct segloss_label_table label_table; /* optional; then ignore_index is not used */
    struct segloss_tensor maps;             /* REAL; contiguous */

    int64_t sizes[SEGLOSS_AXES];
    double spacing[SEGLOSS_AXES]; /* between neighbouring voxels, > 0 */
    int last_axis;                /* the first one that is there: SEGLOSS_PLANES in three dimensions */
    int of_boundary;
    int is_signed;
};

/* So many lines are measured at once. A search for the nearest voxel goes so many steps before it looks whether to go
 * on. */
enum { SEGLOSS_DISTANCE_LINES = 16, SEGLOSS_DISTANCE_STEPS = 4 };

/* The numbers of double that the workspace of one thread holds. */
static inline int64_t segloss_distance_workspace(const struct segloss_distance* args, int axis) {
    return (SEGLOSS_DISTANCE_LINES + 4) * args->sizes[axis] + SEGLOSS_DISTANCE_STEPS;
}

/* The connected components of the foreground of a sample: of the voxels whose class is not 0, or, `per_class`, of those
 * of each class but 0. Neighbours differ by 1 along at most `connectivity` axes, and by 0 along the others. A run is a
 * part of a row, as long as it can be, that is in one component in any case. Made in this order, over all rows of the
 * sample, where ranges that run at the same time need no order:
 *
 *   components_runs;
 *   components_start, with the number of the first run in these rows, and that of the first one after them;
 *   components_unite, of ranges with their own rows; then, one after the other, with all rows before;
 *   components_number, once, over all runs;
 *   components_write. */
struct segloss_components {
    struct segloss_positions positions; /* of the labels, over all samples */
    struct segloss_tensor labels;
    int64_t ignore_index;
    struct segloss_label_table label_table; /* optional; then ignore_index is not used */
    int64_t sizes[SEGLOSS_AXES];            /* of a sample, >= 1 */
    int connectivity;                       /* 1 to 3 */
    int per_class;
    int64_t sample;

    int32_t* components;  /* contiguous; until they are written, classes if per_class */
    int64_t words;        /* of a row: a bit for each column, and one word of 0 more */
    uint64_t* foreground; /* bits; a word of 0 lies before the first */
    uint64_t* starts;     /* bits: where runs start */
    int32_t* runs_before; /* of each word, the runs that start before it */
    int32_t* parents;     /* of each run, an earlier one of its component, or itself; then the component */
};

/* The number of the nearest component of each voxel, by Euclidean distance; of several, the smallest number. The map is
 * changed in place: nearest_columns over all rows, then nearest_lines along rows and planes, if there are any. The
 * lines along an axis are counted in the order of their first elements. */
struct segloss_nearest {
    int32_t* components; /* [planes][rows][columns]; 0: none here, all others > 0 */
    double* squares;     /* likewise; of the distances, in units of the columns' step. No result after last_axis */
    int last_axis;       /* the first one that is there */
    int64_t sizes[SEGLOSS_AXES];
    double spacing[SEGLOSS_AXES]; /* between neighbouring voxels, > 0 */
};

/* So many lines are read at once. */
enum { SEGLOSS_NEAREST_LINES = 16 };

/* The numbers of double that the workspace of one thread holds. */
static inline int64_t segloss_nearest_workspace(const struct segloss_nearest* args, int axis) {
    return (2 * SEGLOSS_NEAREST_LINES + 2) * args->sizes[axis];
}

/* What labels mean, voxel by voxel: their classes, and -1 where they are ignored; or whether the class is not 0. */
struct segloss_class_map {
    struct segloss_positions positions; /* P of them */
    struct segloss_tensor labels;
    int64_t ignore_index;
    struct segloss_label_table label_table; /* optional; then ignore_index is not used */
    int32_t* classes;                       /* [P]; optional, as is mask */
    uint8_t* mask;                          /* [P] of 0 and 1 */
};

/* The skeleton of a mask in a box: what is left after voxels of its border have gone, again and again, until no
 * more can. What is beyond the box is outside.
 *
 * By Zhang and Suen, along two axes: in two passes in turn all pixels go at once whose neighbours allow it. By Lee
 * et al.: of each direction in turn, the candidates are the voxels without a neighbour there, which are no ends of
 * lines, whose absence does not change the Euler characteristic, and whose neighbours hang together. They go one
 * after the other, in order, if their neighbours still do. */
struct segloss_skeleton {
    int64_t sizes[3];     /* of the box: planes, rows, columns */
    int64_t stride_plane; /* of the map, uint8, of which the box is a part; columns are contiguous */
    int64_t stride_row;
    int is_zhang;
    int is_flat;         /* the image has one plane: no directions along planes */
    int64_t words;       /* of a row of bits, with a bit before and one after the columns; by Zhang a multiple of 8 */
    uint64_t* mask;      /* [planes + 2][rows + 2][words], all 0 at first, and so are the others */
    uint64_t* settled;   /* likewise, by Lee: voxels that stay as long as their neighbours do */
    uint64_t* chosen;    /* likewise: voxels that may go */
    uint8_t* pending;    /* [planes + 2][rows + 2]: a bit of each pass or direction that has to look at the row */
    uint8_t* has_chosen; /* likewise */
};

/* All kernels of one instruction set. Each but those of top-k and of an order returns -1, or the position of the first
 * voxel that it refuses. A kernel refuses a label outside [0, C) that is not ignore_index, a floating-point label that
 * is not integral, a target that is not one-hot, and a mask that is not 0, 1 or ignore_index, where mask and
 * ignore_index are rounded to REAL. In a block without such a target, it refuses at voxels that count: a predicted
 * label outside [0, C) and, in forward only, a class probability or a logit outside its range. After a refusal, results
 * of earlier blocks are meaningless, and nothing is written from the refused voxel's block on. `sums`, `stats`,
 * `largest` and the counts of compare_maps are overwritten. */
struct segloss_kernels {
    const char* isa;
    /* Only the weight of the sums: the same value as forward gives, without reading the logits. */
    int64_t (*cross_entropy_weight[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                                                   struct segloss_sums* sums);
    int64_t (*cross_entropy_forward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin,
                                                    int64_t end, struct segloss_sums* sums);
    int64_t (*cross_entropy_backward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin,
                                                     int64_t end);
    int64_t (*binary_weight[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                                            struct segloss_sums* sums);
    int64_t (*binary_forward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin, int64_t end,
                                             struct segloss_sums* sums);
    int64_t (*binary_backward[SEGLOSS_REALS])(const struct segloss_cross_entropy* args, int64_t begin, int64_t end);
    int64_t (*soft_stats_forward[SEGLOSS_REALS])(const struct segloss_soft_stats* args, int64_t begin, int64_t end,
                                                 double* const* stats, struct segloss_sums* sums);
    int64_t (*soft_stats_backward[SEGLOSS_REALS])(const struct segloss_soft_stats* args, int64_t begin, int64_t end);
    int64_t (*confusion[SEGLOSS_REALS])(const struct segloss_confusion* args, int64_t begin, int64_t end,
                                        int64_t* counts);
    int64_t (*predict[SEGLOSS_REALS])(const struct segloss_predict* args, int64_t begin, int64_t end);
    /* The largest value in the maps of labels and of predictions, over the voxels that count; -1 if there is none. */
    int64_t (*largest_label)(const struct segloss_confusion* args, int64_t begin, int64_t end, int64_t* largest);
    /* Of two label maps: the number of voxels that count where they agree, and of all that count. Labels can have any
     * value; of floating labels, those that are not integral or beyond int64 are refused. */
    int64_t (*compare_maps)(const struct segloss_confusion* args, int64_t begin, int64_t end, int64_t* counts);
    /* Of the keys that begin with the known bits, adds the number of those with each digit to `counts`, int64
     * [SEGLOSS_TOPK_DIGITS][SEGLOSS_TOPK_COUNTERS]. Sets `sum`, if given, to the sum of all losses with larger keys. */
    void (*topk_count[SEGLOSS_REALS])(const struct segloss_topk* args, int64_t begin, int64_t end, int64_t* counts,
                                      double* sum);
    /* The number of losses with this key. Sets `position` to that of the n-th, counted from 0, if there are so many. */
    int64_t (*topk_ties[SEGLOSS_REALS])(const struct segloss_topk* args, int64_t begin, int64_t end, int64_t n,
                                        int64_t* position);
    void (*topk_backward[SEGLOSS_REALS])(const struct segloss_topk* args, int64_t begin, int64_t end);
    int64_t (*distance_marks[SEGLOSS_REALS])(const struct segloss_distance* args, int64_t begin, int64_t end);
    void (*distance_boundary[SEGLOSS_REALS])(const struct segloss_distance* args, int axis, int64_t begin, int64_t end);
    void (*distance_lines[SEGLOSS_REALS])(const struct segloss_distance* args, int axis, int64_t begin, int64_t end,
                                          double* workspace);
    /* Writes the errors. */
    int64_t (*lovasz_forward[SEGLOSS_REALS])(const struct segloss_lovasz* args, int64_t begin, int64_t end);
    int64_t (*lovasz_backward[SEGLOSS_REALS])(const struct segloss_lovasz* args, int64_t begin, int64_t end);
    /* Of the errors in a range. */
    void (*lovasz_extent[SEGLOSS_REALS])(const void* errors, int64_t begin, int64_t end,
                                         struct segloss_lovasz_extent* extent);
    /* Counts the items in a range with each digit; they are those of the errors if `items` is NULL. */
    void (*lovasz_count[SEGLOSS_REALS])(const struct segloss_lovasz_order* order, const void* items, int64_t begin,
                                        int64_t end, int64_t* counts);
    /* Moves these items to where `next` says for each digit, and counts it up. Sets the range of slopes to 0 if it made
     * the items from errors. */
    void (*lovasz_move[SEGLOSS_REALS])(const struct segloss_lovasz_order* order, const void* items, int64_t begin,
                                       int64_t end, void* to, int64_t* next);
    /* The number of sorted items with g = 1. */
    int64_t (*lovasz_ones[SEGLOSS_REALS])(const struct segloss_lovasz_order* order, const void* items, int64_t begin,
                                          int64_t end);
    /* Writes the slopes of sorted items, and returns their part of the loss; `ones_before` items before these have
     * g = 1. */
    double (*lovasz_slopes[SEGLOSS_REALS])(const struct segloss_lovasz_order* order, const void* items, int64_t begin,
                                           int64_t end, int64_t ones_before);
    void (*nearest_columns)(const struct segloss_nearest* args, int64_t begin, int64_t end);
    void (*nearest_lines)(const struct segloss_nearest* args, int axis, int64_t begin, int64_t end, double* workspace);
    int64_t (*one_hot)(const struct segloss_one_hot* args, int64_t begin, int64_t end);
    /* Writes what the next two need of the columns; returns its bytes. Without `plan` it only returns these. */
    int64_t (*resize_plan[SEGLOSS_REALS])(const struct segloss_axis* columns, void* plan);
    /* Writes the columns [begin, end) of a row to REAL [class][column], classes `stride` apart, and may write some
     * lanes more. `begin` is a multiple of SEGLOSS_BLOCK. */
    void (*resize_row[SEGLOSS_REALS])(const struct segloss_resize* args, int64_t plane, int64_t row, int64_t begin,
                                      int64_t end, void* to, int64_t stride);
    /* Adds the gradient of these columns to `grad`. */
    void (*resize_row_grad[SEGLOSS_REALS])(const struct segloss_resize* args, int64_t plane, int64_t row, int64_t begin,
                                           int64_t end, const void* from, int64_t stride);
    void (*probabilities[SEGLOSS_REALS])(const struct segloss_probabilities* args, const void* logits, void* p,
                                         int64_t begin, int64_t end);
    /* Writes the gradient by the logits from that by the probabilities. */
    void (*probabilities_backward[SEGLOSS_REALS])(const struct segloss_probabilities* args, const void* logits,
                                                  const void* grad_p, void* grad, int64_t begin, int64_t end);
    /* The elements, of their size, that the workspace of the next ones, or of the gradient, holds. */
    int64_t (*soft_skeleton_workspace)(const struct segloss_soft_skeleton* args, int of_gradient);
    /* Writes the planes [begin, end) of the skeleton of an image of REAL, or of bytes of 0 and 1. */
    void (*soft_skeleton[SEGLOSS_REALS])(const struct segloss_soft_skeleton* args, const void* image, void* skeleton,
                                         int64_t begin, int64_t end, void* workspace);
    void (*soft_skeleton_of_mask)(const struct segloss_soft_skeleton* args, const void* image, void* skeleton,
                                  int64_t begin, int64_t end, void* workspace);
    /* Writes these planes of the gradient by the image. */
    void (*soft_skeleton_backward[SEGLOSS_REALS])(const struct segloss_soft_skeleton* args, const void* image,
                                                  const void* grad_skeleton, void* grad_image, int64_t begin,
                                                  int64_t end, void* workspace);
    /* Widens the boxes of the 256 labels by a plane of a map, [rows][columns]; along rows and columns only. */
    void (*surface_boxes)(const uint8_t* plane, int64_t rows, int64_t columns, struct segloss_box* boxes);
    /* Writes a plane of `mask` and `ignored`, which the next two read; a plane of `boundary`, and returns the number of
     * its elements; and their places, with the codes of surfels. */
    void (*surface_mask)(const struct segloss_surface* args, int64_t plane);
    int64_t (*surface_boundary)(const struct segloss_surface* args, int64_t plane);
    void (*surface_elements)(const struct segloss_surface* args, int64_t plane, int32_t (*place)[3], uint8_t* code);
    /* Writes foreground, starts and runs_before of rows, the last one counted from `begin`, and the number of runs. */
    int64_t (*components_runs)(const struct segloss_components* args, int64_t begin, int64_t end, int64_t* num_runs);
    /* Counts runs_before from the first row on, and makes each run its own parent. */
    void (*components_start)(const struct segloss_components* args, int64_t begin, int64_t end, int32_t first_run,
                             int32_t end_run);
    /* Unites the runs of rows with those of neighbouring rows before them in [low, high). */
    void (*components_unite)(const struct segloss_components* args, int64_t begin, int64_t end, int64_t low,
                             int64_t high);
    /* Parents become components, 1 and up. Returns how many there are. */
    int32_t (*components_number)(int32_t* parents, int32_t num_runs);
    void (*components_write)(const struct segloss_components* args, int64_t begin, int64_t end);
    /* Adds places to the tree. */
    void (*places_add)(const struct segloss_places* set, const int32_t (*place)[3], int64_t count);
    /* The distances of the places [begin, end) to the nearest one of the set, which has at least one. */
    void (*places_search)(const struct segloss_places* set, const int32_t (*place)[3], int64_t begin, int64_t end,
                          double* distance);
    int64_t (*class_map)(const struct segloss_class_map* args, int64_t begin, int64_t end);
    /* Adds planes of a map, where it is not 0, to `mask`; thins it; writes the mask and all voxels beside it along an
     * axis to `settled`; and writes 0 to the map where `mask` has no voxel. `map` is the box's first voxel. */
    void (*skeleton_mask)(const struct segloss_skeleton* args, const uint8_t* map, int64_t begin, int64_t end);
    void (*skeleton_thin)(const struct segloss_skeleton* args);
    void (*skeleton_widen)(const struct segloss_skeleton* args);
    void (*skeleton_write)(const struct segloss_skeleton* args, uint8_t* map, int64_t begin, int64_t end);
};

/* Which ones are built: neon on 64-bit ARM; baseline, avx2 and avx512 on x86-64; baseline elsewhere. */
extern const struct segloss_kernels segloss_kernels_baseline;
extern const struct segloss_kernels segloss_kernels_avx2;
extern const struct segloss_kernels segloss_kernels_avx512;
extern const struct segloss_kernels segloss_kernels_neon;

#pragma GCC visibility push(default) /* everything else is internal to the library */

/* The k-th table that this processor can run, best first; NULL after the last one. */
const struct segloss_kernels* segloss_usable_kernels(int k);

/* The table for the instruction set `isa`, or the best one for this processor if `isa` is NULL or empty. NULL if there
 * is no such table or this processor cannot run it. "baseline" gives the table that every processor of the architecture
 * can run, also where that table has another name, such as neon. */
const struct segloss_kernels* segloss_select_kernels(const char* isa);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
