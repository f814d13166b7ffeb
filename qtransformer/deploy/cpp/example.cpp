// Checks a bundle on this machine, and measures the controller at the rate of a robot. See --help.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "golden.hpp"
#include "qtransformer_controller.hpp"
#include "realtime.hpp"

namespace {

using namespace qtransformer;

constexpr const char* usage =
    "usage: example FOLDER [options]\n"
    "Replays the recorded steps of the bundle and prints how far they agree, then steps the controller at a fixed\n"
    "rate on the recorded observations and prints its timing: one line of JSON each. Exit status 0: all agree.\n"
    "  --seconds S         of the loop, 10 by default; 0: none\n"
    "  --rate HZ           of the loop, 100 by default; ages and gaps of two periods are then allowed\n"
    "  --realtime          asks for SCHED_FIFO and locked memory\n"
    "  --limits FILE.json  to obey in place of the card's; see README.md\n"
    "  --onnxruntime FILE  libonnxruntime.so, where it is not where it was at the build\n";

struct Arguments {
    std::string folder, limits;
    std::string onnxruntime = Options().onnxruntime;
    double seconds = 10, rate = 100;
    bool is_realtime = false;
};

double number(const std::string& flag, const std::string& text, double least) {
    std::size_t used = 0;
    double value = 0;
    try {
        value = std::stod(text, &used);
    } catch (const std::exception&) {}
    if (used != text.size() || text.empty() || !(value >= least && value <= 1e6))
        throw ControllerError(flag + " (" + text + ") must be a number, at least " + std::to_string(least) +
                              "; change it");
    return value;
}

Arguments read(int count, char** words) {
    Arguments arguments;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const auto value = [&]() -> std::string {
            if (i + 1 == count) throw ControllerError(word + " needs a value; see --help");
            return words[++i];
        };
        if (word == "--help") {
            std::fputs(usage, stdout);
            std::exit(0);
        } else if (word == "--seconds") arguments.seconds = number(word, value(), 0);
        else if (word == "--rate") arguments.rate = number(word, value(), 0.1);
        else if (word == "--realtime") arguments.is_realtime = true;
        else if (word == "--limits") arguments.limits = read_file(value());
        else if (word == "--onnxruntime") arguments.onnxruntime = value();
        else if (word[0] != '-' && arguments.folder.empty()) arguments.folder = word;
        else throw ControllerError(word + " is not understood; see --help");
    }
    if (arguments.folder.empty()) throw ControllerError("the folder of a bundle is missing; see --help");
    return arguments;
}

void print_spread(const char* name, const std::vector<double>& values) {
    std::printf("\"%s\": {\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}, ", name, quantile(values, 0.5),
                quantile(values, 0.9), quantile(values, 0.99), quantile(values, 1));
}

/// Returns a message without what would end a JSON string.
std::string plain(std::string text) {
    for (char& c : text)
        if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < ' ') c = ' ';
    return text;
}

bool check(const Golden& golden, const Bundle& bundle, const std::string& onnxruntime) {
    Network network(bundle, onnxruntime);
    const Agreement found = replay(golden, bundle.card(), network);
    std::printf(
        "{\"passed\": %s, \"steps\": %zu, \"tokens\": {\"equal\": %zu, \"total\": %zu}, \"near_ties\": %zu, "
        "\"largest_action_difference\": %g, \"largest_q_difference\": %g, \"failures\": %zu, "
        "\"first_failure\": \"%s\"}\n",
        found.failures ? "false" : "true", found.steps, found.tokens_equal, found.tokens_total, found.near_ties,
        found.largest_action_difference, found.largest_q_difference, found.failures,
        plain(found.first_failure).c_str());
    std::fflush(stdout);
    return found.failures == 0;
}

/// Lets readings and steps be two periods of `rate` old, as `qtransformer run` does.
void allow(Bundle& bundle, double rate) {
    const Json longest = Json::of(2 / rate);
    bundle.card().at("safety").set("max_gap_s", longest);
    for (auto& spec : bundle.card().at("observations").items()) spec.set("max_age_s", longest);
}

void measure(const Golden& golden, const Bundle& bundle, const Arguments& arguments) {
    Controller controller(bundle, arguments.onnxruntime, steady_seconds);
    const bool is_realtime = arguments.is_realtime && become_realtime();
    std::string instruction;
    if (const Json* known = bundle.card().find("instructions"); known && !known->items().empty())
        instruction = known->items()[0].text();
    const Timing timing = drive(controller, golden, arguments.rate, arguments.seconds, instruction);
    std::printf("{\"rate\": %g, \"realtime\": %s, \"steps\": %zu, \"deadline_misses\": %zu, ", arguments.rate,
                is_realtime ? "true" : "false", timing.latency_ms.size(), timing.num_missed);
    print_spread("latency_ms", timing.latency_ms);
    print_spread("late_ms", timing.late_ms);
    std::printf("\"counters\": {");
    for (std::size_t i = 0; i < num_counters; ++i)
        std::printf("%s\"%s\": %llu", i ? ", " : "", counter_names[i],
                    static_cast<unsigned long long>(controller.count(static_cast<Counter>(i))));
    std::printf("}, \"message\": \"%s\"}\n", plain(controller.message()).c_str());
}

}  // namespace

int main(int count, char** words) {
    try {
        const Arguments arguments = read(count, words);
        Bundle bundle(arguments.folder);
        allow(bundle, arguments.rate);
        if (!arguments.limits.empty()) merge_limits(bundle.card(), Json::parse(arguments.limits, "limits"));
        const Golden golden(bundle);
        const bool agrees = check(golden, bundle, arguments.onnxruntime);
        if (arguments.seconds > 0) measure(golden, bundle, arguments);
        return agrees ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
