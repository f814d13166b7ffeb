// The recorded steps of a bundle: replayed through policy.onnx and compared, as self_test.py does.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "limiter.hpp"
#include "network.hpp"
#include "npz.hpp"

namespace qtransformer {

class Golden {
public:
    static constexpr double value_tolerance = 1e-4;   // of Q, in [0, 1]: more is not rounding
    static constexpr double action_tolerance = 1e-6;  // of a dimension's range, where the tokens are the same

    explicit Golden(const Bundle& bundle) : arrays_(read_npz(bundle.read("golden.npz"))) {
        num_steps = static_cast<std::size_t>(array("is_reset").shape[0]);
        for (const auto& [name, each] : arrays_)
            if (each.shape[0] != static_cast<std::int64_t>(num_steps)) detail::damaged("its arrays differ in length");
        if (num_steps == 0) detail::damaged("it holds no steps");
    }

    const Array& array(const std::string& name) const {
        const auto found = arrays_.find(name);
        if (found == arrays_.end())
            throw ControllerError("golden.npz: must have " + name + "; export the bundle again");
        return found->second;
    }
    /// Returns what an array of `size` elements a step holds at this one.
    template <class T>
    const T* row(const std::string& name, std::size_t step, std::size_t size) const {
        const Array& found = array(name);
        if (facts(found.dtype).size != sizeof(T) || found.row_size() != size)
            detail::damaged("an array has not the type or shape that policy.json says");
        return reinterpret_cast<const T*>(found.bytes.data()) + step * size;
    }
    bool is_reset(std::size_t step) const { return *row<std::uint8_t>("is_reset", step, 1); }

    std::size_t num_steps;

private:
    std::map<std::string, Array> arrays_;
};

/// What the replay found. A token may differ only to a bin that rounding could choose as well (`is_tied`); what follows
/// it in the same step then stems from another prefix, and is not compared.
struct Agreement {
    std::size_t steps = 0, tokens_equal = 0, tokens_total = 0, near_ties = 0, failures = 0;
    double largest_action_difference = 0, largest_q_difference = 0;
    std::string first_failure;

    void fail(std::size_t step, const std::string& what) {
        if (failures++ == 0) first_failure = "step " + std::to_string(step) + ": " + what;
    }
};

namespace detail {

/// Returns whether all tokens of the step are the recorded ones; counts them and their values.
inline bool compare_tokens(const Golden& golden, std::size_t step, Network& network, Agreement& found) {
    const Tensor &tokens = network.output("tokens"), &q = network.output("q_max");
    const std::size_t size = tokens.count, num_bins = size ? golden.array("is_tied").row_size() / size : 0;
    if (q.count != size) damaged("q_max has not one number a token");
    const auto* expected = golden.row<std::int64_t>("outputs.tokens", step, size);
    const auto* expected_q = golden.row<float>("outputs.q_max", step, size);
    const auto* is_tied = golden.row<std::uint8_t>("is_tied", step, size * num_bins);
    const auto* got = tokens.data<std::int64_t>();
    bool is_same = true;
    for (std::size_t i = 0; i < size; ++i) {
        const std::string place = "token " + std::to_string(i) + ": ";
        found.tokens_equal += expected[i] == got[i];
        ++found.tokens_total;
        if (is_same && expected[i] != got[i]) {
            is_same = false;
            const auto bin = static_cast<std::size_t>(got[i]);  // a negative one becomes too large
            if (bin < num_bins && is_tied[i * num_bins + bin]) ++found.near_ties;
            else
                found.fail(step,
                           place + "bin " + std::to_string(expected[i]) + " expected, got " + std::to_string(got[i]));
        }
        const double error = is_same ? std::fabs(double(expected_q[i]) - q.data<float>()[i]) : 0;
        found.largest_q_difference = std::max(found.largest_q_difference, error);
        if (!(error <= Golden::value_tolerance)) found.fail(step, place + "Q is off");
    }
    return is_same;
}

inline void compare_actions(const Golden& golden, std::size_t step, Network& network, const Json& tokenizer,
                            Agreement& found) {
    const Tensor& actions = network.output("actions");
    const auto* expected = golden.row<float>("outputs.actions", step, actions.count);
    const auto &low = tokenizer.at("low").items(), &high = tokenizer.at("high").items();
    for (std::size_t i = 0; i < actions.count; ++i) {
        const double error = std::fabs(double(expected[i]) - actions.data<float>()[i]);
        const double span = high.at(i).number() - low.at(i).number();
        found.largest_action_difference = std::max(found.largest_action_difference, error);
        if (!(error <= Golden::action_tolerance * span)) found.fail(step, "action " + std::to_string(i) + " is off");
    }
}

}  // namespace detail

/// Replays all recorded steps through policy.onnx alone.
inline Agreement replay(const Golden& golden, const Json& card, Network& network) {
    Agreement found;
    for (std::size_t step = 0; step < golden.num_steps; ++step) {
        if (golden.is_reset(step)) network.forget();
        for (const auto& spec : card.at("observations").items()) {
            const auto& name = spec.at("name").text();
            Tensor& input = network.input(name);
            with_element(input.dtype, [&](auto zero) {
                using Element = decltype(zero);
                std::copy_n(golden.row<Element>("inputs." + name, step, input.count), input.count,
                            input.data<Element>());
            });
        }
        if (const std::string problem = network.run(); !problem.empty()) found.fail(step, problem);
        const Tensor& ok = network.output("ok");
        if (!*golden.row<std::uint8_t>("outputs.ok", step, ok.count) || !*ok.data<std::uint8_t>())
            found.fail(step, "ok is False");
        if (detail::compare_tokens(golden, step, network, found))
            detail::compare_actions(golden, step, network, card.at("tokenizer"), found);
        network.commit();
        ++found.steps;
    }
    return found;
}

}  // namespace qtransformer
