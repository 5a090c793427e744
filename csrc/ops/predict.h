// How the operators that predict read their arguments, for the kernels of every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../kernels/kernels.h"
#include "checks.h"
#include "resized_walk.h"

namespace segloss {

struct Prediction {
    Tensor input; // of the result's size, as in Arguments
    int64_t dim;
    std::optional<double> threshold;
    std::optional<Coarse> coarse;

    const Tensor& logits() const { return coarse ? coarse->logits : input; }

    c10::SymDimVector sizes() const {
        c10::SymDimVector sizes(input.sym_sizes());
        if (!threshold) {
            sizes.erase(sizes.begin() + dim);
        }
        return sizes;
    }
};

// Writes a prediction to a tensor of its sizes.
using PredictionWriter = void (*)(const Prediction& given, const Tensor& out);

constexpr auto kPredict = "predict"; // the name in error messages

// The kernel's arguments, with positions and tensors unless the logits are resized.
segloss_predict prediction_for_kernel(const Prediction& given, const Tensor& out);

// For devices without a kernel.
void write_prediction_composite(const Prediction& given, const Tensor& out);

// The operators, whose checks come first.
Tensor predict(PredictionWriter write, const Tensor& input, c10::SymIntArrayRef size, int64_t upsample,
               std::optional<double> threshold, at::ScalarType dtype, int64_t dim);
void predict_into(PredictionWriter write, const Tensor& input, int64_t upsample, std::optional<double> threshold,
                  int64_t dim, const Tensor& out);

// Give them the arguments of their schemas.
template <PredictionWriter write>
Tensor predict_by(const Tensor& input, c10::SymIntArrayRef size, int64_t upsample, std::optional<double> threshold,
                  at::ScalarType dtype, int64_t dim) {
    return predict(write, input, size, upsample, threshold, dtype, dim);
}
template <PredictionWriter write>
void predict_into_by(const Tensor& input, int64_t upsample, std::optional<double> threshold, int64_t dim,
                     const Tensor& out) {
    predict_into(write, input, upsample, threshold, dim, out);
}

} // namespace segloss
