// What all files share: the refusal of unsafe compilers, errors, counters, element types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

// With these the compiler may take every number for finite, and then a check for NaN says that all is well.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(_M_FP_FAST)
#error "the controller must see NaN: compile without -ffast-math, -ffinite-math-only and -Ofast"
#endif
static_assert(std::numeric_limits<float>::is_iec559 && std::numeric_limits<double>::is_iec559, "needs IEEE 754");

namespace qtransformer {

/// A bundle cannot be used, or a reset was asked that cannot be; says which, why and what to do. `step` throws none.
class ControllerError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// What is counted: all steps and the accepted ones; readings outside the log's range; actions that bounds, rate or
/// workspace changed; and, from `not_reset` on, why steps were refused. Every step is accepted or refused for one.
enum class Counter {
    steps,
    accepted,
    training_range,
    bounds,
    rate,
    workspace,
    not_reset,
    latched,
    late,
    keys,
    shape,
    dtype,
    not_finite,
    instruction,
    hard_range,
    stale,
    network,
    internal
};
constexpr const char* counter_names[] = {
    "steps",      "accepted",    "training_range", "bounds", "rate",    "workspace",
    "not_reset",  "latched",     "late",           "keys",   "shape",   "dtype",
    "not_finite", "instruction", "hard_range",     "stale",  "network", "internal",
};
constexpr std::size_t num_counters = sizeof counter_names / sizeof *counter_names;
static_assert(num_counters == static_cast<std::size_t>(Counter::internal) + 1, "a name for each");

/// Element types by numpy's names; the values are ONNX's.
enum class Dtype : int {
    float32 = 1,
    uint8 = 2,
    int8 = 3,
    uint16 = 4,
    int16 = 5,
    int32 = 6,
    int64 = 7,
    text = 8,
    boolean = 9,
    float64 = 11,
    uint32 = 12,
    uint64 = 13
};

struct DtypeFacts {
    Dtype dtype;
    const char* name;   // numpy's
    const char* descr;  // as .npy files have it, less the byte order
    std::size_t size;   // bytes
    char kind;          // f, i, u, b as numpy's
};
constexpr DtypeFacts dtypes[] = {
    {Dtype::float32, "float32", "f4", 4, 'f'}, {Dtype::float64, "float64", "f8", 8, 'f'},
    {Dtype::uint8, "uint8", "u1", 1, 'u'},     {Dtype::uint16, "uint16", "u2", 2, 'u'},
    {Dtype::uint32, "uint32", "u4", 4, 'u'},   {Dtype::uint64, "uint64", "u8", 8, 'u'},
    {Dtype::int8, "int8", "i1", 1, 'i'},       {Dtype::int16, "int16", "i2", 2, 'i'},
    {Dtype::int32, "int32", "i4", 4, 'i'},     {Dtype::int64, "int64", "i8", 8, 'i'},
    {Dtype::boolean, "bool", "b1", 1, 'b'},    {Dtype::text, "str", "", 0, 'U'},
};

inline const DtypeFacts& facts(Dtype dtype) {
    for (const auto& each : dtypes)
        if (each.dtype == dtype) return each;
    throw ControllerError("an element type that nobody knows: it was made of a wrong number");
}

inline Dtype dtype_named(const std::string& name) {
    for (const auto& each : dtypes)
        if (name == each.name && each.size) return each.dtype;
    throw ControllerError("policy.json: dtype " + name + " is none that this controller knows; use controller.py");
}

/// Calls `with(T())` for the type that holds one element; bool is one byte, whatever it holds.
template <class Function>
void with_element(Dtype dtype, Function&& with) {
    switch (dtype) {
        case Dtype::float32: return with(float());
        case Dtype::float64: return with(double());
        case Dtype::uint8:
        case Dtype::boolean: return with(std::uint8_t());
        case Dtype::uint16: return with(std::uint16_t());
        case Dtype::uint32: return with(std::uint32_t());
        case Dtype::uint64: return with(std::uint64_t());
        case Dtype::int8: return with(std::int8_t());
        case Dtype::int16: return with(std::int16_t());
        case Dtype::int32: return with(std::int32_t());
        case Dtype::int64: return with(std::int64_t());
        case Dtype::text: break;
    }
}

/// Whether numpy casts `from` to `to`: to float any number, to others only without loss, since integers wrap around.
inline bool can_cast(Dtype from, Dtype to) {
    const auto &source = facts(from), &target = facts(to);
    if (source.kind == 'U') return false;
    if (from == to || source.kind == 'b' || target.kind == 'f') return true;
    if (source.kind == 'f' || target.kind == 'b') return false;
    if (source.kind == target.kind) return source.size <= target.size;
    return source.kind == 'u' && source.size < target.size;
}

inline std::size_t num_elements(const std::vector<std::int64_t>& shape) {
    std::size_t product = 1;
    for (auto size : shape) product *= static_cast<std::size_t>(size);
    return product;
}

}  // namespace qtransformer
