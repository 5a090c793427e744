// Binary focal losses, one for each voxel and class. Their sums are computed with the soft statistics.

#include "memory.h"
#include "operator.h"

namespace segloss {
namespace {

struct SigmoidFocal : LossDefaults<SigmoidFocal> {
    static constexpr auto name = "sigmoid_focal";
    static constexpr auto node = "SigmoidFocalBackward";
    static constexpr bool by_target = false;
    static constexpr std::array results{Result{"loss", Role::differentiable}};
    using Results = Tensors<1>;
    using Handed = Tensors<1>;

    struct Options {
        int64_t dim = 1;
        int64_t ignore_index = -100;
        double gamma = 2;
        at::ScalarType dtype = at::ScalarType::Undefined; // of the losses

        static constexpr auto keywords() {
            return std::tuple(field("ignore_index", &Options::ignore_index), field("gamma", &Options::gamma));
        }
        static constexpr auto internal() { return std::tuple(field("dtype", &Options::dtype)); }

        VoxelLossOptions of_voxels() const { return {/*label_smoothing=*/0, gamma}; }
    };

    // ---- checks -----------------------------------------------------------------------------------------------------

    static Target check(const Arguments& arguments, const Options& options) {
        const auto& [op, input, target, weight, voxel_weight] = arguments;
        const auto kind = classify_target(op, input, target, options.dim, /*takes_masks=*/true);
        check_weight(op, input, weight, options.dim, kind);
        check_voxel_weight(op, input, voxel_weight, options.dim);
        check_gamma(op, options.gamma);
        check_ignore_index(op, kind, options.ignore_index);
        return kind;
    }

    static void set_dtype(Options& options, const Arguments& arguments, Target /*kind*/) {
        options.dtype = dtype_of_loss(arguments.input);
    }

    static Reading read(const Arguments& arguments, const Options& options, Target kind) {
        check_loss_dtype(arguments.op, arguments.input, options.dtype);
        return {kind, options.dim, options.ignore_index, options.dtype,
                ranges_of(arguments, kind, compute_dtype(options.dtype))};
    }

    static void check_handed(const Handed& handed, const Arguments& arguments, const Options& /*options*/) {
        const auto& [grad_loss] = handed;
        const auto& input = arguments.input;
        check_dense(arguments.op, grad_loss, "grad_loss");
        check_same_device(arguments.op, input, grad_loss, "grad_loss");
        TORCH_CHECK(grad_loss.sizes() == input.sizes() && grad_loss.is_floating_point(), arguments.op,
                    " backward: expected a floating gradient of input's shape ", input.sizes(), ", got ",
                    grad_loss.sizes(), " of dtype ", grad_loss.scalar_type());
    }

    // ---- CPU --------------------------------------------------------------------------------------------------------

    static Results forward_cpu(const Arguments& arguments, const Options& options, const Reading& reading) {
        auto results = shapes(arguments, options, reading);
        VoxelArguments voxels(arguments, reading, options.of_voxels());
        voxels.describe_with({{&results[0], &voxels.args.loss}});
        voxels.run(kernels().binary_forward[real_of(options.dtype)]);
        return results;
    }

    static Tensor backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                               const Reading& reading) {
        const auto grad_input = empty_output_like(arguments.input);
        VoxelArguments voxels(arguments, reading, options.of_voxels());
        voxels.args.stream_grad = exceeds_caches(grad_input);
        voxels.describe_with({{&handed[0], &voxels.args.grad_loss}, {&grad_input, &voxels.args.grad_logits}});
        voxels.run(kernels().binary_backward[real_of(options.dtype)]);
        return grad_input;
    }

    // ---- shapes and dtypes only -------------------------------------------------------------------------------------

    static Results shapes(const Arguments& arguments, const Options& options, const Reading& /*reading*/) {
        return {at::empty_like(arguments.input, arguments.input.options().dtype(options.dtype))};
    }

    // ---- composite: the same results in differentiable ATen operators -----------------------------------------------

    static Results composite(const Arguments& arguments, const Options& options, const Reading& reading) {
        const auto voxels = read_voxels(arguments, reading);
        const auto losses = binary_losses(voxels, arguments.weight, options.dim, options.of_voxels());
        return {weighted_values(voxels, losses).to(options.dtype)};
    }
};

const Operator<SigmoidFocal>::Registration sigmoid_focal; // NOLINT(bugprone-throwing-static-initialization): as torch's

} // namespace
} // namespace segloss
