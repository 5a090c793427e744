// Tensors of any dtype and strides, read and written one element at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <type_traits>

#include "../label_row.h"
#include "launchers.h"

namespace {

template <typename T> __device__ T element(const segloss_tensor& t, int64_t offset) {
    return static_cast<const T*>(t.data)[offset];
}

__device__ inline double number(double x) { return x; }
__device__ inline float number(float x) { return x; }
__device__ inline float number(__half x) { return __half2float(x); }
__device__ inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void assign(double& to, double x) { to = x; }
__device__ inline void assign(float& to, double x) { to = static_cast<float>(x); }
__device__ inline void assign(__half& to, double x) { to = __float2half(static_cast<float>(x)); }
__device__ inline void assign(__nv_bfloat16& to, double x) { to = __float2bfloat16(static_cast<float>(x)); }

template <typename Real> __device__ Real load(const segloss_tensor& t, int64_t offset) {
    switch (t.dtype) {
    case SEGLOSS_FLOAT32:
        return static_cast<Real>(element<float>(t, offset));
    case SEGLOSS_FLOAT64:
        return static_cast<Real>(element<double>(t, offset));
    case SEGLOSS_FLOAT16:
        return static_cast<Real>(number(element<__half>(t, offset)));
    case SEGLOSS_BFLOAT16:
        return static_cast<Real>(number(element<__nv_bfloat16>(t, offset)));
    case SEGLOSS_UINT8:
        return static_cast<Real>(element<uint8_t>(t, offset));
    case SEGLOSS_INT8:
        return static_cast<Real>(element<int8_t>(t, offset));
    case SEGLOSS_UINT16:
        return static_cast<Real>(element<uint16_t>(t, offset));
    case SEGLOSS_INT16:
        return static_cast<Real>(element<int16_t>(t, offset));
    case SEGLOSS_UINT32:
        return static_cast<Real>(element<uint32_t>(t, offset));
    case SEGLOSS_INT32:
        return static_cast<Real>(element<int32_t>(t, offset));
    case SEGLOSS_UINT64:
        return static_cast<Real>(element<uint64_t>(t, offset));
    default:
        return static_cast<Real>(element<int64_t>(t, offset));
    }
}

// For floating-point tensors.
__device__ inline void store(const segloss_tensor& t, int64_t offset, double x) {
    switch (t.dtype) {
    case SEGLOSS_FLOAT32:
        return assign(static_cast<float*>(t.data)[offset], x);
    case SEGLOSS_FLOAT64:
        return assign(static_cast<double*>(t.data)[offset], x);
    case SEGLOSS_FLOAT16:
        return assign(static_cast<__half*>(t.data)[offset], x);
    default:
        return assign(static_cast<__nv_bfloat16*>(t.data)[offset], x);
    }
}

// SEGLOSS_NO_LABEL if x is not an integer of int64, or is nan.
__device__ inline int64_t integer_of(double x) {
    const bool representable = x >= -0x1p63 && x < 0x1p63;
    const int64_t integer = representable ? static_cast<int64_t>(x) : 0;
    return representable && static_cast<double>(integer) == x ? integer : SEGLOSS_NO_LABEL;
}

__device__ inline int64_t load_integer(const segloss_tensor& t, int64_t offset) {
    switch (t.dtype) {
    case SEGLOSS_INT64:
        return element<int64_t>(t, offset);
    case SEGLOSS_UINT64: {
        const uint64_t x = element<uint64_t>(t, offset);
        return x <= INT64_MAX ? static_cast<int64_t>(x) : SEGLOSS_NO_LABEL;
    }
    default:
        return integer_of(load<double>(t, offset)); // exact for all other dtypes
    }
}

// Writes an integer that fits the tensor's integer dtype.
__device__ inline void store_integer(const segloss_tensor& t, int64_t offset, int64_t x) {
    switch (t.dtype) {
    case SEGLOSS_UINT8:
    case SEGLOSS_INT8:
        static_cast<uint8_t*>(t.data)[offset] = static_cast<uint8_t>(x);
        return;
    case SEGLOSS_UINT16:
    case SEGLOSS_INT16:
        static_cast<uint16_t*>(t.data)[offset] = static_cast<uint16_t>(x);
        return;
    case SEGLOSS_UINT32:
    case SEGLOSS_INT32:
        static_cast<uint32_t*>(t.data)[offset] = static_cast<uint32_t>(x);
        return;
    default:
        static_cast<int64_t*>(t.data)[offset] = x;
    }
}

// The first class with the largest logit; nan counts as larger than any number.
template <typename Logits> __device__ int64_t argmax(const Logits& logits, int64_t num_classes) {
    auto best = number(logits[0]);
    int64_t predicted = 0;
    for (int64_t c = 1; c < num_classes; ++c) {
        const auto x = number(logits[c]);
        if (!(x <= best) && best == best) {
            best = x;
            predicted = c;
        }
    }
    return predicted;
}

// The offset of a position in each of N tensors. Most steps stay in the last dimension and need only additions.
template <int N> class Walk {
public:
    __device__ Walk(const segloss_positions& positions, const segloss_tensor* const (&tensors)[N])
        : positions_(positions) {
        for (int k = 0; k < N; ++k) {
            tensors_[k] = tensors[k];
        }
    }

    __device__ void start(int64_t position) {
        position_ = position;
        for (int k = 0; k < N; ++k) {
            offsets_[k] = 0;
        }
        for (int d = positions_.num_dims - 1; d >= 0; --d) {
            const int64_t index = d > 0 ? position % positions_.sizes[d] : position;
            position = d > 0 ? position / positions_.sizes[d] : 0;
            last_ = d == positions_.num_dims - 1 ? index : last_;
            for (int k = 0; k < N; ++k) {
                offsets_[k] += index * tensors_[k]->strides[d];
            }
        }
    }

    __device__ void step(int64_t positions) {
        const int d = positions_.num_dims - 1;
        if (d > 0 && last_ + positions >= positions_.sizes[d]) {
            start(position_ + positions);
            return;
        }
        position_ += positions;
        last_ += positions;
        for (int k = 0; k < N; ++k) {
            offsets_[k] += positions * tensors_[k]->strides[d];
        }
    }

    __device__ int64_t position() const { return position_; }
    __device__ int64_t operator[](int tensor) const { return offsets_[tensor]; }

private:
    const segloss_positions& positions_;
    const segloss_tensor* tensors_[N];
    int64_t position_, last_, offsets_[N];
};

// Whether an integer is a class, with a comparison of 32 bits where that is enough.
template <typename Label> __device__ bool is_class(Label label, int64_t num_classes) {
    using Wide = std::conditional_t<(sizeof label > sizeof(int)), uint64_t, unsigned>;
    return static_cast<Wide>(static_cast<std::make_unsigned_t<Label>>(label)) < static_cast<Wide>(num_classes);
}

enum : int64_t { IGNORED = SEGLOSS_IGNORED, BAD = SEGLOSS_BAD };

// The class of the label at a position, IGNORED or BAD.
__device__ inline int64_t load_class(const segloss_tensor& t, int64_t offset, const segloss_label_table& labels,
                                     int64_t position, int64_t num_classes, int64_t ignore_index) {
    const int64_t label = load_integer(t, offset);
    if (label == SEGLOSS_NO_LABEL && t.dtype != SEGLOSS_INT64) {
        return BAD;
    }
    if (labels.rows) {
        const int64_t* row = row_of_position(&labels, position);
        return class_of_entry(entry_of_label(row, label), label, classes_of_row(row, num_classes));
    }
    return label == ignore_index ? IGNORED : label >= 0 && label < num_classes ? label : BAD;
}

} // namespace
