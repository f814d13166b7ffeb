// What may be sent: bounds, the rate against the last command, and a box around named positions.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "network.hpp"

namespace qtransformer {

class Limiter {
public:
    /// Throws ControllerError where the card's limits are unsound.
    explicit Limiter(const Json& card) : size(card.at("tokenizer").at("low").items().size()) {
        constexpr double nan = std::numeric_limits<double>::quiet_NaN(),
                         infinity = std::numeric_limits<double>::infinity();
        const Json &actions = card.at("actions"), &safety = card.at("safety");
        const double hz = number_or(card.at("control_hz"), 0);
        low_ = numbers(actions.at("low"), size, nan, "low");
        high_ = numbers(actions.at("high"), size, nan, "high");
        most_change_ = numbers(actions.at("rate_limit"), size, infinity, "rate_limit");
        for (std::size_t i = 0; i < size; ++i) {
            if (!(low_[i] <= high_[i]))
                throw ControllerError(
                    "actions: low must not lie above high, and neither be missing; correct the limits");
            if (!(hz > 0) && std::isfinite(most_change_[i]))
                throw ControllerError("rate_limit needs control_hz, which the log did not know; leave it out");
            most_change_[i] /= hz > 0 ? static_cast<float>(hz) : 1.0f;
        }
        read_fallback(actions.at("modes"), safety.at("fallback").text());
        if (!safety.at("workspace").is_null())
            for (const auto& [name, side] : safety.at("workspace").members())
                box_.push_back(read_side(name, side, card));
        action_.resize(size);
        sent_.resize(size);
    }

    /// Forgets what was sent, or takes `sent` for it.
    void forget(const std::vector<float>* sent) {
        if (sent && (sent->size() != size ||
                     !std::all_of(sent->begin(), sent->end(), [](float x) { return std::isfinite(x); })))
            throw ControllerError("sent must be " + std::to_string(size) + " finite numbers; give the robot's command");
        has_sent_ = sent != nullptr;
        if (sent) sent_ = *sent;
    }

    /// Returns what is sent in place of `wanted`, with `changed` told which of bounds, rate, workspace changed it.
    ///
    /// `network` holds the reading of now, for the workspace; without one nobody knows where the robot is: stay.
    template <class Changed>
    const float* limited(const float* wanted, Network* network, Changed&& changed) {
        bool is_bounded = false, is_slowed = false, is_boxed = false;
        for (std::size_t i = 0; i < size; ++i) {
            action_[i] = clipped(wanted[i], low_[i], high_[i]);
            is_bounded |= action_[i] != wanted[i];
            if (!has_sent_) continue;
            const float slow = clipped(action_[i], sent_[i] - most_change_[i], sent_[i] + most_change_[i]);
            is_slowed |= slow != action_[i];
            action_[i] = slow;
        }
        for (const auto& side : box_) {
            float& value = action_[side.dimension];
            const float inside = network ? static_cast<float>(side.inside(value, *network)) : 0.0f;
            is_boxed |= inside != value;
            value = inside;
        }
        if (is_bounded) changed(Counter::bounds);
        if (is_slowed) changed(Counter::rate);
        if (is_boxed) changed(Counter::workspace);
        for (std::size_t i = 0; i < size; ++i) sent_[i] = action_[i] = clipped(action_[i], low_[i], high_[i]);
        has_sent_ = true;
        return action_.data();
    }

    /// Returns what answers a refused step, not yet limited; nullptr: nothing.
    const float* fallback() {
        const bool needs_sent =
            fallback_ == "last" || (fallback_ == "hold" && std::count(is_absolute_.begin(), is_absolute_.end(), true));
        if (fallback_ == "stop" || (needs_sent && !has_sent_)) return nullptr;
        for (std::size_t i = 0; i < size; ++i)
            wanted_[i] = fallback_ == "last" || (fallback_ == "hold" && is_absolute_[i]) ? sent_[i] : 0.0f;
        return wanted_.data();
    }

    const std::size_t size;

private:
    /// One side of the workspace box: position + scale * action must lie in [low, high].
    struct Side {
        std::size_t dimension;
        std::string observation;
        std::size_t element;
        double low, high, scale;

        double inside(double value, Network& network) const {
            const Tensor& tensor = network.input(observation);
            double position = 0;
            with_element(tensor.dtype, [&](auto zero) { position = double(tensor.data<decltype(zero)>()[element]); });
            return std::min(std::max(value, (low - position) / scale), (high - position) / scale);
        }
    };

    static float clipped(float value, float low, float high) { return std::min(std::max(value, low), high); }

    void read_fallback(const Json& modes, const std::string& name) {
        is_absolute_.assign(size, true);
        wanted_.assign(size, 0.0f);
        bool is_known = !modes.is_null() && !modes.items().empty();
        if (is_known && modes.items().size() != size) throw ControllerError("actions modes must be one a dimension");
        for (std::size_t i = 0; is_known && i < size; ++i) {
            if (modes.items()[i].is_null()) {
                is_known = false;
                break;
            }
            const auto& mode = modes.items()[i].text();
            if (mode != "absolute" && mode != "delta")
                throw ControllerError("actions modes (" + mode + ") must be 'absolute', 'delta' or null");
            is_absolute_[i] = mode == "absolute";
        }
        if (name != "hold" && name != "zero" && name != "last" && name != "stop")
            throw ControllerError("fallback (" + name + ") must be hold, zero, last or stop; correct it");
        if (name == "hold" && !is_known)
            throw ControllerError("fallback 'hold' needs actions modes: say 'absolute' or 'delta' for each dimension");
        fallback_ = name;
    }

    static std::size_t index_of(const Json& names, const std::string& name, const std::string& whose) {
        for (std::size_t i = 0; i < names.items().size(); ++i)
            if (names.items()[i].text() == name) return i;
        throw ControllerError("workspace " + whose + ": no element is called " + name + "; give names of the card");
    }

    static Side read_side(const std::string& name, const Json& side, const Json& card) {
        Side found{index_of(card.at("actions").at("elements"), name, name),
                   side.at("observation").text(),
                   0,
                   side.at("low").number(),
                   side.at("high").number(),
                   side.find("scale") ? side.at("scale").number() : 1.0};
        bool is_there = false;
        for (const auto& spec : card.at("observations").items()) {
            if (spec.at("name").text() != found.observation) continue;
            found.element = index_of(spec.at("elements"), side.at("element").text(), name);
            is_there = true;
        }
        if (!is_there || !(found.low <= found.high) || !(found.scale > 0))
            throw ControllerError("workspace " + name +
                                  ": give observation, element, low, high (not below low) and "
                                  "scale (above 0) by names of the card");
        return found;
    }

    std::vector<float> low_, high_, most_change_, action_, sent_, wanted_;
    std::vector<bool> is_absolute_;
    std::string fallback_;
    std::vector<Side> box_;
    bool has_sent_ = false;
};

}  // namespace qtransformer
