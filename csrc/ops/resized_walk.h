// A walk over voxels whose logits are resized, piece by piece: no tensor of the full size has their values.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

#include <array>
#include <vector>

#include "layout.h"
#include "resize.h"

namespace segloss {

// Consecutive voxels, whole rows or a part of one. Their logits are in the scratch memory of a thread; the kernel
// leaves their gradient there, too.
struct Piece {
    segloss_positions positions;
    int64_t count; // of voxels
    int64_t first; // position among all voxels
    segloss_tensor logits, grad;
    int num_outer;                               // dimensions that are not resized
    std::array<int64_t, SEGLOSS_MAX_DIMS> index; // of the first voxel

    // The piece's part of a tensor that ResizedWalk::describe has described, and its row of a label table.
    segloss_tensor of(const segloss_tensor& whole) const;
    segloss_label_table of(const segloss_label_table& whole) const;
};

// Walks over voxels whose logits are resized. Chunks that follow one another can add to the same values of the
// gradient: every second chunk runs first, then the others, so that each value is a sum in an order that the shape
// alone decides.
class ResizedWalk {
public:
    // Adds the gradient to `grad`, if it is defined: of logits' size, in the compute dtype, with contiguous columns.
    ResizedWalk(const Coarse& coarse, int64_t dim, at::ScalarType compute_dtype, const at::Tensor& grad = {});

    // Describes tensors of the voxels.
    segloss_positions describe(at::ArrayRef<Operand> operands);

    int64_t num_chunks() const { return num_samples_ * chunks_per_sample(); }

    // Calls kernel(chunk, piece) for the pieces of each chunk in turn; it returns -1, or a position that it refuses.
    // Returns true if none was refused.
    bool run(c10::function_ref<int64_t(int64_t chunk, const Piece&)> kernel, int64_t most_threads = INT64_MAX) const;

private:
    using Visit = c10::function_ref<bool(const Piece&)>;

    int64_t size_of(int axis) const { return args_.axes[axis].size; }
    int64_t chunks_per_sample() const { return static_cast<int64_t>(borders_.size()) - 1; }
    std::vector<int64_t> index_of_sample(int64_t sample) const;
    void add_axis(int axis, const Coarse& coarse, at::ScalarType compute_dtype);
    void choose_pieces();
    void find_borders();
    segloss_resize args_of_sample(int64_t sample, void* workspace) const;
    bool visit_chunk(int64_t chunk, char* scratch, Visit visit) const;
    bool visit_piece(Piece& piece, const segloss_resize& args, int64_t num_rows, int64_t num_columns,
                     Visit visit) const;

    at::Tensor logits_, grad_;
    int64_t dim_;
    int64_t num_outer_;   // dimensions that are not resized, before the axes
    at::DimVector sizes_; // of these dimensions, then of the three axes
    int64_t num_samples_; // a sample is an index in all dimensions that are not resized
    segloss_real real_;
    segloss_resize args_{};
    std::vector<at::Tensor> tables_;
    int split_ = SEGLOSS_ROWS;     // the axis along which chunks follow one another
    std::vector<int64_t> borders_; // of the chunks
    int64_t piece_rows_ = 1, piece_columns_ = 1;
    int64_t class_stride_ = 0; // in scratch memory
    bool rows_join_ = true;    // rows follow one another in memory as columns do
};

} // namespace segloss
