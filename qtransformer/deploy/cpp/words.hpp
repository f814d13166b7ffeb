// Instructions as numbers, bit for bit those of `WordEncoder` in controller.py, which says why they are so.
//
// Letters beyond ASCII are refused: to lower-case and split them as Python does needs Unicode's tables, and a vector
// that is almost that of the training is worse than none.
#pragma once

#include <array>
#include <cmath>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "hashes.hpp"

namespace qtransformer {

class WordEncoder {
public:
    static constexpr std::size_t size = 128;

    /// Knows the words of these instructions, those of the log, and no others.
    explicit WordEncoder(const std::vector<std::string>& known) {
        for (const auto& text : known)
            if (is_ascii(text))
                for (auto& word : words(text)) known_.insert(std::move(word));
    }

    /// Fills `vector`, unit variance; zeros for a text without words. Returns what is wrong with the text, or "".
    std::string encode(std::string_view text, float* vector) const {
        if (!is_ascii(text)) return "has letters beyond ASCII, which this controller does not know; use controller.py";
        auto parts = words(text);
        std::string unknown;
        for (const auto& word : parts)
            if (!known_.count(word)) unknown += (unknown.empty() ? "" : ", ") + word;
        if (!unknown.empty()) return "has words that the log never had: " + unknown;
        const std::size_t num_words = parts.size();
        for (std::size_t i = 1; i < num_words; ++i) parts.push_back(parts[i - 1] + " " + parts[i]);
        std::array<float, size> sum{};  // whole numbers: exact in any order
        for (const auto& part : parts) {
            const auto bits = shake128(part);
            for (std::size_t i = 0; i < size; ++i) sum[i] += bits[i / 8] >> (7 - i % 8) & 1 ? 1.0f : -1.0f;
        }
        const auto scale = static_cast<float>(std::sqrt(static_cast<double>(parts.empty() ? 1 : parts.size())));
        for (std::size_t i = 0; i < size; ++i) vector[i] = sum[i] / scale;
        return "";
    }

private:
    static bool is_ascii(std::string_view text) {
        for (char c : text)
            if (static_cast<unsigned char>(c) > 127) return false;
        return true;
    }

    static std::vector<std::string> words(std::string_view text) {
        std::vector<std::string> found;
        bool is_inside = false;
        for (char c : text) {
            const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
            const bool is_word = (lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9') || lower == '_';
            if (is_word && !is_inside) found.emplace_back();
            if (is_word) found.back() += lower;
            is_inside = is_word;
        }
        return found;
    }

    std::set<std::string> known_;
};

}  // namespace qtransformer
