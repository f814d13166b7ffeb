// Drives the C++ controller by lines of text, for tests/test_cpp.py. Text and bytes are hexadecimal, "-" is none.
//
//     driver FOLDER LIBRARY LIMITS
//     clock SECONDS | reset INSTRUCTION SENT... | encode TEXT | json TEXT | heap | counters
//     step TAKEN_AT COUNT, then a line a reading: NAME DTYPE BYTES TAKEN_AT SIZES...; no bytes: a null pointer
#include <malloc.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <new>
#include <sstream>

#include "qtransformer_controller.hpp"

using namespace qtransformer;

static std::size_t num_allocations = 0;

// Not inlined, or g++ 12 takes the pairs for mismatched.
__attribute__((noinline)) void* operator new(std::size_t size) {
    ++num_allocations;
    if (void* memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

static std::string bytes_of(const std::string& digits) {
    std::string bytes;
    for (std::size_t i = 0; digits != "-" && i + 1 < digits.size(); i += 2)
        bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
    return bytes;
}

static std::optional<double> time_of(const std::string& word) {
    return word == "-" ? std::nullopt : std::optional<double>(std::strtod(word.c_str(), nullptr));
}

struct Given {
    std::string name, bytes;
    Dtype dtype;
    std::vector<std::int64_t> shape;
    std::optional<double> taken_at;
};

static Given read_given() {
    std::string line, name, dtype, bytes, taken_at;
    std::getline(std::cin, line);
    std::istringstream words(line);
    words >> name >> dtype >> bytes >> taken_at;
    Given given{
        bytes_of(name), bytes_of(bytes), dtype == "str" ? Dtype::text : dtype_named(dtype), {}, time_of(taken_at)};
    for (std::int64_t size; words >> size;) given.shape.push_back(size);
    return given;
}

static void step(Controller& controller, std::istringstream& words) {
    std::string taken_at;
    std::size_t count;
    words >> taken_at >> count;
    std::vector<Given> given;
    for (std::size_t i = 0; i < count; ++i) given.push_back(read_given());
    std::vector<Reading> readings;
    for (const auto& each : given) {
        if (each.dtype == Dtype::text) readings.emplace_back(each.name, std::string_view(each.bytes));
        else {
            const void* data = each.bytes.empty() ? nullptr : each.bytes.data();
            readings.emplace_back(each.name, each.dtype, data, each.shape.data(), each.shape.size());
        }
        readings.back().taken_at = each.taken_at;
    }
    const std::size_t before = num_allocations;
    const float* action = controller.step(readings, time_of(taken_at));
    const std::size_t allocated = num_allocations - before;
    std::printf("%s %s %zu", controller.state_name(), counter_names[static_cast<int>(controller.reason())], allocated);
    for (std::size_t i = 0; action && i < controller.action_size(); ++i) std::printf(" %a", double(action[i]));
    std::printf("\t%s\n", controller.message());
}

static void reset(Controller& controller, std::istringstream& words) {
    std::string instruction;
    std::vector<float> sent;
    words >> instruction;
    for (std::string number; words >> number;) sent.push_back(std::strtof(number.c_str(), nullptr));
    const std::string text = bytes_of(instruction);
    try {
        controller.reset(instruction == "-" ? std::nullopt : std::optional<std::string_view>(text),
                         sent.empty() ? nullptr : &sent);
        std::printf("%s\n", controller.state_name());
    } catch (const ControllerError& error) { std::printf("error %s\n", error.what()); }
}

static void encode(const Controller& controller, const std::string& text) {
    const WordEncoder encoder(controller.card());
    std::vector<float> vector(encoder.size());
    const std::string problem = encoder.encode(text, vector.data());
    if (!problem.empty()) {
        std::printf("error %s\n", problem.c_str());
        return;
    }
    for (float each : vector) std::printf("%a ", double(each));
    std::printf("\n");
}

static std::string told(const Json& value) {  // one line for any value, to compare with json.loads
    std::ostringstream out;
    if (value.is_null()) return "null";
    if (value.is_text()) {
        out << "s";
        for (unsigned char c : value.text()) out << ' ' << int(c);
        return out.str();
    }
    try {
        char number[64];
        std::snprintf(number, sizeof number, "%.17g", value.number());
        return number;
    } catch (const ControllerError&) {}
    try {
        out << "[";
        for (const auto& each : value.items()) out << told(each) << ";";
        return out.str() + "]";
    } catch (const ControllerError&) {}
    out.str("{");
    out.seekp(0, std::ios::end);
    for (const auto& [name, each] : value.members()) out << name << ":" << told(each) << ";";
    return out.str() + "}";
}

static void json(const std::string& text) {
    try {
        std::printf("%s\n", told(Json::parse(text, "text")).c_str());
    } catch (const ControllerError& error) { std::printf("error %s\n", error.what()); }
}

int main(int count, char** words) {
    if (count != 4) return 2;
    double now = 100;
    try {
        Controller controller(words[1], {words[3], words[2], [&now] { return now; }});
        for (std::string line; std::getline(std::cin, line);) {
            std::istringstream rest(line);
            std::string command, word;
            rest >> command;
            if (command == "step") step(controller, rest);
            else if (command == "reset") reset(controller, rest);
            else if (command == "clock") {
                rest >> word;
                now = std::strtod(word.c_str(), nullptr);
            } else if (command == "encode") {
                rest >> word;
                encode(controller, bytes_of(word));
            } else if (command == "json") {
                rest >> word;
                json(bytes_of(word));
            } else if (command == "heap") std::printf("%zu\n", static_cast<std::size_t>(mallinfo2().uordblks));
            else if (command == "counters") {
                for (std::size_t i = 0; i < num_counters; ++i)
                    std::printf("%s %llu ", counter_names[i],
                                static_cast<unsigned long long>(controller.count(static_cast<Counter>(i))));
                std::printf("\n");
            } else return 2;
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
