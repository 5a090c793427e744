// The options of an operator: a struct with a list of its fields, the only place that names them. From this list come
// the public operator's schema and signature, and the two lists of numbers that the private operators take.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../kernels/kernels.h"

namespace segloss {

// An option: its public name, and its member in the struct.
template <class Options, typename T> struct Field {
    const char* name;
    T Options::* member;
};

template <class Options, typename T> constexpr Field<Options, T> field(const char* name, T Options::* member) {
    return {name, member};
}

// How an option of type T is written in a schema and in the public operator's signature, and read from there and from a
// list of integers.
template <typename T> struct PlainOption {
    using Public = T;
    static T of(const std::string& /*op*/, Public value) { return value; }
    static T unpacked(const std::string& /*op*/, int64_t number) { return static_cast<T>(number); }
};

template <typename T> struct OptionType;

template <> struct OptionType<int64_t> : PlainOption<int64_t> {
    static constexpr auto schema = "int";
    static std::string text(int64_t value) { return std::to_string(value); }
};

template <> struct OptionType<double> : PlainOption<double> {
    static constexpr auto schema = "float";
    static std::string text(double value) { return std::to_string(value); }
};

template <> struct OptionType<bool> : PlainOption<bool> {
    static constexpr auto schema = "bool";
    static std::string text(bool value) { return value ? "True" : "False"; }
};

// The public operator also takes None: then the dtype follows from the tensors.
template <> struct OptionType<at::ScalarType> : PlainOption<at::ScalarType> {
    using Public = std::optional<at::ScalarType>;
    static constexpr auto schema = "ScalarType?";
    static std::string text(at::ScalarType /*value*/) { return "None"; }
    static at::ScalarType of(const std::string& /*op*/, Public value) {
        return value.value_or(at::ScalarType::Undefined);
    }
};

template <> struct OptionType<segloss_activation> {
    using Public = c10::string_view;
    static constexpr auto schema = "str";
    static std::string text(segloss_activation value) { return "\"" + std::string(kNames[value]) + "\""; }
    static segloss_activation of(const std::string& op, Public name) {
        for (size_t k = 0; k < kNames.size(); ++k) {
            if (name == kNames[k]) {
                return static_cast<segloss_activation>(k);
            }
        }
        TORCH_CHECK_VALUE(false, op, ": expected activation 'softmax', 'sigmoid' or 'none', got '", name, "'");
    }
    static segloss_activation unpacked(const std::string& op, int64_t number) {
        TORCH_CHECK_VALUE(number >= SEGLOSS_SOFTMAX && number <= SEGLOSS_IDENTITY, op,
                          ": expected activation 0 (softmax), 1 (sigmoid) or 2 (none), got ", number);
        return static_cast<segloss_activation>(number);
    }

private:
    static constexpr std::array<c10::string_view, 3> kNames{"softmax", "sigmoid", "none"}; // by segloss_activation
};

// All fields except `dim`, which every operator has: the public keywords, then those that the operator sets itself.
template <class Options> constexpr auto all_fields() {
    return std::tuple_cat(Options::keywords(), Options::internal());
}

// ", type name=default" for each keyword.
template <class Options> std::string schema_of_keywords() {
    std::string text;
    const auto add = [&](const auto& field) {
        const auto value = Options{}.*field.member;
        using Type = OptionType<std::decay_t<decltype(value)>>;
        text += std::string(", ") + Type::schema + " " + field.name + "=" + Type::text(value);
    };
    std::apply([&](const auto&... fields) { (add(fields), ...); }, Options::keywords());
    return text;
}

// The options as the private operators take them. `dim` is an argument of its own: DTensor's sharding rules tell calls
// apart by the arguments from the first integer on.
struct Packed {
    int64_t dim = 0;
    c10::SmallVector<int64_t, 12> options;
    c10::SmallVector<double, 4> factors;

    // For saved_data: a tuple, since compiled autograd can compare tuples of numbers, but not lists.
    c10::IValue with_name(const std::string& op) const {
        std::vector<c10::IValue> elements;
        elements.reserve(2 + options.size() + factors.size());
        elements.emplace_back(op);
        elements.emplace_back(dim);
        elements.insert(elements.end(), options.begin(), options.end());
        elements.insert(elements.end(), factors.begin(), factors.end());
        return c10::ivalue::Tuple::create(std::move(elements));
    }
    static std::pair<std::string, Packed> of(const c10::IValue& saved) {
        const auto& elements = saved.toTupleRef().elements();
        Packed packed;
        packed.dim = elements[1].toInt();
        for (size_t k = 2; k < elements.size(); ++k) {
            if (elements[k].isInt()) {
                packed.options.push_back(elements[k].toInt());
            } else {
                packed.factors.push_back(elements[k].toDouble());
            }
        }
        return {elements[0].toStringRef(), packed};
    }
};

template <class Options> Packed pack(const Options& options) {
    Packed packed;
    packed.dim = options.dim;
    const auto add = [&](const auto& value) {
        if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>) {
            packed.factors.push_back(value);
        } else {
            packed.options.push_back(static_cast<int64_t>(value));
        }
    };
    std::apply([&](const auto&... fields) { (add(options.*fields.member), ...); }, all_fields<Options>());
    return packed;
}

template <class Options>
Options unpack(const std::string& op, int64_t dim, at::IntArrayRef options, at::ArrayRef<double> factors) {
    const auto expected = pack(Options{});
    TORCH_CHECK_VALUE(options.size() == expected.options.size() && factors.size() == expected.factors.size(), op,
                      ": expected ", expected.options.size(), " options and ", expected.factors.size(),
                      " factors, got ", options.size(), " and ", factors.size());
    Options result;
    result.dim = dim;
    const auto* option = options.begin();
    const auto* factor = factors.begin();
    const auto take = [&](auto& value) {
        using Type = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<Type, double>) {
            value = *factor++;
        } else {
            value = OptionType<Type>::unpacked(op, *option++);
        }
    };
    std::apply([&](const auto&... fields) { (take(result.*fields.member), ...); }, all_fields<Options>());
    return result;
}

} // namespace segloss
