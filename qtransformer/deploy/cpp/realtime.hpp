// A controller in a loop of real time: when it wakes up, how long it thinks, which deadlines it misses.
//
// A tick is 1 / rate seconds after the one before, counted from the start, so that lateness does not add up.
#pragma once

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "golden.hpp"
#include "qtransformer_controller.hpp"

namespace qtransformer {

/// Asks for the scheduler and the memory of a control loop; returns whether both were permitted.
inline bool become_realtime() {
    sched_param parameters{};
    parameters.sched_priority = 80;
    return sched_setscheduler(0, SCHED_FIFO, &parameters) == 0 && mlockall(MCL_CURRENT | MCL_FUTURE) == 0;
}

/// steady_seconds is this clock, too.
inline void sleep_until(double seconds) {
    const timespec wanted = {static_cast<time_t>(seconds), static_cast<long>(1e9 * (seconds - std::floor(seconds)))};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wanted, nullptr) != 0) {}
}

struct Timing {
    std::vector<double> late_ms;     // how long after its tick a step began
    std::vector<double> latency_ms;  // what the controller took
    std::size_t num_missed = 0;  // ticks whose action came after the next tick, and ticks that passed without a step
};

/// Feeds the recorded observations, over and over, for so many seconds. `instruction` is told where a policy takes
/// words.
inline Timing drive(Controller& controller, const Golden& golden, double rate, double seconds,
                    const std::string& instruction) {
    const double period = 1 / rate, first = steady_seconds();
    Timing timing;
    timing.late_ms.reserve(static_cast<std::size_t>(seconds * rate) + 1);
    timing.latency_ms.reserve(static_cast<std::size_t>(seconds * rate) + 1);
    std::vector<const Json*> specs;
    for (const auto& spec : controller.card().at("observations").items())
        if (spec.at("kind").text() != "text") specs.push_back(&spec);
    std::vector<Reading> readings;
    readings.reserve(specs.size());
    std::size_t row = 0;
    for (double tick = first; tick < first + seconds; row = (row + 1) % golden.num_steps) {
        readings.clear();
        for (const Json* spec : specs) {
            const auto& name = spec->at("name").text();
            const Array& array = golden.array("inputs." + name);
            const char* data = array.bytes.data() + row * array.row_size() * facts(array.dtype).size;
            readings.emplace_back(name, array.dtype, data, array.shape.data() + 1, array.shape.size() - 1);
        }
        sleep_until(tick);
        const double began = steady_seconds();
        if (golden.is_reset(row)) instruction.empty() ? controller.reset() : controller.reset(instruction);
        controller.step(readings, began);
        const double done = steady_seconds();
        timing.late_ms.push_back(1000 * (began - tick));
        timing.latency_ms.push_back(1000 * (done - began));
        const auto num_passed = static_cast<std::size_t>((done - tick) / period);
        timing.num_missed += num_passed;
        tick += period * static_cast<double>(std::max<std::size_t>(num_passed, 1));
    }
    return timing;
}

/// Returns the value below which a share of the `values`, not empty, lies; between two of them linearly, as numpy does.
inline double quantile(std::vector<double> values, double share) {
    std::sort(values.begin(), values.end());
    const double place = share * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const auto above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
}

}  // namespace qtransformer
