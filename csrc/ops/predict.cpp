// The operators that predict: the class of each voxel, or for each class whether its logit is above a threshold.

#include "predict.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "composite.h"
#include "layout.h"
#include "resized_walk.h"

namespace segloss {
namespace {

void check_logits_to_predict(const Tensor& input, int64_t dim) {
    check_logits(kPredict, input);
    TORCH_CHECK_INDEX(dim >= 0 && dim < input.dim(), kPredict, ": expected dim in [0, ", input.dim() - 1, "], got ",
                      dim);
}

// Reads the arguments for a result of these sizes, with a class dimension of size 1.
Prediction read_prediction(const Tensor& input, int64_t dim, std::optional<double> threshold, int64_t upsample,
                           c10::SymIntArrayRef sizes) {
    TORCH_CHECK(threshold || input.sym_size(dim) != 1, kPredict, ": expected logits of two classes or more, got input ",
                input.sym_sizes(), " with one channel in dimension ", dim,
                ", where argmax is always 0. Use threshold=0 for the logits of one foreground class");
    TORCH_CHECK(threshold || input.sym_size(dim) > 0, kPredict, ": expected logits of a class or more, got input ",
                input.sym_sizes());
    Prediction given{input, dim, threshold, std::nullopt};
    if (upsample != 0) {
        const auto stand_in = at::empty({}, input.options()).expand_symint(sizes);
        given.coarse = take_full_size(kPredict, given.input, stand_in, dim, upsample);
    }
    return given;
}

at::ScalarType checked_dtype(const Prediction& given, at::ScalarType dtype) {
    const auto classes = given.input.sym_size(given.dim);
    if (given.threshold) {
        TORCH_CHECK_TYPE(dtype == at::kBool || dtype == at::kByte, kPredict,
                         ": expected dtype bool or uint8 with a threshold, got ", dtype);
        return dtype;
    }
    TORCH_CHECK_TYPE(at::isIntegralType(dtype, /*includeBool=*/false), kPredict, ": expected an integer dtype, got ",
                     dtype);
    const auto bits = static_cast<int>(c10::elementSize(dtype)) * 8 - (at::isSignedType(dtype) ? 1 : 0);
    TORCH_CHECK_VALUE(bits >= 31 || classes <= int64_t{1} << bits, kPredict, ": expected a dtype that holds ", classes,
                      " classes, got ", dtype);
    return dtype;
}

void write_cpu(const Prediction& given, const Tensor& out) {
    auto args = prediction_for_kernel(given, out);
    const auto dtype = given.input.scalar_type();
    const auto kernel = kernels().predict[real_of(dtype)];
    if (!given.coarse) {
        const auto num_voxels = c10::multiply_integers(position_sizes(given.input, given.dim));
        Chunks(num_voxels, args.num_classes).run([&](int64_t, int64_t begin, int64_t end) {
            return kernel(&args, begin, end);
        });
        return;
    }
    ResizedWalk walk(*given.coarse, given.dim, compute_dtype(dtype));
    walk.describe({{&out, &args.prediction}});
    walk.run([&](int64_t, const Piece& piece) {
        auto part = args;
        part.positions = piece.positions;
        part.logits = piece.logits;
        part.prediction = piece.of(args.prediction);
        return kernel(&part, 0, piece.count);
    });
}

void check_prediction_out(const Prediction& given, const Tensor& out) {
    check_dense(kPredict, out, "out");
    check_same_device(kPredict, given.input, out, "out");
    checked_dtype(given, out.scalar_type());
    TORCH_CHECK(out.sym_sizes() == c10::SymIntArrayRef(given.sizes()), kPredict, ": expected out of shape ",
                c10::SymIntArrayRef(given.sizes()), " for input ", given.logits().sym_sizes(), ", got ",
                out.sym_sizes());
}

// The sizes of a stand-in for a target: `size` in the place of input's last dimensions but the class dimension.
c10::SymDimVector sizes_of_target(const Tensor& input, int64_t dim, c10::SymIntArrayRef size) {
    TORCH_CHECK(static_cast<int64_t>(size.size()) < input.dim(), kPredict, ": expected at most ", input.dim() - 1,
                " sizes for input ", input.sym_sizes(), ", got ", size);
    c10::SymDimVector sizes(input.sym_sizes());
    sizes[dim] = 1;
    auto d = input.dim() - 1;
    for (auto k = static_cast<int64_t>(size.size()) - 1; k >= 0; --k, --d) {
        d -= d == dim ? 1 : 0;
        sizes[d] = size[k];
    }
    return sizes;
}

void write_nothing(const Prediction& /*given*/, const Tensor& /*out*/) {}

} // namespace

segloss_predict prediction_for_kernel(const Prediction& given, const Tensor& out) {
    segloss_predict args{};
    args.num_classes = given.input.size(given.dim);
    args.has_threshold = given.threshold.has_value();
    args.threshold = given.threshold.value_or(0);
    TORCH_CHECK(args.num_classes <= INT32_MAX, kPredict, ": expected at most ", INT32_MAX, " classes, got ",
                args.num_classes);
    if (!given.coarse) {
        args.positions = describe(position_sizes(given.input, given.dim), given.dim,
                                  {{&given.input, &args.logits}, {&out, &args.prediction}});
    }
    return args;
}

void write_prediction_composite(const Prediction& given, const Tensor& out) {
    const auto& [input, dim, threshold, coarse] = given;
    const Slabs slabs(input, dim);
    const auto dtype = compute_dtype(input.scalar_type());
    for (int64_t slab = 0; slab < slabs.count(); ++slab) {
        const auto logits = coarse ? coarse->part(slabs.range(slab)).values(dim, dtype) : slabs.of(input, slab);
        slabs.of(out, slab).copy_(threshold ? logits.gt(*threshold) : logits.argmax(dim));
    }
}

Tensor predict(PredictionWriter write, const Tensor& input, c10::SymIntArrayRef size, int64_t upsample,
               std::optional<double> threshold, at::ScalarType dtype, int64_t dim) {
    check_logits_to_predict(input, dim);
    const auto given = read_prediction(input, dim, threshold, upsample, sizes_of_target(input, dim, size));
    const auto out = at::empty_symint(given.sizes(), input.options().dtype(checked_dtype(given, dtype)));
    write(given, out);
    return out;
}

void predict_into(PredictionWriter write, const Tensor& input, int64_t upsample, std::optional<double> threshold,
                  int64_t dim, const Tensor& out) {
    check_logits_to_predict(input, dim);
    check_dense(kPredict, out, "out");
    c10::SymDimVector sizes(out.sym_sizes());
    if (!threshold && out.dim() == input.dim() - 1) {
        sizes.insert(sizes.begin() + dim, 1);
    }
    const auto given = read_prediction(input, dim, threshold, upsample, sizes);
    check_prediction_out(given, out);
    write(given, out);
}

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    m.def("predict(Tensor input, SymInt[] size, int upsample, float? threshold, ScalarType dtype, int dim) -> Tensor",
          tags);
    m.def("predict_into(Tensor input, int upsample, float? threshold, int dim, Tensor(a!) out) -> ()", tags);
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("predict", TORCH_FN(predict_by<write_cpu>));
    m.impl("predict_into", TORCH_FN(predict_into_by<write_cpu>));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("predict", TORCH_FN(predict_by<write_nothing>));
    m.impl("predict_into", TORCH_FN(predict_into_by<write_nothing>));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("predict", TORCH_FN(predict_by<write_prediction_composite>));
    m.impl("predict_into", TORCH_FN(predict_into_by<write_prediction_composite>));
}

} // namespace segloss
