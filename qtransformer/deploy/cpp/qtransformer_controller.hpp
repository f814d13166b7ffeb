// Runs an exported policy: one observation in, one action out, as controller.py does, with the same checks.
//
// A reading that is not a number would make every arg-max return bin 0, a finite action near the lower limit of every
// joint: therefore each step is checked before and after the network, and a refused one leaves no trace. `step` neither
// throws nor, but for what the runtime does inside, allocates; one that brings words may, while they are encoded.
// Not for several threads at once.
//
//     qtransformer::Controller controller("policy");
//     controller.reset();  // at the start of every episode; reset("pick up the cup") tells a policy that takes words
//     while (controller.state() != qtransformer::State::fault) {
//         const float* action = controller.step({{"state", positions}}, taken_at);
//         if (action) send(action, controller.action_size());
//     }
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle.hpp"
#include "limiter.hpp"
#include "network.hpp"
#include "sensors.hpp"
#include "words.hpp"

#ifndef QTRANSFORMER_ONNXRUNTIME  // CMakeLists.txt says where it is
#define QTRANSFORMER_ONNXRUNTIME "libonnxruntime.so"
#endif

namespace qtransformer {

/// init, until the first reset; ready, after a reset; running, since a step was accepted; fault, after too many refused
/// steps in a row: every step is answered by the fallback until the next reset.
enum class State { init, ready, running, fault };
constexpr const char* state_names[] = {"INIT", "READY", "RUNNING", "FAULT"};

inline double steady_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Options {
    std::string limits;                                  // JSON to obey in place of the card's; see README.md
    std::string onnxruntime = QTRANSFORMER_ONNXRUNTIME;  // the library
    std::function<double()> clock = steady_seconds;      // that of the times that readings are taken at
};

class Controller {
public:
    /// Loads and checks the bundle, and runs the network once.
    ///
    /// Throws ControllerError: a file is missing or damaged, the bundle has another schema version, or a limit is
    /// unsound.
    explicit Controller(const std::string& folder, const Options& options = {})
        : Controller(Bundle(folder, options.limits), options.onnxruntime, options.clock) {}

    Controller(const Bundle& bundle, const std::string& onnxruntime, std::function<double()> clock)
        : clock_(std::move(clock)),
          card_(bundle.card()),
          network_(bundle, onnxruntime),
          limiter_(card_),
          encoder_(card_) {
        for (const auto& spec : card_.at("observations").items()) sensors_.emplace_back(spec, network_);
        for (const auto& sensor : sensors_) {
            if (sensor.is_text && (sensor.input.count != encoder_.size() || sensor.input.dtype != Dtype::float32))
                throw ControllerError("policy.json: input " + sensor.name + " must be " +
                                      std::to_string(encoder_.size()) + " float32 numbers");
            has_text_ |= sensor.is_text;
        }
        if (network_.output("actions").count != limiter_.size)
            throw ControllerError("policy.json: outputs and tokenizer differ in the number of dimensions");
        const Json& safety = card_.at("safety");
        max_gap_ = number_or(safety.at("max_gap_s"), infinity);
        most_refused_ = safety.at("faults_before_latching").number();
        if (!(max_gap_ > 0) || !(most_refused_ >= 1))
            throw ControllerError("max_gap_s must be above 0 or null, faults_before_latching at least 1");
        given_.resize(sensors_.size());
    }

    /// All of policy.json, with the limits that are obeyed.
    const Json& card() const { return card_; }
    State state() const { return state_; }
    const char* state_name() const { return state_names[static_cast<int>(state_)]; }
    std::size_t action_size() const { return limiter_.size; }
    std::uint64_t count(Counter counter) const { return counters_[static_cast<std::size_t>(counter)]; }
    /// Why the last step was refused; `accepted` where it was not.
    Counter reason() const { return reason_; }
    /// The same in words, cut at 300 bytes; "" where it was accepted.
    const char* message() const { return message_; }
    /// Of the last run; they stand behind the action where the step was accepted.
    const Tensor& output(const std::string& name) { return network_.output(name); }

    /// Forgets the history and ends a fault: call it at the start of every episode.
    ///
    /// `instruction` is what the text observation says where a step's observation has none; `sent` is the command that
    /// the robot obeys now: the first action's rate is limited against it. Throws ControllerError where the instruction
    /// is unknown, the policy takes none, or `sent` is no action; all is then as before.
    void reset(std::optional<std::string_view> instruction = {}, const std::vector<float>* sent = nullptr) {
        std::vector<float> vector(encoder_.size());
        if (instruction) {
            if (!has_text_) throw ControllerError("instruction: this policy has no text observation; leave it out");
            const std::string problem = encoder_.encode(*instruction, vector.data());
            if (!problem.empty()) throw ControllerError("instruction '" + std::string(*instruction) + "' " + problem);
        }
        limiter_.forget(sent);
        instruction_ = std::move(vector);
        has_instruction_ = instruction.has_value();
        network_.forget();
        for (auto& sensor : sensors_) sensor.taken_at.reset();
        stepped_at_.reset();
        num_refused_ = 0;
        state_ = State::ready;
    }

