// Readings as the robot gives them, and what each must be.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "bundle.hpp"
#include "network.hpp"

namespace qtransformer {

template <class T>
constexpr Dtype dtype_of() {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "a reading holds numbers");
    if constexpr (std::is_same_v<T, bool>) return Dtype::boolean;
    else if constexpr (std::is_floating_point_v<T>) return sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
    else if constexpr (std::is_signed_v<T>)
        return sizeof(T) == 1   ? Dtype::int8
               : sizeof(T) == 2 ? Dtype::int16
               : sizeof(T) == 4 ? Dtype::int32
                                : Dtype::int64;
    else
        return sizeof(T) == 1   ? Dtype::uint8
               : sizeof(T) == 2 ? Dtype::uint16
               : sizeof(T) == 4 ? Dtype::uint32
                                : Dtype::uint64;
}

/// What one sensor says, not copied: name and data must live until `step` returns.
struct Reading {
    static constexpr std::size_t max_rank = 6;

    /// Numbers in C order.
    Reading(std::string_view name, Dtype dtype, const void* data, const std::int64_t* sizes, std::size_t rank)
        : name(name), dtype(dtype), data(data), rank(rank) {
        for (std::size_t i = 0; i < rank && i < max_rank; ++i) shape[i] = sizes[i];
    }
    template <class T>
    Reading(std::string_view name, const T* data, std::initializer_list<std::int64_t> sizes)
        : Reading(name, dtype_of<T>(), data, sizes.begin(), sizes.size()) {}
    template <class T>
    Reading(std::string_view name, const std::vector<T>& values)
        : Reading(name, values.data(), {static_cast<std::int64_t>(values.size())}) {}
    /// An instruction in words.
    Reading(std::string_view name, std::string_view text)
        : name(name), dtype(Dtype::text), data(text.data()), text(text) {}

    std::string_view name;
    Dtype dtype;
    const void* data;
    std::int64_t shape[max_rank] = {};
    std::size_t rank = 0;
    std::string_view text;
    std::optional<double> taken_at;  // seconds of the controller's clock; without, the age is not checked
};

/// Elementwise limits; infinite where there are none.
struct Range {
    std::vector<float> low, high;

    Range(const Json& spec, const std::string& kind, std::size_t size)
        : low(numbers(spec.at(kind + "_low"), size, -std::numeric_limits<double>::infinity(), name(spec, kind))),
          high(numbers(spec.at(kind + "_high"), size, std::numeric_limits<double>::infinity(), name(spec, kind))) {}

    /// Returns the first element outside, or the number of elements.
    template <class T>
    std::size_t first_outside(const T* values) const {
        for (std::size_t i = 0; i < low.size(); ++i) {
            const double value = static_cast<double>(values[i]);
            if (!(value >= double(low[i]) && value <= double(high[i]))) return i;  // so that NaN is outside
        }
        return low.size();
    }

private:
    static std::string name(const Json& spec, const std::string& kind) {
        return kind + " range of " + spec.at("name").text();
    }
};

/// One observation of the card.
struct Sensor {
    Sensor(const Json& spec, Network& network)
        : name(spec.at("name").text()),
          is_text(spec.at("kind").text() == "text"),
          input(network.input(name)),
          max_age(number_or(spec.at("max_age_s"), std::numeric_limits<double>::infinity())) {
        for (const auto& size : spec.at("shape").items()) shape.push_back(static_cast<std::int64_t>(size.number()));
        if (!is_text && num_elements(shape) != input.count)
            throw ControllerError("policy.json: observation " + name + " and the graph's input differ in shape");
        if (!(max_age > 0)) throw ControllerError("max_age_s must be above 0 or null; correct the limits");
        if (!is_ranged(spec)) return;
        hard.emplace(spec, "hard", input.count);
        training.emplace(spec, "training", input.count);
    }

    bool has_shape_of(const Reading& reading) const {
        if (reading.rank != shape.size()) return false;
        for (std::size_t i = 0; i < shape.size(); ++i)
            if (i >= Reading::max_rank || reading.shape[i] != shape[i]) return false;
        return true;
    }

    /// Copies the reading, of the right shape and castable, to the network's input, as numpy would cast it.
    void copy(const Reading& reading) {
        with_element(input.dtype, [&](auto target) {
            using Target = decltype(target);
            with_element(reading.dtype, [&](auto source) {
                using Source = decltype(source);
                const auto* from = static_cast<const Source*>(reading.data);
                auto* to = input.data<Target>();
                if constexpr (std::is_same_v<Source, Target>) std::copy_n(from, input.count, to);
                else
                    for (std::size_t i = 0; i < input.count; ++i) to[i] = static_cast<Target>(from[i]);
            });
        });
    }

    /// Returns the first element that is NaN or infinite, or the number of elements.
    std::size_t first_not_finite() const {
        std::size_t first = input.count;
        with_element(input.dtype, [&](auto zero) {
            using Element = decltype(zero);
            if constexpr (std::is_floating_point_v<Element>)
                first =
                    static_cast<std::size_t>(std::find_if(input.data<Element>(), input.data<Element>() + input.count,
                                                          [](Element value) { return !std::isfinite(value); }) -
                                             input.data<Element>());
        });
        return first;
    }

    std::size_t first_outside(const Range& range) const {
        std::size_t first = input.count;
        with_element(input.dtype, [&](auto zero) { first = range.first_outside(input.data<decltype(zero)>()); });
        return first;
    }

    double element(std::size_t index) const {
        double value = 0;
        with_element(input.dtype, [&](auto zero) { value = static_cast<double>(input.data<decltype(zero)>()[index]); });
        return value;
    }

    std::string name;
    bool is_text;
    Tensor& input;
    double max_age;
    std::optional<Range> hard, training;
    std::vector<std::int64_t> shape;
    std::optional<double> taken_at;  // of the newest reading that was taken, in this episode
};

}  // namespace qtransformer
