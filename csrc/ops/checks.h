// The checks of the operators' arguments, with their error messages.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace segloss {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Regions are labels whose table gives each class a set of channels: the masks of the channels. Sets are labels that
// stand for any class of a set.
enum class Target { labels, one_hot, probabilities, masks, regions, sets };

// What labels mean: their classes are in a table (label_table.h). Without one a label is the class itself, or ignored
// if it is ignore_index.
struct Labels {
    int64_t ignore_index;
    OptionalTensor table = std::nullopt;
};

// The class dimension, counted from the front; 0 for a 1-D input [C], which is one voxel, whatever dim says.
int64_t class_dim(const std::string& op, const Tensor& input, int64_t dim);

// TypeError unless the tensor is dense, with strides: not sparse, nested or undefined.
void check_dense(const std::string& op, const Tensor& tensor, const char* name);

// TypeError unless input holds floating logits.
void check_logits(const std::string& op, const Tensor& input);

// TypeError unless target can hold labels: dense, and of a dtype that the kernels read.
void check_label_tensor(const std::string& op, const Tensor& target);

// TypeError unless a loss can have this dtype. It must not be narrower than input's, which the gradient has: the
// kernels' buffers are too small for a gradient wider than the loss.
void check_loss_dtype(const std::string& op, const Tensor& input, at::ScalarType dtype);

// What target means, by its dtype and shape (docs/targets.md); raises if it has no meaning. `dim` is the result of
// class_dim. An integer target of input's shape is one-hot, or, if `takes_masks`, a mask for each class. If
// `takes_masks` and input has one class, a target of the labels' shape is the mask of that class, too.
Target classify_target(const std::string& op, const Tensor& input, const Tensor& target, int64_t dim,
                       bool takes_masks = false);

// RuntimeError for an ignore_index that this kind of target cannot have: 0 or 1 in masks, 0 or more in probabilities.
void check_ignore_index(const std::string& op, Target kind, int64_t ignore_index);

void check_same_device(const std::string& op, const Tensor& input, const Tensor& other, const char* name);

// Class weights: floating, [C], on input's device.
void check_weight(const std::string& op, const Tensor& input, const OptionalTensor& weight, int64_t dim, Target target);

// Voxel weights: the labels' shape, without gradient.
void check_voxel_weight(const std::string& op, const Tensor& input, const OptionalTensor& voxel_weight, int64_t dim);

void check_label_smoothing(const std::string& op, double label_smoothing);

// The exponent of a focal loss.
void check_gamma(const std::string& op, double gamma);

// RuntimeError for class probabilities, for losses that take labels only.
void check_labels_only(const std::string& op, const Tensor& input, int64_t dim, Target kind);

// ValueError for a softmax over one channel, which is 1 whatever the logits are.
void check_softmax(const std::string& op, const Tensor& input, int64_t dim);

// True if `labels` has the shape of labels for input: input's without `dim`, or with size 1 there.
bool has_label_shape(const Tensor& input, const Tensor& labels, int64_t dim);

// The flat position of the first true element of a mask.
int64_t first_true(const Tensor& mask);

// For messages: the value of the first element that `found` marks, and its index in the tensor called `name`.
std::string first_value(const Tensor& values, const Tensor& found);
std::string first_place(const char* name, const Tensor& found);

std::vector<int64_t> index_of(int64_t flat, at::IntArrayRef sizes);

// For messages: the label or number at a flat position.
std::string label_text(const Tensor& labels, int64_t flat);

// Integer or bool.
bool is_integer(const Tensor& tensor);

// Floating, of a dtype that the kernels read: not one of the 8-bit dtypes.
bool is_real(at::ScalarType dtype);

// True where a label is outside [0, num_classes).
Tensor is_outside(const Tensor& labels, int64_t num_classes);

// Raises if a floating label is not integral.
void check_integral_labels(const std::string& op, const Tensor& labels);

// Whether a target of this dtype may hold an ignored label. Its values are not read: the host would wait for the
// device.
bool may_ignore(at::ScalarType dtype, const Labels& labels);

// True where a label is ignored.
Tensor is_ignored(const Tensor& target, const Labels& labels);

// Raises if a label is neither ignored nor of a class in [0, num_classes), or floating and not integral. Reads all
// values: for tensors whose kernel found a bad label, or that no kernel reads.
void check_label_values(const std::string& op, const Tensor& target, int64_t num_classes, const Labels& labels);

// Likewise for masks: raises at the first value that is not 0, 1 or ignore_index, also where masks are floating.
void check_mask_values(const std::string& op, const Tensor& masks, int64_t ignore_index);

// Likewise for one-hot targets: raises at the first voxel that is not exactly one-hot along `dim`. The error ends with
// `advice`, which comes from the caller.
void check_one_hot_values(const std::string& op, const Tensor& target, int64_t dim, c10::string_view advice = "");

} // namespace segloss
