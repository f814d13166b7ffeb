// Instructions as numbers, bit for bit those of controller.py: its `WordEncoder`, which says why they are so, or the
// vectors that a language model gave to the instructions of the log, where the bundle holds them.
//
// Of words, letters beyond ASCII are refused: to lower-case and split them as Python does needs Unicode's tables, and a
// vector that is almost that of the training is worse than none.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "hashes.hpp"
#include "json.hpp"

namespace qtransformer {

class WordEncoder {
public:
    /// Knows the words of the card's instructions, those of the log; or these instructions alone, where it has a
    /// table. Throws ControllerError where that is none.
    explicit WordEncoder(const Json& card) {
        const Json* known = card.find("instructions");
        if (!known) return;
        for (const auto& text : known->items())
            if (is_ascii(text.text()))
                for (auto& word : words(text.text())) known_.insert(std::move(word));
        const Json* language = card.find("language");
        if (!language || language->is_null()) return;
        const auto& vectors = language->at("vectors").items();
        if (vectors.size() != known->items().size() || vectors.empty())
            throw ControllerError("policy.json: language must have a vector for each of the instructions");
        for (std::size_t i = 0; i < vectors.size(); ++i)
            table_[known->items()[i].text()] = decoded(vectors[i].text());
        size_ = table_.begin()->second.size();
        for (const auto& row : table_)
            if (row.second.size() != size_) throw ControllerError("policy.json: vectors of language differ in size");
    }

    /// Numbers of a vector.
    std::size_t size() const { return size_; }

    /// Fills `vector`. Returns what is wrong with the text, or "".
    std::string encode(std::string_view text, float* vector) const {
        if (table_.empty()) return encode_words(text, vector);
        const auto found = table_.find(text);
        if (found == table_.end())
            return "is none that the policy was trained on; the nearest that it had: " + nearest(text);
        std::copy(found->second.begin(), found->second.end(), vector);
        return "";
    }

private:
    static constexpr std::size_t num_signs = 128;

    /// Unit variance; zeros for a text without words.
    std::string encode_words(std::string_view text, float* vector) const {
        if (!is_ascii(text)) return "has letters beyond ASCII, which this controller does not know; use controller.py";
        auto parts = words(text);
        std::string unknown;
        for (const auto& word : parts)
            if (!known_.count(word)) unknown += (unknown.empty() ? "" : ", ") + word;
        if (!unknown.empty()) return "has words that the log never had: " + unknown;
        const std::size_t num_words = parts.size();
        for (std::size_t i = 1; i < num_words; ++i) parts.push_back(parts[i - 1] + " " + parts[i]);
        for (std::size_t i = 0; i < num_words; ++i) parts.push_back(parts[i] + (2 * i < num_words ? "/1" : "/2"));
        std::array<float, num_signs> sum{};  // whole numbers: exact in any order
        for (const auto& part : parts) {
            const auto bits = shake128(part);
            for (std::size_t i = 0; i < num_signs; ++i) sum[i] += bits[i / 8] >> (7 - i % 8) & 1 ? 1.0f : -1.0f;
        }
        const auto scale = static_cast<float>(std::sqrt(static_cast<double>(parts.empty() ? 1 : parts.size())));
        for (std::size_t i = 0; i < num_signs; ++i) vector[i] = sum[i] / scale;
        return "";
    }

    /// The known instruction that shares most words with the text.
    std::string nearest(std::string_view text) const {
        const auto asked = words(text);
        const std::string* best = nullptr;
        double most = -1;
        for (const auto& row : table_) {
            const auto own = words(row.first);
            double shared = 0;
            for (const auto& word : asked) shared += std::count(own.begin(), own.end(), word) > 0;
            const double score = shared / static_cast<double>(asked.size() + own.size() + 1);
            if (score > most) most = score, best = &row.first;
        }
        return *best;
    }

    /// Little-endian float32 in base64; throws ControllerError where it is none.
    static std::vector<float> decoded(const std::string& text) {
        static constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        std::vector<float> numbers;
        std::uint32_t pending = 0, word = 0;
        std::size_t num_bits = 0, num_bytes = 0;
        for (char c : std::string_view(text).substr(0, text.find('='))) {
            const auto digit = digits.find(c);
            if (digit == std::string_view::npos) throw ControllerError("policy.json: a vector of language is no base64");
            pending = pending << 6 | static_cast<std::uint32_t>(digit);
            num_bits += 6;
            if (num_bits < 8) continue;
            num_bits -= 8;
            word |= (pending >> num_bits & 255u) << 8 * (num_bytes++ % 4);
            if (num_bytes % 4) continue;
            float number;
            std::memcpy(&number, &word, sizeof number);
            numbers.push_back(number);
            word = 0;
        }
        if (num_bytes % 4) throw ControllerError("policy.json: a vector of language is no float32");
        return numbers;
    }

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
    std::map<std::string, std::vector<float>, std::less<>> table_;
    std::size_t size_ = num_signs;
};

}  // namespace qtransformer