    /// Returns the action for the newest observation, in the environment's units, within the limits, valid until the
    /// next call; nullptr: send nothing.
    ///
    /// A step that is refused leaves the history as it was, is counted under its reason, and is answered by the
    /// fallback. `taken_at` is when the readings were taken that do not say it themselves, in seconds of the
    /// controller's clock.
    const float* step(const Reading* readings, std::size_t size, std::optional<double> taken_at = {}) noexcept {
        counted(Counter::steps);
        try {
            if (is_usable(readings, size, taken_at) && decide()) {
                network_.commit();
                state_ = State::running;
                num_refused_ = 0;
                counted(Counter::accepted);
                reason_ = Counter::accepted;
                message_[0] = '\0';
                return sent(network_.output("actions").data<float>(), &network_);
            }
        } catch (const std::exception& error) {  // of the clock, or no memory: the loop must go on
            refuse(Counter::internal, "step failed (%s); look at the observation", error.what());
        } catch (...) { refuse(Counter::internal, "step failed; look at the observation"); }
        counted(reason_);
        ++num_refused_;
        if (state_ != State::init && num_refused_ >= most_refused_) state_ = State::fault;
        const float* fallback = limiter_.fallback();
        return fallback ? sent(fallback, nullptr) : nullptr;
    }
    const float* step(std::initializer_list<Reading> readings, std::optional<double> taken_at = {}) noexcept {
        return step(readings.begin(), readings.size(), taken_at);
    }
    const float* step(const std::vector<Reading>& readings, std::optional<double> taken_at = {}) noexcept {
        return step(readings.data(), readings.size(), taken_at);
    }

private:
    static constexpr double infinity = std::numeric_limits<double>::infinity();

    void counted(Counter counter) { ++counters_[static_cast<std::size_t>(counter)]; }

    const float* sent(const float* wanted, Network* network) {
        return limiter_.limited(wanted, network, [this](Counter counter) { counted(counter); });
    }

    /// Remembers why; returns false.
    bool refuse(Counter reason, const char* format, ...) {
        reason_ = reason;
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(message_, sizeof message_, format, arguments);
        va_end(arguments);
        return false;
    }

    /// Copies the readings to the network's inputs; returns false, with a reason, where they are unusable.
    bool is_usable(const Reading* readings, std::size_t size, std::optional<double> taken_at) {
        if (state_ == State::init)
            return refuse(Counter::not_reset,
                          "step() must follow reset(), got no reset() yet; call it when an episode starts");
        if (state_ == State::fault)
            return refuse(Counter::latched,
                          "%llu refused steps in a row latched the fault; call reset() when all is well",
                          static_cast<unsigned long long>(num_refused_));
        const double now = clock_();
        const auto before = stepped_at_;
        stepped_at_ = now;
        if (before && !(now - *before <= max_gap_))
            return refuse(Counter::late, "step came %.3g s after the one before, at most %.3g s", now - *before,
                          max_gap_);
        return are_all_there(readings, size) && are_copied() && are_in_range() && are_fresh(now, taken_at);
    }

    bool are_all_there(const Reading* readings, std::size_t size) {
        std::fill(given_.begin(), given_.end(), nullptr);
        for (std::size_t i = 0; i < size; ++i) {
            std::size_t index = 0;
            while (index < sensors_.size() && sensors_[index].name != readings[i].name) ++index;
            if (index == sensors_.size() || given_[index])
                return refuse(Counter::keys,
                              "observation '%.*s' is %s; send exactly the keys that the policy was trained on",
                              static_cast<int>(readings[i].name.size()), readings[i].name.data(),
                              index == sensors_.size() ? "not of the policy" : "there twice");
            given_[index] = &readings[i];
        }
        for (std::size_t index = 0; index < sensors_.size(); ++index)
            if (!given_[index] && !(sensors_[index].is_text && has_instruction_))
                return refuse(Counter::keys,
                              "observation '%s' is missing; send exactly the keys that the policy was trained on",
                              sensors_[index].name.c_str());
        return true;
    }

    bool are_copied() {
        for (std::size_t index = 0; index < sensors_.size(); ++index) {
            auto& sensor = sensors_[index];
            if (!(sensor.is_text ? is_encoded(sensor, given_[index]) : is_copied(sensor, *given_[index]))) return false;
        }
        return true;
    }

