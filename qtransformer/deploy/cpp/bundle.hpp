// The folder that `qtransformer export` wrote: its files, checked against SHA256SUMS, and its card.
#pragma once

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "common.hpp"
#include "hashes.hpp"
#include "json.hpp"

namespace qtransformer {

constexpr int schema_version = 3;

inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string data{std::istreambuf_iterator<char>(file), {}};
    if (!file.is_open() || file.bad())
        throw ControllerError(path + ": is missing or cannot be read; copy or export the bundle again");
    return data;
}

namespace detail {

inline void update(Json& place, const Json& changes, const std::vector<std::string>& allowed, const std::string& name) {
    for (const auto& [key, value] : changes.members()) {
        if (std::find(allowed.begin(), allowed.end(), key) == allowed.end())
            throw ControllerError("limits: " + name + " has no " + key + "; correct it");
        place.set(key, value);
    }
}

}  // namespace detail

/// Whether an observation has ranges. Text has none, and every byte of an image is within its own.
inline bool is_ranged(const Json& spec) {
    const auto& kind = spec.at("kind").text();
    return kind != "text" && kind != "image";
}

/// Puts the entries of `limits` in place of the card's: what `qtransformer export --limits` and controller.py take.
inline void merge_limits(Json& card, const Json& limits) {
    for (const auto& [part, changes] : limits.members()) {
        if (part == "actions") {
            detail::update(card.at(part), changes, {"low", "high", "modes", "rate_limit"}, part);
        } else if (part == "safety") {
            detail::update(card.at(part), changes, {"fallback", "faults_before_latching", "max_gap_s", "workspace"},
                           part);
        } else if (part == "observations") {
            for (const auto& [name, entries] : changes.members()) {
                auto& specs = card.at(part).items();
                const auto is_it = [&name = name](const Json& spec) { return spec.at("name").text() == name; };
                const auto spec = std::find_if(specs.begin(), specs.end(), is_it);
                if (spec == specs.end())
                    throw ControllerError("limits: no observation is called " + name + "; correct it");
                for (const auto& [entry, value] : entries.members())
                    if (entry.rfind("hard_", 0) == 0 && !value.is_null() && !is_ranged(*spec))
                        throw ControllerError("limits: " + name + ": a hard range is for numbers, not for " +
                                              spec->at("kind").text() + "; leave it out");
                detail::update(*spec, entries, {"hard_low", "hard_high", "max_age_s"}, "observation " + name);
            }
        } else {
            throw ControllerError("limits: " + part + " must be observations, actions or safety; correct it");
        }
    }
}

class Bundle {
public:
    /// Reads the card, with the entries of `limits`, JSON or "", in place of its own; see `merge_limits`.
    ///
    /// Throws ControllerError where the folder is no bundle, is damaged, or has another schema version.
    explicit Bundle(std::string folder, const std::string& limits = "") : folder_(std::move(folder)) {
        std::istringstream lines(read_file(folder_ + "/SHA256SUMS"));
        for (std::string digest, name; lines >> digest && std::getline(lines >> std::ws, name);) sums_[name] = digest;
        card_ = Json::parse(read("policy.json"), folder_ + "/policy.json");
        const double found = card_.at("schema_version").number();
        if (found != schema_version) {
            std::ostringstream message;
            message << folder_ << "/policy.json: schema_version (" << found << ") must be " << schema_version
                    << "; use the cpp/ of that bundle";
            throw ControllerError(message.str());
        }
        if (!limits.empty()) merge_limits(card_, Json::parse(limits, "limits"));
    }

    const Json& card() const { return card_; }
    Json& card() { return card_; }

    /// Returns the content of a file; throws where it is not what SHA256SUMS says.
    std::string read(const std::string& name) const {
        const std::string path = folder_ + "/" + name, data = read_file(path), found = sha256(data);
        const auto listed = sums_.find(name);
        const std::string expected = listed == sums_.end() ? "listed" : listed->second;
        if (found != expected)
            throw ControllerError(path + ": sha256 (" + found.substr(0, 12) + ") must be " + expected.substr(0, 12) +
                                  " as in SHA256SUMS; the file is damaged, changed or from another export: copy or "
                                  "export the bundle again");
        return data;
    }

private:
    std::string folder_;
    std::map<std::string, std::string> sums_;
    Json card_;
};

/// Returns `size` numbers as float32 holds them; `missing` where the list, or a part of it, is null.
inline std::vector<float> numbers(const Json& values, std::size_t size, double missing, const std::string& name) {
    std::vector<float> found(size, static_cast<float>(missing));
    if (values.is_null()) return found;
    const auto& items = values.items();
    if (items.size() != size)
        throw ControllerError(name + ": must hold " + std::to_string(size) + " numbers, got " +
                              std::to_string(items.size()) + "; correct the limits");
    for (std::size_t i = 0; i < size; ++i)
        if (!items[i].is_null()) found[i] = static_cast<float>(items[i].number());
    return found;
}

inline double number_or(const Json& value, double otherwise) { return value.is_null() ? otherwise : value.number(); }

}  // namespace qtransformer
