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
    }

    const Array& array(const std::string& name) const {
        const auto found = arrays_.find(name);
        if (found == arrays_.end())
            throw ControllerError("golden.npz: must have " + name + "; export the bundle again");
        return found->second;
    }
    bool is_reset(std::size_t step) const { return *array("is_reset").row<std::uint8_t>(step); }

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

inline void compare(const Golden& golden, std::size_t step, Network& network, const Json& tokenizer, Agreement& found) {
    const auto *tokens = golden.array("outputs.tokens").row<std::int64_t>(step),
               *got = network.output("tokens").data<std::int64_t>();
    const auto *q = golden.array("outputs.q_max").row<float>(step), *got_q = network.output("q_max").data<float>();
    const std::size_t num_tokens = network.output("tokens").count,
                      num_bins = golden.array("is_tied").row_size() / num_tokens;
    const auto* is_tied = golden.array("is_tied").row<std::uint8_t>(step);
    if (!*golden.array("outputs.ok").row<std::uint8_t>(step) || !*network.output("ok").data<std::uint8_t>())
        found.fail(step, "ok is False");
    bool is_same = true;
    for (std::size_t i = 0; i < num_tokens; ++i) {
        found.tokens_equal += tokens[i] == got[i];
        ++found.tokens_total;
        if (is_same && tokens[i] != got[i]) {
            is_same = false;
            const bool is_bin = got[i] >= 0 && got[i] < static_cast<std::int64_t>(num_bins);
            if (is_bin && is_tied[i * num_bins + static_cast<std::size_t>(got[i])]) ++found.near_ties;
            else
                found.fail(step, "token " + std::to_string(i) + ": bin " + std::to_string(tokens[i]) +
                                     " expected, got " + std::to_string(got[i]));
        }
        if (!is_same) continue;
        const double error = std::fabs(double(q[i]) - got_q[i]);
        found.largest_q_difference = std::max(found.largest_q_difference, error);
        if (!(error <= Golden::value_tolerance)) found.fail(step, "token " + std::to_string(i) + ": Q is off");
    }
    const Array& actions = golden.array("outputs.actions");
    for (std::size_t i = 0; is_same && i < network.output("actions").count; ++i) {
        const double expected =
            actions.dtype == Dtype::float64 ? actions.row<double>(step)[i] : actions.row<float>(step)[i];
        const double error = std::fabs(expected - network.output("actions").data<float>()[i]);
        const double span = tokenizer.at("high").items()[i].number() - tokenizer.at("low").items()[i].number();
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
            const Array& array = golden.array("inputs." + name);
            Tensor& input = network.input(name);
            if (array.dtype != input.dtype || array.row_size() != input.count)
                detail::damaged("an observation differs from the graph's input");
            std::copy_n(array.bytes.data() + step * input.num_bytes(), input.num_bytes(), input.data<char>());
        }
        if (const std::string problem = network.run(); !problem.empty()) found.fail(step, problem);
        detail::compare(golden, step, network, card.at("tokenizer"), found);
        network.commit();
        ++found.steps;
    }
    return found;
}

}  // namespace qtransformer