    bool is_encoded(Sensor& sensor, const Reading* reading) {
        if (!reading) {
            std::copy(instruction_.begin(), instruction_.end(), sensor.input.data<float>());
            return true;
        }
        if (reading->dtype != Dtype::text)
            return refuse(Counter::instruction, "an instruction must be text, got %s", facts(reading->dtype).name);
        const std::string problem = encoder_.encode(reading->text, sensor.input.data<float>());
        if (problem.empty()) return true;
        return refuse(Counter::instruction, "instruction '%.*s' %s",
                      static_cast<int>(std::min<std::size_t>(reading->text.size(), 100)), reading->text.data(),
                      problem.c_str());
    }

    bool is_copied(Sensor& sensor, const Reading& reading) {
        if (!sensor.has_shape_of(reading))
            return refuse(Counter::shape, "observation '%s': has not the shape that policy.json says",
                          sensor.name.c_str());
        if (!reading.data)
            return refuse(Counter::shape, "observation '%s': points to nothing, must be what the sensor read",
                          sensor.name.c_str());
        if (!can_cast(reading.dtype, sensor.input.dtype))
            return refuse(Counter::dtype, "observation '%s': dtype %s must be %s, or cast to it safely",
                          sensor.name.c_str(), facts(reading.dtype).name, facts(sensor.input.dtype).name);
        sensor.copy(reading);
        const std::size_t bad = sensor.first_not_finite();
        if (bad == sensor.input.count) return true;
        return refuse(Counter::not_finite, "observation '%s': must be finite, got NaN or infinity at element %zu",
                      sensor.name.c_str(), bad);
    }

    bool are_in_range() {
        bool is_usual = true;
        for (const auto& sensor : sensors_) {
            if (!sensor.hard) continue;
            const std::size_t bad = sensor.first_outside(*sensor.hard);
            if (bad < sensor.input.count)
                return refuse(
                    Counter::hard_range,
                    "observation '%s': element %zu is %.6g, must lie between %.6g and %.6g; look for a wrong unit",
                    sensor.name.c_str(), bad, sensor.element(bad), double(sensor.hard->low[bad]),
                    double(sensor.hard->high[bad]));
            is_usual &= sensor.first_outside(*sensor.training) == sensor.input.count;
        }
        if (!is_usual) counted(Counter::training_range);
        return true;
    }

    bool are_fresh(double now, std::optional<double> taken_at) {
        const auto time_of = [&](std::size_t index) {
            return given_[index] && given_[index]->taken_at ? given_[index]->taken_at : taken_at;
        };
        for (std::size_t index = 0; index < sensors_.size(); ++index) {
            const auto& sensor = sensors_[index];
            const auto taken = time_of(index);
            if (!taken) continue;
            if (!(std::fabs(now - *taken) <= sensor.max_age && *taken >= sensor.taken_at.value_or(-infinity)))
                return refuse(Counter::stale,
                              "observation '%s': is %.3g s old, at most %.3g s, and never older than the one before",
                              sensor.name.c_str(), now - *taken, sensor.max_age);
        }
        for (std::size_t index = 0; index < sensors_.size(); ++index)
            if (const auto taken = time_of(index)) sensors_[index].taken_at = taken;
        return true;
    }

    bool decide() {
        const std::string problem = network_.run();
        if (!problem.empty())
            return refuse(Counter::internal, "step failed (%s); look at the observation", problem.c_str());
        const Tensor &ok = network_.output("ok"), &actions = network_.output("actions");
        bool is_ok = true;
        for (std::size_t i = 0; i < ok.count; ++i) is_ok &= ok.data<std::uint8_t>()[i] == 1;
        for (std::size_t i = 0; i < actions.count; ++i) is_ok &= std::isfinite(actions.data<float>()[i]);
        return is_ok || refuse(Counter::network,
                               "outputs of the policy must be finite, got ok = False; hold the robot, look "
                               "for the sensor that left its range, and step again");
    }

    std::function<double()> clock_;
    Json card_;
    Network network_;
    Limiter limiter_;
    WordEncoder encoder_;
    std::vector<Sensor> sensors_;
    std::vector<const Reading*> given_;  // of this step, one a sensor
    std::vector<float> instruction_;
    bool has_instruction_ = false, has_text_ = false;
    State state_ = State::init;
    double max_gap_ = infinity, most_refused_ = 1;
    std::uint64_t num_refused_ = 0;
    std::optional<double> stepped_at_;
    std::uint64_t counters_[num_counters] = {};
    Counter reason_ = Counter::accepted;
    char message_[300] = "";
};

}  // namespace qtransformer
