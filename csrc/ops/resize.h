// Logits of another size than the target: how they are resized, and their values in ATen operators.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "../kernels/kernels.h"

namespace segloss {

// How logits are resized: for each of their last axes but the class dimension, and whether the corners are aligned.
// Operators take it as one integer, 0 for logits that are not resized: the lowest bit says whether corners are aligned,
// the next two are the mode of the last axis, the next two that of the one before it, and so on.
class Resize {
public:
    enum Mode : int8_t { none, nearest, linear, nearest_exact };
    static constexpr int64_t kMostAxes = SEGLOSS_AXES;

    explicit Resize(int64_t code = 0) : code_(code) {}

    int64_t code() const { return code_; }
    bool aligns_corners() const { return (code_ & 1) != 0; }

    // Of the k-th axis, counted from the last one, k <= kMostAxes.
    Mode mode(int64_t k) const { return static_cast<Mode>((code_ >> (1 + 2 * k)) & 3); }
    int64_t num_axes() const;
    bool is_valid() const { return num_axes() > 0 && code_ >> (1 + 2 * num_axes()) == 0; }

private:
    int64_t code_;
};

// The dimension of the k-th axis, counted from the last one, which is not the class dimension.
int64_t dim_of_axis(int64_t k, int64_t num_dims, int64_t class_dim);

// Where the values at the indices of an axis come from, as in kernels.h.
struct Table {
    at::Tensor low, high;               // int64
    at::Tensor low_weight, high_weight; // float64; float32 where there is none
};

Table table_of(Resize::Mode mode, bool aligns_corners, const c10::SymInt& from, const c10::SymInt& to,
               c10::Device device);

// A part of a dimension.
struct Range {
    int64_t dim = 0;
    int64_t begin = 0;
    int64_t length = -1; // -1: all
};

// Logits that are resized, and how.
struct Coarse {
    at::Tensor logits;
    Resize resize;
    c10::SymDimVector sizes; // of the result
    Range range;             // the part of it that is wanted

    Coarse part(const Range& range) const { return {logits, resize, sizes, range}; }

    // The resized logits, or the part, in differentiable ATen operators. `dtype` is that of the arithmetic.
    at::Tensor values(int64_t dim, at::ScalarType dtype) const;
};

// Puts a stand-in of the target's size, without values, in input's place, unless it has this size; then it returns
// nothing.
std::optional<Coarse> take_full_size(const std::string& op, at::Tensor& input, const at::Tensor& target, int64_t dim,
                                     int64_t upsample);

} // namespace segloss
